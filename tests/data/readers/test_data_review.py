"""Inputs that once gave wrong rows, false leaks or a traceback."""

import json
import os
from pathlib import Path

import pytest
from conftest import write_rows
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from data.config import DataConfig
from data.errors import DataError, MappingError
from data.prepared.cache import FACTS, cached
from data.prepared.prepare import prepare
from data.prepared.table import RecordTable, RecordWriter
from data.readers import ReadFacts, read_records
from data.records import CodeSample
from data.text.tokenizer import CodeTokenizer


def gappy_tokenizer(folder: Path) -> Path:
    vocabulary = {"a": 70_000, "b": 1, "w": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("</s>")])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_ids_above_the_number_of_tokens_are_stored_whole(tmp_path):
    folder = gappy_tokenizer(tmp_path / "tokenizer")
    for name, words in (("train", "ab"), ("valid", "aw"), ("test", "wb")):
        rows: list[dict[str, object]] = [
            {"code": f"{name} {word}", "target": n} for n, word in enumerate(words)
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    prepared = prepare(DataConfig(path=str(tmp_path)), folder)
    assert prepared.tokenizer.vocab_size > 70_000
    assert 70_000 in prepared.splits["train"].examples.tokens.tolist()


def test_pairs_of_files_with_one_name_are_no_common_commit(tmp_path, tiny_model):
    paths = {}
    for split in ("train", "valid", "test"):
        (tmp_path / split).mkdir()
        rows: list[dict[str, object]] = [
            {"before": f"{split}{n}();", "after": f"{split}{n}(1);"} for n in range(3)
        ]
        paths[split] = str(write_rows(tmp_path / split / "data.jsonl", rows))
    config = DataConfig(fields={"before": "before", "after": "after"}, **paths)
    prepared = prepare(config, tiny_model)
    assert prepared.leaks == {}
    commits = prepared.splits["train"].samples.column("commit").to_pylist()
    assert commits[0] == commits[1] != commits[2]


def test_a_csv_row_of_two_faults_takes_no_good_row_with_it(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(b'code,target\na,0\n"caf\xe9"x,1\nb,1\nc,0\n')
    facts = ReadFacts()
    found = list(read_records(path, "train", DataConfig(max_bad_rows=1), facts))
    assert [sample.code for sample in found] == ["a", "b", "c"]
    assert facts.num_bad == 1


def test_a_file_whose_name_is_no_utf_8_has_an_origin_that_can_be_written(tmp_path):
    for label in ("safe", "vulnerable"):
        folder = tmp_path / "train" / label
        folder.mkdir(parents=True)
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.c")).write_text("int a;")
    found = list(read_records(tmp_path / "train", "train", DataConfig(format="folder")))
    assert [sample.origin for sample in found] == [
        "train/safe/caf\\xe9.c", "train/vulnerable/caf\\xe9.c"
    ]  # fmt: skip
    with RecordWriter(tmp_path / "records.arrow", CodeSample) as writer:
        writer.append(found)
    assert list(RecordTable(tmp_path / "records.arrow", CodeSample)) == found


@pytest.mark.parametrize("content", ['{"eos_token": ', '["</s>"]'])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_broken_file_beside_the_tokenizer_is_named(tmp_path, name, content):
    folder = gappy_tokenizer(tmp_path / "tokenizer")
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}: (not JSON|must hold a JSON object)"):
        CodeTokenizer(folder)


@pytest.mark.parametrize("content", ["", "{", "{}", '"text"', "[" * 5000])
def test_garbled_facts_are_built_again(tmp_path, content):
    entry = cached(tmp_path, "key", lambda _: {"n": 1})
    (entry / FACTS).write_text(content)
    (entry.parent / "key.lock").write_text("")  # not verified yet
    again = cached(tmp_path, "key", lambda _: {"n": 2})
    assert json.loads((again / FACTS).read_text())["n"] == 2


def test_labels_may_be_numbers_and_truth_values_must_be_quoted(tmp_path):
    path = write_rows(tmp_path / "train.jsonl", [{"code": "a", "target": 2}])
    config = DataConfig.model_validate({"labels": {2: 1, 7: 0}})
    assert [sample.target for sample in read_records(path, "train", config)] == [1]
    with pytest.raises(ValueError, match="truth values: quote them"):
        DataConfig.model_validate({"labels": {True: 1}})


def test_a_mapping_that_fits_no_dataset_is_the_recipes_fault(tmp_path):
    path = write_rows(tmp_path / "train.jsonl", [{"code": "a", "target": 0}])
    with pytest.raises(MappingError) as caught:
        list(read_records(path, "train", DataConfig(fields={"cod": "func"})))
    assert caught.value.exit_code == 2


def test_validation_is_another_name_of_valid(tmp_path, tiny_model):
    for name in ("train", "validation", "test"):
        rows: list[dict[str, object]] = [{"code": f"{name}({n});", "target": n} for n in range(2)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    prepared = prepare(DataConfig(path=str(tmp_path)), tiny_model)
    assert isinstance(prepared.splits["valid"].samples[0], CodeSample)
