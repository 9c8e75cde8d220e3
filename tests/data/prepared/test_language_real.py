"""CodeAlpaca, Alpaca and OASST through the real tokenizers: counts equal a naive count."""

import gzip
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from tokenizers import Tokenizer

from data.config import DataConfig
from data.readers import ReadFacts, locate, read_language
from data.text.language import encode_language, supervised_facts
from data.text.tokenizer import CodeTokenizer

SHARED = REPOSITORY.parent / "shared" / "data"
TOKENIZERS = SHARED / "tokenizers"
END = "<|endoftext|>"

# file -> the field of the answer, what the template writes before it, rows, rows without an answer
FILES = {
    "codealpaca/code_alpaca_2k.json": ("output", "", 2017, 2),
    "codealpaca/new_codealpaca.json.gz": ("output", "", 4535, 0),
    "alpaca/alpaca_en_demo.json": ("output", "", 999, 0),
    "alpaca/litgpt_fixture_alpaca.json": ("output", "", 23, 0),
    "oasst_octopack/oasstcommitpackft.jsonl.gz": ("completion", " ", 151, 0),
    "oasst_octopack/oasstcommitpackftmanual.jsonl.gz": ("completion", " ", 1178, 0),
}
LONGEST = 1 << 20

pytestmark = pytest.mark.skipif(
    not TOKENIZERS.is_dir(), reason="needs the real data beside the repository"
)
on_every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file).name)
with_both_tokenizers = pytest.mark.parametrize("name", ["gpt2", "starcoder1_recovered"])


def raw_rows(file: str) -> list[dict[str, str]]:
    """All rows, by nothing of ours."""
    path = SHARED / file
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content.lstrip().startswith(b"["):
        return json.loads(content)
    return [json.loads(line) for line in content.splitlines()]


@lru_cache
def library(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZERS / name / "tokenizer.json"))


@lru_cache
def ours(name: str) -> CodeTokenizer:
    return CodeTokenizer(TOKENIZERS / name)


def encoded(file: str, name: str, **options: object):
    values = {"train": str(SHARED / file)} | options
    config = DataConfig.model_validate(values)
    facts = ReadFacts()
    (path,) = locate(config, "train", language=True)
    records = list(read_language(path, "train", config, facts))
    return records, encode_language(records, ours(name), config), facts


@on_every_file
@with_both_tokenizers
def test_supervised_tokens_are_those_of_the_answers_alone_and_an_end_each(file, name):
    field, before, num_rows, num_blank = FILES[file]
    tokenizer = library(name)
    answers = [row[field] for row in raw_rows(file) if row[field].strip()]
    alone = tokenizer.encode_batch([before + answer for answer in answers])
    naive = [len(encoding.ids) + 1 for encoding in alone]
    records, pieces, facts = encoded(file, name, seq_length=LONGEST)
    assert len(records) == len(naive) == num_rows - num_blank > 0
    assert (facts.num_rows, facts.num_empty) == (num_rows, num_blank)
    starts = np.cumsum(pieces.lengths_E) - pieces.lengths_E
    assert np.add.reduceat(pieces.supervised, starts, dtype=np.int64).tolist() == naive
    ends = pieces.tokens[starts + pieces.lengths_E - 1]
    assert set(ends.tolist()) == {tokenizer.token_to_id(END)}
    assert pieces.supervised[starts + pieces.lengths_E - 1].all()


@with_both_tokenizers
def test_a_blank_that_is_the_answers_keeps_the_tokens_of_the_whole_text(name):
    # "Answer: Sure" is "Answer", ":", " Sure"; with the blank in the prompt it would be a token
    file = "oasst_octopack/oasstcommitpackft.jsonl.gz"
    tokenizer = library(name)
    records, pieces, _ = encoded(file, name, seq_length=LONGEST)
    parts = np.split(pieces.tokens, np.cumsum(pieces.lengths_E)[:-1])
    rows = raw_rows(file)
    texts = [f"Question: {row['prompt']}\n\nAnswer: {row['completion']}{END}" for row in rows]
    joint = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    num_same = sum(part.tolist() == whole for part, whole in zip(parts, joint, strict=True))
    assert num_same >= len(records) - 2  # an answer that begins with blanks
    decoded = [tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in parts]
    assert decoded == texts


@with_both_tokenizers
def test_windows_of_real_answers_keep_and_supervise_what_the_whole_does(name):
    file = "oasst_octopack/oasstcommitpackftmanual.jsonl.gz"
    _, whole, _ = encoded(file, name, seq_length=LONGEST)
    config = {"seq_length": 128, "long_functions": "window", "window_overlap": 16}
    _, windows, _ = encoded(file, name, **config)
    num_supervised = np.bincount(windows.record_E, windows_supervised(windows))
    assert num_supervised.tolist() == windows_supervised(whole).tolist()
    assert windows.num_unsupervised > 0
    assert windows.lengths_E.max() == 128
    facts = supervised_facts(windows, DataConfig.model_validate(config))
    assert facts.num_supervised == whole.supervised.sum()
    assert sum(facts.share_histogram) == facts.num_examples


def windows_supervised(pieces) -> np.ndarray:
    starts = np.cumsum(pieces.lengths_E) - pieces.lengths_E
    return np.add.reduceat(pieces.supervised, starts, dtype=np.int64)
