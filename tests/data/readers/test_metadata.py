"""Labels and metadata as pandas, NVD and the published sets write them."""

from datetime import datetime

import pytest
from dataset_files import FORMATS, GOOD, read

from data.config import DataConfig
from data.prepared.prepare import open_splits

UNKNOWN = [None, float("nan"), "", " ", "-", "None", "nan", "NaN", "N/A", "null", [], [None], "[]"]
UNKNOWN += ["[nan]", "[None]", "{}", " none ", "<NA>", "unknown"]


def rows(path, *changes, **config):
    path.write_bytes(FORMATS[path.suffix[1:]]([GOOD | change for change in changes]))
    return read(path, **config)


@pytest.mark.parametrize("value", UNKNOWN, ids=repr)
def test_an_unknown_value_is_empty_and_never_a_group(tmp_path, value):
    names = ("cwe", "status", "commit", "function_name", "project", "cve", "language", "id")
    [sample] = rows(tmp_path / "train.jsonl", dict.fromkeys(names, value))
    assert {getattr(sample, name) for name in names[:-1]} == {""}
    assert sample.id == sample.origin


def test_a_date_may_be_a_type_of_the_table_or_a_number(tmp_path):
    moment = datetime(2021, 3, 31, 12, 5)
    for name, value, text in (
        ("train.parquet", moment, "2021-03-31T12:05:00"),
        ("train.parquet", moment.date(), "2021-03-31"),
        ("train.parquet", 1617192300.5, "1617192300.5"),
        ("train.jsonl", 1617192300.0, "1617192300"),
        ("train.jsonl", float("nan"), ""),
    ):
        [sample] = rows(tmp_path / name, {"commit_date": value})
        assert sample.date == text


@pytest.mark.parametrize("value", ["none.c", "NaNoScript", "(anonymous)", "[x", "x]", "['a'", "-1"])
def test_a_value_that_only_looks_unknown_is_kept(tmp_path, value):
    [sample] = rows(tmp_path / "train.jsonl", {"project": value})
    assert sample.project == value


@pytest.mark.parametrize(
    "value",
    [
        ["CWE-787", "CWE-119"],
        ["CWE-119", "CWE-787", "CWE-119", None],
        "['CWE-787', 'CWE-119']",
        '["CWE-119","CWE-787"]',
        "{'CWE-787', 'CWE-119'}",
        "('CWE-119', 'CWE-787', nan)",
    ],
    ids=repr,
)
def test_a_list_of_weaknesses_is_kept_whole_and_the_same_in_any_order(tmp_path, value):
    [sample] = rows(tmp_path / "train.jsonl", {"cwe": value})
    assert sample.cwe == "CWE-119, CWE-787"


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_a_column_of_lists_is_read(tmp_path, kind):
    found = rows(tmp_path / f"train.{kind}", {"cwe": ["CWE-79"]}, {"cwe": []}, {"cwe": ["b", "a"]})
    assert [sample.cwe for sample in found] == ["CWE-79", "", "a, b"]


def test_numbers_are_ids_and_a_list_in_a_list_is_refused(tmp_path):
    [sample] = rows(tmp_path / "train.jsonl", {"idx": 7, "commit": 79.0, "cwe": [79, 20.0]})
    assert (sample.id, sample.commit, sample.cwe) == ("7", "79", "20, 79")
    with pytest.raises(ValueError, match=r"'cwe' must be text, an integer, or a list of these"):
        rows(tmp_path / "train.jsonl", {"cwe": [["CWE-79"]]})


@pytest.mark.parametrize("kind", FORMATS)
def test_33_what_pandas_makes_of_labels_with_a_gap_is_read(tmp_path, kind):
    path = tmp_path / f"train.{kind}"
    assert [s.target for s in rows(path, {"target": 0.0}, {"target": 1.0})] == [0, 1]
    found = rows(path, {"target": 1.0}, {"target": float("nan")}, {"target": 0.0}, max_bad_rows=1)
    assert [sample.target for sample in found] == [1, 0]


def test_the_names_of_published_sets_are_found(tmp_path):
    published = {"commit_id": "4f2a", "CVE ID": "CVE-2031-1", "CWE ID": "CWE-20", "func_name": "f"}
    [sample] = rows(tmp_path / "train.csv", published)
    found = (sample.commit, sample.cve, sample.cwe, sample.function_name)
    assert found == tuple(published.values())


def test_unknown_values_in_every_split_are_not_a_leak(tmp_path, tiny_model):
    for n, name in enumerate(("train", "valid", "test")):
        rows(
            tmp_path / f"{name}.jsonl",
            {"code": f"int a{n};", "cve": "None", "commit": "nan", "cwe": ["CWE-79", "CWE-20"]},
            {"code": f"int b{n};", "cve": [], "commit": "-", "target": 1, "cwe": "CWE-20"},
        )
    config = DataConfig(path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    prepared = open_splits(config, tiny_model)
    assert prepared.leaks == {}
    assert prepared.facts["splits"]["train"]["cwe"] == {"CWE-20, CWE-79": [1, 0], "CWE-20": [0, 1]}
