"""Bad json arrays, CSV, parquet, saved datasets and source folders, by number in the list.

26 and 27 to 39 are those of rows, met here by other formats; 46 to 50 are CSV's, 51 parquet's.
"""

import json
import os
from pathlib import Path

import pytest
from dataset_files import PAIR, ROW, csv_bytes, json_bytes, parquet_bytes, read, refused

from data.errors import DataError
from data.readers import ReadFacts, formats

GOOD = {"code": "int a;", "target": 0}
ROWS = [GOOD, {"code": "int b;", "target": 1}]
ARRAY = json_bytes(ROWS)
CSV = b"code,target\nint a;,0\nint b;,1\n"

REFUSED_JSON = {
    "01-empty-array": (b"[ ]", "train.json: no rows"),
    "17-not-utf-8": (
        b'[{"code": "a",\n "target": 0},\n {"code": "caf\xe9"}]',
        "train.json: line 3: not UTF-8 (b'\\xe9",
        "convert the file to UTF-8",
    ),
    "17-cut-within-a-character": (b'[{"code": "caf\xc3', "train.json: line 1: not UTF-8"),
    "20-lone-surrogate": (
        b'[{"code": "a\\ud800", "target": 1}]',
        "train.json:element 1: 'code' holds '\\ud800'",
    ),
    "24-no-closing-bracket": (
        ARRAY.rstrip(b"]\n"),
        "train.json:element 2: line 9: ',' or ']' must follow an element",
        "damaged or cut off",
    ),
    "24-cut-in-an-element": (ARRAY[:-20], "train.json:element 2: line 7: ", "cut off"),
    "24-text-after-the-array": (ARRAY + b"x", "text follows the array, found 'x'"),
    "25-bad-element": (
        b"[" + ROW + b",\n" + ROW + b",\n{'code': 1}]",
        "train.json:element 3: line 3: Expecting property name",
    ),
    "25-elements-without-a-comma": (b"[" + ROW + b"\n" + ROW + b"]", "',' or ']' must follow"),
    "25-a-comma-too-many": (b"[" + ROW + b",]", "train.json:element 2: line 1: Expecting value"),
    "26-duplicate-key": (
        b'[{"code": "a",\n"code": "b"}]',
        "train.json:element 1: line 1: key 'code' occurs twice",
    ),
    "27-an-element-that-is-no-object": (
        b"[" + ROW + b", [1]]",
        "train.json:element 2: an element must be a JSON object, found [1] (list)",
    ),
    "31-label-2": (json_bytes([GOOD, GOOD | {"target": 2}]), "train.json:element 2: 'target'"),
    "36-brackets-without-end": (b"[" * 100_000, "train.json:element 1: line 1: ", "recursion"),
    "38-column-missing": (b'[{"func": "a"}]', "train.json:element 1: no field 'code'"),
}
REFUSED_CSV = {
    "01-only-a-header": (b"code,target\n", "train.csv: no rows"),
    "17-not-utf-8": (CSV + b"caf\xe9,0\n", "train.csv:4: not UTF-8 at byte 3"),
    "17-header": (b"code,target,\xe9\na,0,b\n", "train.csv:1: the header is not UTF-8"),
    "29-label-empty": (b"code,target\na,\n", "train.csv:2: 'target' must be", "found '' (str)"),
    "31-label-2": (b"code,target\na,2\n", "train.csv:2: 'target' must be", "found '2' (str)"),
    "32-label-01": (b"code,target\na,01\n", "train.csv:2: 'target' must be", "data.labels"),
    "33-label-1.5": (b"code,target\na,1.5\n", "train.csv:2: 'target'", "found '1.5' (str)"),
    "34-label-nan": (b"code,target\na,nan\n", "train.csv:2: 'target'", "found 'nan' (str)"),
    "39-ids-twice": (b"id,code,target\n7,a,0\n7,b,1\n", "train.csv:3: has the id of train.csv:2"),
    "46-unbalanced-quote": (
        CSV + b'"int c;,0\nint d;,1\n',
        "train.csv:4: a quote opens in this row and never closes",
        "double every quote",
    ),
    "46-unbalanced-quote-closed-by-the-next": (
        CSV + b'"int c;,0\n"int d;",1\n',
        "train.csv:4: not CSV: ',' expected after '\"'",
    ),
    "47-short-row": (CSV + b"int c;\n", "train.csv:4: 1 fields, the header has 2"),
    "47-long-row": (CSV + b"f(a, b);,0\n", "train.csv:4: 3 fields, the header has 2", "quote"),
    "50-wrong-delimiter": (
        b"code;target\nint a;0\n",
        "train.csv:1: fields are separated by ';'",
        "CSV needs commas",
    ),
    "50-tabs": (b"code\ttarget\nint a;\t0\n", r"train.csv:1: fields are separated by '\t'"),
    "50-no-header": (
        b"int a;,0\nint b;,1\n",
        "train.csv:1: the first line must name the columns: no field 'code'; there are ['0',",
        "data.fields={code: NAME}",
    ),
    "50-duplicate-header": (
        b"code,target,code\na,0,b\n",
        "train.csv:1: the header names ['code'] twice",
    ),
    "50-unbalanced-header": (b'"code,target\n', "train.csv:1: the header is not CSV"),
}
REFUSED_PARQUET = {
    "51-truncated": (parquet_bytes(ROWS)[:-20], "train.parquet: the data is damaged"),
    "51-cut-in-half": (parquet_bytes(ROWS)[:200], "damaged or cut off", "fetch the file again"),
    "51-column-missing": (
        parquet_bytes([{"func": "a", "target": 0}]),
        "train.parquet: no field 'code'; there are ['func', 'target']",
    ),
    "51-code-is-a-list": (
        parquet_bytes([GOOD | {"code": ["a"]}]),
        "column 'code' is list<",
        "it must be a column of text",
    ),
    "51-label-is-text": (
        parquet_bytes([GOOD | {"target": "1"}]),
        "column 'target' is string; it must be a column of the numbers 0 and 1, or text",
    ),
    "51-label-is-float": (
        parquet_bytes([GOOD | {"target": 0.5}]),
        "train.parquet:row 1: 'target' must be the integer 0 or 1",
        "found 0.5 (float)",
    ),
    "51-label-is-bool": (parquet_bytes([GOOD | {"target": True}]), "column 'target' is bool"),
    "51-label-null": (
        parquet_bytes([GOOD, GOOD | {"target": None}]),
        "train.parquet:row 2: 'target' must be the integer 0 or 1",
        "None (NoneType)",
    ),
    "51-label-2": (parquet_bytes([GOOD | {"target": 2}]), "row 1: 'target'", "found 2 (int)"),
    "51-code-null": (
        parquet_bytes([GOOD, GOOD | {"code": None}]),
        "train.parquet:row 2: 'code' must be text, found None",
    ),
}
CASES = [
    pytest.param(f"train.{kind}", case[0], case[1:], id=f"{name}-{kind}")
    for kind, cases in (
        ("json", REFUSED_JSON),
        ("csv", REFUSED_CSV),
        ("parquet", REFUSED_PARQUET),
    )
    for name, case in cases.items()
]


