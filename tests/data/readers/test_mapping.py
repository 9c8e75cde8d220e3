"""Mapped fields and labels, pairs of a fix, ids, digests and the facts of a reading."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from dataset_files import FORMATS, PAIR, jsonl_bytes, read, refused, row

from data.config import DataConfig
from data.errors import DataError
from data.readers import ReadFacts, file_digest, locate, read_records, source_digest
from data.records import CodeSample

LABELS = {"vulnerable": 1, "safe": 0, "7": 1, "true": 1}
PAIRS = {"before": "func_before", "after": "func_after"}
ARCHIVE = REPOSITORY.parent.joinpath(
    "shared", "data", "vul_java_x1_without_p3", "java_k_1_strict_2023_07_03.tar.gz"
)


def write(path, rows):
    path.write_bytes(FORMATS[path.suffix[1:]](rows))
    return path


def test_38_a_named_column_is_read_and_an_unknown_field_of_ours_is_refused(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"func": "a", "label": 1, "project": "p"}])
    fields = {"code": "func", "target": "label", "commit": "project"}
    assert read(path, fields=fields) == [
        CodeSample("train.jsonl:1", "a", 1, "train.jsonl:1", commit="p", project="p")
    ]
    with pytest.raises(
        DataError, match=r"data\.fields: \['cod'\] .* allowed: vulnerability has \['code', "
    ):
        read(path, fields={"cod": "func"})


@pytest.mark.parametrize("kind", FORMATS)
def test_32_labels_of_text_are_mapped_in_every_format(tmp_path, kind):
    rows = [{"code": "a", "target": "vulnerable"}, {"code": "b", "target": "safe"}]
    path = write(tmp_path / f"train.{kind}", rows)
    assert [s.target for s in read(path, labels=LABELS)] == [1, 0]
    rows[1]["target"] = "Safe"
    place = {"jsonl": "2", "json": "element 2", "csv": "3", "parquet": "row 2"}[kind]
    refused(
        write(path, rows),
        [f"train.{kind}:{place}: 'target' must be one of data.labels", "'safe': 0", "'Safe' (str)"],
        labels=LABELS,
    )


def test_33_numbers_and_booleans_are_mapped_by_their_json_text(tmp_path):
    path = write(
        tmp_path / "train.jsonl", [{"code": "a", "target": t} for t in (7, True, "safe", 7.0)]
    )
    assert [s.target for s in read(path, labels=LABELS)] == [1, 1, 0, 1]
    for target in (None, 1, 7.5, ["safe"], float("nan")):
        refused(write(path, [{"code": "a", "target": target}]), ["data.labels"], labels=LABELS)


@pytest.mark.parametrize("labels", [{"x": 2, "y": 1}, {"x": -1, "y": 0}, {"x": "a", "y": 0}])
def test_31_a_label_becomes_a_class_id_and_none_is_left_out(tmp_path, labels):
    path = write(tmp_path / "train.jsonl", [{"code": "a", "target": "x"}])
    with pytest.raises(
        DataError, match=r"must become the class ids 0, 1, \.\.\. with none left out"
    ):
        read(path, labels=labels)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_pair_is_a_vulnerable_and_a_fixed_function_of_one_group(tmp_path, kind):
    rows = [
        {"func_before": "a1", "func_after": "a2", "id": "x", "commit": "c", "cwe": "CWE-1"},
        {"func_before": "b1", "func_after": "b2", "id": "", "commit": "", "cwe": ""},
    ]
    path = write(tmp_path / f"train.{kind}", rows)
    found = read(path, fields=PAIRS)
    origins = [sample.origin.removesuffix(":before").removesuffix(":after") for sample in found]
    assert origins[0] == origins[1] != origins[2] == origins[3]
    one, two = origins[0], origins[2]
    assert found == [
        CodeSample("x:before", "a1", 1, f"{one}:before", "CWE-1", "VULNERABLE", "c"),
        CodeSample("x:after", "a2", 0, f"{one}:after", "CWE-1", "FIXED", "c"),
        CodeSample(f"{two}:before", "b1", 1, f"{two}:before", "", "VULNERABLE", f"train/{two}"),
        CodeSample(f"{two}:after", "b2", 0, f"{two}:after", "", "FIXED", f"train/{two}"),
    ]


def test_a_pair_that_changed_nothing_is_dropped_and_a_missing_side_too(tmp_path):
    rows = [("a", "a"), ("b", ""), (None, "c"), (" ", " "), ("d", "e")]
    facts, path = ReadFacts(), tmp_path / "train.jsonl"
    write(path, [{"func_before": before, "func_after": after} for before, after in rows])
    found = read(path, facts=facts, fields=PAIRS)
    assert [(s.code, s.target) for s in found] == [("b", 1), ("c", 0), ("d", 1), ("e", 0)]
    assert (facts.num_rows, facts.num_identical, facts.num_empty) == (5, 1, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"before": "b"}, "maps 'before' alone; a pair needs both before and after"),
        ({"after": "b"}, "maps 'after' alone"),
        (PAIRS | {"code": "c"}, r"maps \['code'\] beside before and after"),
        ({"before": "b", "after": "b"}, "before and after are both 'b'"),
    ],
)
def test_half_a_pair_is_refused(tmp_path, fields, message):
    path = write(tmp_path / "train.jsonl", [{"b": "x"}])
    with pytest.raises(DataError, match=message):
        read(path, fields=fields)


def test_a_pair_without_a_side_names_it(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"func_before": "x"}])
    refused(path, ["no field 'func_after'", "data.fields={after: NAME}"], fields=PAIRS)


def test_39_a_pair_has_one_id(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"func_before": "x", "func_after": "y", "id": 1}] * 2)
    refused(path, ["train.jsonl:2: has the id of train.jsonl:1"], fields=PAIRS)


def test_the_digest_of_a_folder_knows_names_and_contents_and_not_their_order(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, names in ((one, ("a", "b/c")), (other, ("b/c", "a"))):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
    assert source_digest(one) == source_digest(other)
    assert source_digest(one / "a") == file_digest(one / "a")
    (other / "a").rename(other / "d")
    renamed = source_digest(other)
    (other / "d").write_text("e")
    assert len({source_digest(one), renamed, source_digest(other)}) == 3


def test_a_stated_format_chooses_among_several_files(tmp_path):
    for name in ("train.jsonl", "train.csv"):
        (tmp_path / name).write_bytes(PAIR)
    with pytest.raises(DataError, match=r"found 2: \['train\.csv', 'train\.jsonl'\]"):
        locate(DataConfig(path=str(tmp_path)), "train")
    config = DataConfig(path=str(tmp_path), format="jsonl")
    assert locate(config, "train")[0].name == "train.jsonl"


def test_the_facts_are_plain_values(tmp_path):
    facts, path = ReadFacts(), tmp_path / "train.jsonl"
    path.write_bytes(PAIR + row(x=1, y=2) + b"oops\n" + row(code=""))
    read(path, facts=facts, max_bad_rows=1)
    found = json.loads(json.dumps(facts.to_json()))
    assert found["ignored_fields"] == ["x", "y"]
    assert (found["num_rows"], found["num_bad"], found["num_empty_dropped"]) == (5, 1, 1)
    assert found["bad_examples"] == [
        "train.jsonl:4: not a JSON object: Expecting value at column 1; write one object per line"
    ]


def test_reading_jsonl_loads_neither_arrow_nor_datasets(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"code": "a", "target": 1}])
    program = (
        "import sys; from pathlib import Path; from data.config import DataConfig;"
        "from data.readers import read_records;"
        f"print(len(list(read_records(Path({str(path)!r}), 'train', DataConfig()))));"
        "print(sorted({'pyarrow', 'datasets', 'pandas', 'torch'} & sys.modules.keys()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert out.stdout.split("\n")[:2] == ["1", "[]"]


@pytest.mark.skipif(not ARCHIVE.exists(), reason="needs the real archive beside the repository")
def test_the_real_archive_has_its_documented_rows_and_unique_ids():
    config = DataConfig(path=str(ARCHIVE))
    counts = {
        split: len(list(read_records(locate(config, split)[0], split, config)))
        for split in ("train", "valid", "test")
    }
    assert counts == {"train": 810, "valid": 272, "test": 252}


def test_a_row_of_many_layouts_is_read(tmp_path):
    rows = [{"code": str(n), "target": 0, f"column{n}": n, "cwe": f"CWE-{n}"} for n in range(3000)]
    facts, path = ReadFacts(), tmp_path / "train.jsonl"
    path.write_bytes(jsonl_bytes(rows))
    assert [s.cwe for s in read(path, facts=facts)] == [f"CWE-{n}" for n in range(3000)]
    assert 1000 <= len(facts.ignored_fields) <= 1001
