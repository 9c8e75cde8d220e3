"""The embedded sample is what its README says, and its generator writes it again."""

import ast
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.samples import generate
from trainer.evaluation.functions.baselines import tfidf_logistic
from trainer.evaluation.functions.metrics import classification_metrics

FOLDER = Path(generate.__file__).resolve().parent
SPLITS = ("train", "valid", "test", "test_imbalanced")
FIELDS = {"id", "code", "target", "cwe", "status", "commit", "function_name", "language"}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, Any]]]:
    return {
        split: [
            json.loads(line)
            for line in gzip.decompress((FOLDER / f"{split}.jsonl.gz").read_bytes()).splitlines()
        ]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples")
    generate.generate(out)
    return out


def without_whitespace_runs(code: str) -> str:
    return " ".join(code.split())


def test_the_generator_writes_the_committed_bytes_again(regenerated):
    written = sorted(path.relative_to(regenerated) for path in regenerated.rglob("*.*"))
    assert len(written) == 10  # four splits, three of instructions, tokenizer and its two configs
    for name in written:
        fresh, committed = (regenerated / name).read_bytes(), (FOLDER / name).read_bytes()
        if name.suffix == ".gz":
            # Another zlib may compress the same text to other bytes, so texts are compared; the
            # header (RFC 1952) must hold no name and no time, which would differ on each run.
            assert committed[3:8] == bytes(5)
            fresh, committed = gzip.decompress(fresh), gzip.decompress(committed)
        assert fresh == committed, name


def test_two_runs_write_the_same_bytes(regenerated, tmp_path):
    generate.generate(tmp_path)
    for path in tmp_path.rglob("*.*"):
        assert path.read_bytes() == (regenerated / path.relative_to(tmp_path)).read_bytes()


def test_every_record_has_the_documented_fields(splits):
    for record in (record for records in splits.values() for record in records):
        assert set(record) == FIELDS
        assert record["status"] == {0: "FIXED", 1: "VULNERABLE"}[record["target"]]
        assert len(bytes.fromhex(record["commit"])) == 20
        assert record["function_name"] in record["code"]


def test_weaknesses_and_languages_are_many_enough_in_every_split(splits):
    for split, records in splits.items():
        assert len({record["cwe"] for record in records}) >= 12, split
        assert {record["language"] for record in records} == {"c", "java", "python"}, split


def test_splits_share_no_commit_and_no_code(splits):
    for key in (lambda r: r["commit"], lambda r: without_whitespace_runs(r["code"])):
        owners = Counter(
            value for records in splits.values() for value in {key(record) for record in records}
        )
        assert len(owners) > 2_000  # otherwise disjointness proves little
        assert set(owners.values()) == {1}


def test_the_same_code_never_has_two_labels(splits):
    labels: dict[str, set[int]] = {}
    for record in (record for records in splits.values() for record in records):
        labels.setdefault(without_whitespace_runs(record["code"]), set()).add(record["target"])
    assert {len(found) for found in labels.values()} == {1}


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_balanced_splits_hold_both_versions_of_each_commit(splits, split):
    targets: dict[str, list[int]] = {}
    for record in splits[split]:
        targets.setdefault(record["commit"], []).append(record["target"])
    assert all(sorted(found) == [0, 1] for found in targets.values())
    # Neither version always comes first, or the place in the file would tell the label.
    first = sum(found[0] for found in targets.values()) / len(targets)
    assert 0.4 < first < 0.6


def test_about_a_tenth_of_the_imbalanced_split_is_vulnerable(splits):
    records = splits["test_imbalanced"]
    share = sum(record["target"] for record in records) / len(records)
    assert 0.08 <= share <= 0.12


def test_the_code_is_well_formed(splits):
    records = [record for split in SPLITS for record in splits[split]]
    assert len(records) > 2_000
    for record in records:
        if record["language"] == "python":
            ast.parse(record["code"])
        for opening, closing in ("()", "[]", "{}"):
            assert record["code"].count(opening) == record["code"].count(closing), record["id"]


def test_instructions_ask_about_functions_of_their_own_split_and_answer_right(splits):
    titles = set()
    for split in ("train", "valid", "test"):
        path = FOLDER / "instructions" / f"{split}.jsonl.gz"
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        records = {record["id"]: record for record in splits[split]}
        asked = [records[row["id"]] for row in rows]
        assert len({record["commit"] for record in asked}) == len(rows) > 100
        for row, record in zip(rows, asked, strict=True):
            question, answer = row["instruction"], row["output"]
            titles.add(question.partition(" ")[0])
            if question.startswith("Write"):
                assert (row["input"], answer) == ("", record["code"])
                assert record["cwe"] in question
                assert ("safe from" in question) == (record["target"] == 0)
                continue
            assert row["input"] == record["code"]
            if question.startswith("Perform"):
                assert answer.startswith(f"Vulnerable: {record['cwe']}") == bool(record["target"])
            elif "language" in question:
                assert answer.rstrip(".").rpartition(" ")[2].lower() == record["language"]
            else:
                assert answer == record["function_name"]
    assert titles == {"Write", "Perform", "In", "What"}


def test_lengths_run_from_a_few_lines_to_a_long_tail(splits):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    codes = [record["code"] for records in splits.values() for record in records]
    lengths = [len(ids) for ids in tokenizer(codes)["input_ids"]]
    assert min(lengths) <= 40
    assert 1_200 <= max(lengths) <= 1_500
    assert tokenizer.decode(tokenizer(codes[0])["input_ids"]) == codes[0]


def test_the_tiny_model_folder_loads_and_agrees_with_itself():
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(FOLDER / "model")
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    assert config.model_type == "gpt_bigcode"
    assert config.vocab_size == len(tokenizer) == 2_048
    assert config.eos_token_id == tokenizer.eos_token_id
    assert config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer("\n" + " " * 8 + "x")["input_ids"]) == 3  # newline and indent, " ", x


def test_words_alone_tell_some_flaws_and_not_all(splits):
    # A quarter of the pairs differ in the words used. If a bag of words ranks those right and
    # guesses the rest, AUC = 1/4 + 3/4 * (1/4 + 3/4 * 1/2) = 0.72; word pairs leak a little more.
    # Chance would be 0.5, and reading the code right 1.0.
    train, test = splits["train"], splits["test"]
    scorer = tfidf_logistic([r["code"] for r in train], [r["target"] for r in train])
    scores = scorer([record["code"] for record in test])
    auc = classification_metrics(scores, [record["target"] for record in test], 0.5)["roc_auc"]
    assert auc is not None
    assert 0.6 < auc < 0.85