@pytest.mark.parametrize(("name", "content", "parts"), CASES)
def test_a_bad_table_is_refused_with_its_place_the_finding_and_the_remedy(
    tmp_path, name, content, parts
):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, parts)


def test_24_an_array_above_its_bound_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "train.json"
    path.write_bytes(b"[" + b",\n".join([ROW] * 100) + b"]")
    assert len(read(path)) == 100
    monkeypatch.setattr(formats, "MAX_ARRAY_BYTES", path.stat().st_size - 1)
    refused(path, ["train.json: a JSON array above", "write one object per line"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({b"int a;": b"NA", b"int b;": b"null"}, ["NA", "null"], id="48-NA-null"),
        pytest.param({b"int a;": b"007", b"int b;": b"1e5"}, ["007", "1e5"], id="49-007"),
        pytest.param({b"int a;": b'"a,""b""\r\n"'}, ['a,"b"\r\n', "int b;"], id="22-crlf-inside"),
        pytest.param({b"\n": b"\r\n"}, ["int a;", "int b;"], id="22-crlf"),
        pytest.param({b"\n": b"\r"}, ["int a;", "int b;"], id="22-cr"),
        pytest.param({b"code,": b"\xef\xbb\xbfcode,"}, ["int a;", "int b;"], id="21-bom"),
        pytest.param({b",1\n": b",1"}, ["int a;", "int b;"], id="23-no-final-newline"),
        pytest.param({b"\n": b"\n\n"}, ["int a;", "int b;"], id="02-blank-lines"),
        pytest.param({b"int a;": b"a\0b"}, ["a\0b", "int b;"], id="18-nul"),
        pytest.param({b"int a;": b"x" * 200_000}, ["x" * 200_000, "int b;"], id="28-long-field"),
    ],
)
def test_csv_text_stays_text(tmp_path, changes, expected):
    content = CSV
    for old, new in changes.items():
        assert old in content
        content = content.replace(old, new)
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    assert [(s.code, s.target) for s in read(path)] == list(zip(expected, (0, 1), strict=True))


def test_25_bad_rows_of_csv_are_passed_over_by_their_first_line(tmp_path):
    path, facts = tmp_path / "train.csv", ReadFacts()
    path.write_bytes(b'code,target\n"a\nb",0\nshort\ncaf\xe9,0\n"x"y,1\n,7\nc,1\n')
    found = read(path, facts=facts, max_bad_rows=4)
    assert [(s.code, s.origin) for s in found] == [("a\nb", "train.csv:2"), ("c", "train.csv:8")]
    assert (facts.num_rows, facts.num_bad) == (6, 4)
    assert [e.split(": ")[0][-1] for e in facts.bad_examples] == ["4", "5", "6", "7"]


