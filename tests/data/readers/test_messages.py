"""Messages name the real cause: what a file is, which map a label needs, which of two files."""

import json
import pickle
import sqlite3

import pytest
from dataset_files import parquet_bytes

from data.config import DataConfig
from data.errors import DataError
from data.prepared.prepare import open_splits
from data.readers import read_records, told_apart

ROWS = '{"code": "int a;", "target": 0}\n{"code": "int b;", "target": 1}\n'


def refusal(path, **config):
    with pytest.raises(DataError) as caught:
        list(read_records(path, "train", DataConfig.model_validate(config)))
    assert caught.value.exit_code == 3
    return str(caught.value)


def rows(path, *changes, **config):
    """Records of rows that differ in these values."""
    values = [{"code": f"int {n};", "target": 0} | change for n, change in enumerate(changes)]
    path.write_text("".join(json.dumps(row) + "\n" for row in values))
    return list(read_records(path, "train", DataConfig.model_validate(config)))


@pytest.mark.parametrize("name", ["train.db", "train.csv", "train.jsonl", "train.parquet"])
def test_a_database_is_known_whatever_the_file_is_called(tmp_path, name):
    with sqlite3.connect(tmp_path / name) as database:
        database.execute("create table method_change (code text, before_change text)")
        database.execute("insert into method_change values ('int a;', 'True')")
    message = refusal(tmp_path / name, fields={"target": "before_change"})
    assert """data.labels='{"False": 0, "True": 1}'""" in message
    assert f"{name}:row 1: 'before_change' must be the integer 0 or 1" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.json"])
def test_17_utf_16_is_named_with_and_without_its_mark(tmp_path, encoding, name):
    (tmp_path / name).write_bytes(ROWS.encode(encoding))
    for errors in ("strict", "replace"):  # a repair would make every second character NUL
        message = refusal(tmp_path / name, encoding_errors=errors)
        assert f"{name}: this is text in UTF-" in message
        assert "save it as UTF-8" in message


def test_a_pickle_is_named_and_never_opened(tmp_path):
    (tmp_path / "train.pkl").write_bytes(pickle.dumps([{"code": "a"}]))
    assert "this is a pickle, which is never opened" in refusal(tmp_path / "train.pkl")


MAPS = [
    (True, '{"false": 0, "true": 1}'), ("1", '{"0": 0, "1": 1}'),
    ("True", '{"False": 0, "True": 1}'), ("yes", '{"no": 0, "yes": 1}'),
    ("vulnerable", '{"safe": 0, "vulnerable": 1}'),
]  # fmt: skip


@pytest.mark.parametrize(("label", "labels"), MAPS, ids=[repr(label) for label, _ in MAPS])
def test_33_the_map_of_a_refused_label_is_given_and_works(tmp_path, label, labels):
    (tmp_path / "train.jsonl").write_text(json.dumps({"code": "a", "target": label}) + "\n")
    assert f"data.labels='{labels}'" in refusal(tmp_path / "train.jsonl")
    read = rows(tmp_path / "train.jsonl", {"target": label}, labels=json.loads(labels))
    assert [sample.target for sample in read] == [1]


@pytest.mark.parametrize(("label", "labels"), MAPS[:1])
def test_33_a_boolean_column_of_parquet_gets_its_map(tmp_path, label, labels):
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet_bytes([{"code": "a", "target": label}]))
    assert f"data.labels='{labels}'" in refusal(path)
    config = DataConfig.model_validate({"labels": json.loads(labels)})
    assert [sample.target for sample in read_records(path, "train", config)] == [1]


@pytest.mark.parametrize("label", [None, float("nan"), ""])
@pytest.mark.parametrize("labels", [{}, {"safe": 0, "bad": 1}])
def test_30_a_missing_label_is_called_missing(tmp_path, label, labels):
    (tmp_path / "train.jsonl").write_text(json.dumps({"code": "a", "target": label}) + "\n")
    message = refusal(tmp_path / "train.jsonl", labels=labels)
    assert "it is missing: remove the row, or raise data.max_bad_rows" in message


def test_what_pandas_makes_of_a_gap_in_an_optional_column_is_unknown(tmp_path):
    gap = {"cwe": float("nan"), "cve": None, "commit": "", "project": "p"}
    first, second = rows(tmp_path / "train.jsonl", gap, {"cwe": 79.0})
    assert (first.cwe, first.cve, first.commit, first.project) == ("", "", "", "p")
    assert second.cwe == "79"


def test_43_where_every_row_is_bad_the_first_fault_is_the_message(tmp_path, tiny_model):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"code": "a", "target": "x"}\n' * 3)
    config = DataConfig(path=str(tmp_path), max_bad_rows=10, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"3 were bad.*train\.jsonl:1: 'target' must be"):
        open_splits(config, tiny_model)


def test_43_held_out_records_that_are_all_bad_are_not_blamed_on_the_split(tmp_path, tiny_model):
    (tmp_path / "train.jsonl").write_text('{"prompt": 3, "completion": "x"}\n' * 3)
    config = DataConfig.model_validate(
        {"train": str(tmp_path / "train.jsonl"), "max_bad_rows": 10, "records": "prompt_completion",
         "cache_dir": str(tmp_path / "cache")}
    )  # fmt: skip
    with pytest.raises(DataError, match=r"3 were bad.*train\.jsonl:1: 'prompt' must be text"):
        open_splits(config, tiny_model, language=True)


def test_files_of_one_name_are_called_by_the_folders_that_differ(tmp_path, tiny_model):
    paths = {}
    for name in ("train", "valid", "test"):
        (tmp_path / name).mkdir()
        paths[name] = str(tmp_path / name / "rows.jsonl")
        (tmp_path / name / "rows.jsonl").write_text(ROWS.replace("int", name))
    config = DataConfig.model_validate(paths | {"cache_dir": str(tmp_path / "cache")})
    splits = open_splits(config, tiny_model).splits
    assert [s.origin for s in splits["valid"].samples] == [
        "valid/rows.jsonl:1",
        "valid/rows.jsonl:2",
    ]
    (tmp_path / "test" / "rows.jsonl").write_text(ROWS + '{"code": 3, "target": 1}\n')
    with pytest.raises(DataError, match=r"^test/rows\.jsonl:3: 'code'"):
        open_splits(config, tiny_model)


def test_a_name_grows_only_as_far_as_another_file_needs_it(tmp_path):
    first, second, third = (tmp_path / part / "x.json" for part in ("a/c", "b/c", "d"))
    names = told_apart([first, second, third, tmp_path / "y.json", first])
    assert names == {first: "a/c/x.json", second: "b/c/x.json", third: "d/x.json"}