def test_46_a_quote_that_never_closes_is_no_single_bad_row(tmp_path, monkeypatch):
    path = tmp_path / "train.csv"
    path.write_bytes(CSV + b'"int c;,0\n' + b"int d;,1\n" * 100)
    refused(path, ["train.csv:4: a quote opens"], max_bad_rows=50)
    monkeypatch.setattr(formats, "MAX_FIELD_CHARACTERS", 500)  # nor one that takes all memory
    refused(path, ["train.csv:4: a quote opens", "field limit (500)"], max_bad_rows=50)


def test_17_a_parquet_text_that_is_not_utf_8_is_named_or_replaced(tmp_path):
    import pyarrow
    from pyarrow import parquet

    raw = pyarrow.array([b"int a;", b"caf\xe9"], pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(2, *raw.buffers()[1:])
    path, facts = tmp_path / "train.parquet", ReadFacts()
    parquet.write_table(pyarrow.table({"code": text, "target": [0, 1]}), path)
    refused(path, ["train.parquet:row 2: 'code' must be text, found b'caf\\xe9' (bytes)"])
    found = read(path, facts=facts, encoding_errors="replace")
    assert ([s.code for s in found], facts.num_replaced) == (["int a;", "caf\ufffd"], 1)


def test_13_a_parquet_bomb_is_refused(tmp_path):
    path = tmp_path / "train.parquet"
    rows = [{"code": "x" * 1_000_000, "target": 0}] * 100
    path.write_bytes(parquet_bytes(rows))
    assert path.stat().st_size < 100_000
    refused(path, ["taken for a decompression bomb"])


def saved(folder: Path, rows: list[dict[str, object]], **options: object) -> Path:
    import datasets

    dataset = datasets.Dataset.from_list(rows, **options)
    dataset.save_to_disk(str(folder))
    return folder


def test_51_a_saved_dataset_that_is_damaged_or_names_foreign_files_is_refused(tmp_path):
    folder = saved(tmp_path / "train", ROWS)
    state = json.loads((folder / "state.json").read_text())
    file = folder / state["_data_files"][0]["filename"]
    file.write_bytes(file.read_bytes()[:100])
    refused(folder, ["the data is damaged"])
    state["_data_files"][0]["filename"] = "../secret.arrow"
    (folder / "state.json").write_text(json.dumps(state))
    refused(folder, ["which is outside the dataset"])


def test_51_class_names_of_a_saved_dataset_have_to_be_mapped(tmp_path):
    import datasets

    label = datasets.ClassLabel(names=["vulnerable", "safe"])  # 0 is vulnerable
    kinds = datasets.Features({"code": datasets.Value("string"), "target": label})
    folder = saved(tmp_path / "train", ROWS, features=kinds)
    refused(folder, ["column 'target' stores the classes ['vulnerable', 'safe']", "data.labels="])
    found = read(folder, labels={"vulnerable": 1, "safe": 0})
    assert [s.target for s in found] == [1, 0]


def test_a_link_that_leaves_the_folder_a_fifo_and_an_unknown_label_are_refused(tmp_path):
    folder = tmp_path / "train"
    (folder / "safe").mkdir(parents=True)
    (folder / "safe" / "a.c").write_bytes(PAIR)
    os.symlink("/etc/passwd", folder / "safe" / "b.c")
    refused(folder, ["b.c: a link that leaves"], format="folder")
    (folder / "safe" / "b.c").unlink()
    os.symlink(folder, folder / "safe" / "loop")
    refused(folder, ["loop: a link to", "which is not a file"], format="folder")
    (folder / "safe" / "loop").unlink()
    os.mkfifo(folder / "safe" / "pipe")
    refused(folder, ["train/safe/pipe: a device, fifo or socket"], format="folder")
    (folder / "safe" / "pipe").unlink()
    (folder / "odd").mkdir()
    (folder / "odd" / "a.c").write_bytes(b"x")
    refused(folder, ["train/odd/a.c: its folder 'odd' is not a known label"], format="folder")


def test_17_a_source_file_that_is_not_utf_8_is_a_bad_row(tmp_path):
    for name, content in (("a.c", b"caf\xe9"), ("b.c", b"\xef\xbb\xbfint b;"), ("c.c", b" ")):
        (tmp_path / "train" / "safe").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "safe" / name).write_bytes(content)
    folder, facts = tmp_path / "train", ReadFacts()
    refused(folder, ["train/safe/a.c: not UTF-8 at byte 3"])
    found = read(folder, facts=facts, max_bad_rows=1)
    assert [(s.code, s.target, s.id) for s in found] == [("int b;", 0, "train/safe/b.c")]
    assert (facts.num_rows, facts.num_bad, facts.num_empty) == (3, 1, 1)


def test_the_good_tables_are_good(tmp_path):
    for name, content in (
        ("train.json", ARRAY),
        ("train.csv", CSV),
        ("train.csv", csv_bytes(ROWS)),
        ("train.parquet", parquet_bytes(ROWS)),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert [(s.code, s.target) for s in read(path)] == [("int a;", 0), ("int b;", 1)]
    with pytest.raises(DataError):
        read(path, format="csv")
