"""Bad rows of jsonl and json: cases 1, 2 and 17 to 39 of the list, the number first in each id."""

import gzip
import json

import pytest
from dataset_files import GOOD, PAIR, ROW, read, refused, row, tar

from data.config import DataConfig
from data.errors import DataError
from data.readers import ReadFacts, formats, read_records
from data.records import CodeSample

ADVICE = "write one object per line"

REFUSED = {
    "01-empty-file": (b"", "train.jsonl: no rows", "one JSON object per line"),
    "01-empty-gzip": (gzip.compress(b""), "train.jsonl: no rows", "one JSON object per line"),
    "01-empty-member": (tar(("train.jsonl", b"")), "train.jsonl::train.jsonl: no rows"),
    "02-only-blank-lines": (b"\n  \n\r\n", "train.jsonl: no rows", "one JSON object per line"),
    "02-only-a-byte-order-mark": (b"\xef\xbb\xbf", "train.jsonl: no rows"),
    "17-not-utf-8": (
        PAIR + b'{"code": "caf\xe9", "target": 0}\n',
        "train.jsonl:3: not UTF-8 at byte 13",
        r"(b'\xe9",
        "convert the file to UTF-8, or set data.encoding_errors=replace",
    ),
    "17-utf-16": (
        PAIR.decode().encode("utf-16"),
        "train.jsonl: this is text in UTF-16",
        "as UTF-8",
    ),
    "17-a-surrogate-in-bytes": (
        b'{"code": "\xed\xa0\x80", "target": 0}\n',
        "train.jsonl:1: not UTF-8",
    ),
    "19-raw-control-character": (
        PAIR + b'{"code": "a\tb", "target": 0}\n',
        "train.jsonl:3: not a JSON object: Invalid control character",
        "at column 12",
        ADVICE,
    ),
    "20-lone-surrogate-in-code": (
        PAIR + b'{"code": "ab\\ud800", "target": 0}\n',
        "train.jsonl:3: 'code' holds '\\ud800' at character 2",
        "write the whole character or remove it",
    ),
    "20-lone-surrogate-in-a-commit": (
        b'{"code": "a", "target": 0, "commit": "\\udc80"}\n',
        "train.jsonl:1: 'commit' holds '\\udc80' at character 0",
        "write the whole character or remove it",
    ),
    "20-lone-surrogate-in-an-id": (
        b'{"code": "a", "target": 0, "id": "\\udc80"}\n',
        "train.jsonl:1: 'id' holds '\\udc80' at character 0",
    ),
    "24-truncated-last-row": (
        PAIR + ROW[:12],
        "train.jsonl:3: not a JSON object: Unterminated string starting at at column 10",
        ADVICE,
    ),
    "25-bad-line-at-row-1,000,000": (
        b"\n" * 999_999 + b"oops\n" + PAIR,
        "train.jsonl:1000000: not a JSON object: Expecting value at column 1",
    ),
    "25-two-objects-on-a-line": (ROW + ROW, "train.jsonl:1: not a JSON object: Extra data"),
    "26-duplicate-key": (
        PAIR + b'{"code": "a", "target": 0, "target": 1}\n',
        "train.jsonl:3: key 'target' occurs twice in one row",
        "keep one",
    ),
    "26-duplicate-key-within-a-value": (
        b'{"code": "a", "target": 0, "x": [{"y": 0, "y": 1}]}\n',
        "train.jsonl:1: key 'y' occurs twice",
    ),
    "27-json-array-on-one-line": (
        b"[" + ROW + b"]\n",
        "train.jsonl:1: this is a JSON array: write one object per line, or set data.format=json",
    ),
    "27-json-array-over-lines": (
        b"\xef\xbb\xbf [\n" + ROW + b"\n]\n",
        "train.jsonl:1: this is a JSON array: write one object per line, or set data.format=json",
    ),
    "27-json-array-further-down": (
        PAIR + b"[" + ROW + b"]\n",
        "train.jsonl:3: a row must be a JSON object, found [{'code': 'int a;'",
        "this is a JSON array",
    ),
    "27-a-row-that-is-text": (
        b'"int a;"\n',
        "train.jsonl:1: a row must be a JSON object, found 'int a;' (str)",
        ADVICE,
    ),
    "30-label-missing": (
        PAIR + b'{"code": "a", "label": 0}\n',
        "train.jsonl:3: no field 'target'",
        "there are ['code', 'label']",
        "data.fields={target: NAME}",
    ),
    "30-empty-object": (b"{}\n", "train.jsonl:1: no field 'code'", "there are []"),
    "30-label-null": (row(target=None), "train.jsonl:1: 'target'", "found None (NoneType)"),
    "31-label-2": (PAIR + row(target=2), "train.jsonl:3: 'target'", "found 2 (int)"),
    "31-label--1": (PAIR + row(target=-1), "train.jsonl:3: 'target'", "found -1 (int)"),
    "32-label-as-text": (
        row(target="1"),
        "train.jsonl:1: 'target' must be the integer 0 or 1 (else map it with data.labels",
        "found '1' (str)",
    ),
    "33-label-true": (row(target=True), "train.jsonl:1: 'target'", "found True (bool)"),
    "33-label-1.5": (row(target=1.5), "train.jsonl:1: 'target'", "found 1.5 (float)"),
    "34-label-nan": (row(target=float("nan")), "train.jsonl:1: 'target'", "found nan (float)"),
    "35-label-1e20": (row(target=10**20), "'target'", f"found {10**20} (int)", "integer 0 or 1"),
    "35-label-of-five-thousand-digits": (
        b'{"code": "a", "target": ' + b"1" * 5000 + b"}\n",
        "train.jsonl:1: not a JSON object: Exceeds the limit",
    ),
    "35-id-1e20-as-float": (
        row(idx=1e20),
        "train.jsonl:1: 'idx' must be text or an integer, found 1e+20 (float)",
    ),
    "36-code-is-a-list": (
        row(code=["a"]),
        "train.jsonl:1: 'code' must be text, found ['a'] (list)",
    ),
    "36-code-is-null": (row(code=None), "train.jsonl:1: 'code' must be text", "None (NoneType)"),
    "36-code-is-long-and-no-text": (row(code=[0] * 999), "found [0, 0, ", "... (list)"),
    "36-cwe-is-true": (row(cwe=True), "train.jsonl:1: 'cwe' must be text or an integer", "(bool)"),
    "36-brackets-without-end": (
        b'{"code": ' + b"[" * 100_000,
        "train.jsonl:1: not a JSON object",
        "recursion",
    ),
    "38-column-missing": (
        b'{"func": "a", "target": 0}\n',
        "train.jsonl:1: no field 'code'",
        "there are ['func', 'target']",
        "data.fields={code: NAME}",
    ),
    "38-column-missing-among-hundreds": (
        json.dumps({f"column{n}" * 20: 0 for n in range(500)}).encode(),
        "train.jsonl:1: no field 'code'",
        "and 498 more",
    ),
    "39-ids-twice": (
        row(id="a") + row(id="b") + row(id="a"),
        "train.jsonl:3: has the id of train.jsonl:1",
        "data.fields={id: NAME}",
    ),
    "39-idx-twice": (
        row(idx=7) + b"\n" + row(idx="7"),
        "train.jsonl:3: has the id of train.jsonl:1",
    ),
}


@pytest.mark.parametrize(
    ("content", "parts"),
    [pytest.param(case[0], case[1:], id=name) for name, case in REFUSED.items()],
)
def test_a_bad_file_is_refused_with_its_place_the_finding_and_the_remedy(tmp_path, content, parts):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    refused(path, parts)


ACCEPTED = {
    "02-blank-lines-between": b"\n" + PAIR.replace(b"\n", b"\n \n"),
    "21-byte-order-mark": b"\xef\xbb\xbf" + PAIR,
    "22-crlf": PAIR.replace(b"\n", b"\r\n"),
    "22-cr": PAIR.replace(b"\n", b"\r"),
    "23-no-final-newline": PAIR.rstrip(b"\n"),
    "24-indented": PAIR.replace(b"{", b"\t {"),
}


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "content", [pytest.param(content, id=name) for name, content in ACCEPTED.items()]
)
def test_a_file_of_another_shape_holds_the_same_two_functions(
    tmp_path, monkeypatch, content, block
):
    monkeypatch.setattr(formats, "BLOCK_BYTES", block)  # line ends fall across blocks
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    facts = ReadFacts()
    found = [(sample.code, sample.target) for sample in read(path, facts=facts)]
    assert found == [("int a;", 0), ("int b;", 1)]
    assert facts == ReadFacts(num_rows=2)


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"], ids=["22-lf", "22-crlf", "22-cr"])
def test_lines_are_counted_as_an_editor_counts_them_and_code_keeps_its_own_endings(
    tmp_path, monkeypatch, ending, block
):
    monkeypatch.setattr(formats, "BLOCK_BYTES", block)
    path = tmp_path / "train.jsonl"
    code = "a;\r\nb;\rc;\n"
    path.write_bytes(ending.join([ROW, b"", json.dumps(GOOD | {"code": code}).encode(), b"oops"]))
    samples = read_records(path, "train", DataConfig())
    assert [next(samples).origin, next(samples)] == [
        "train.jsonl:1",
        CodeSample(id="train.jsonl:3", code=code, target=0, origin="train.jsonl:3"),
    ]
    with pytest.raises(DataError, match=r"train\.jsonl:4: not a JSON object"):
        next(samples)


def test_17_replacing_is_counted(tmp_path):
    facts, path = ReadFacts(), tmp_path / "train.jsonl"
    path.write_bytes(PAIR + b'{"code": "caf\xe9", "target": 0}\n' + row(code="\ufffd"))
    samples = read(path, facts=facts, encoding_errors="replace")
    assert [sample.code for sample in samples[2:]] == ["caf\ufffd", "\ufffd"]
    assert facts.num_replaced == 1


def test_18_a_nul_in_code_is_kept_and_counted(tmp_path):
    facts, path = ReadFacts(), tmp_path / "train.jsonl"
    path.write_bytes(row(code="a\0b\0") + PAIR)
    assert read(path, facts=facts)[0].code == "a\0b\0"
    assert facts.num_nul == 1


def test_20_a_character_written_as_a_whole_surrogate_pair_is_read(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"code": "\\ud83d\\ude00", "target": 0}\n')
    assert read(path)[0].code == "\N{GRINNING FACE}"


def test_25_bad_rows_are_passed_over_up_to_the_number_stated_and_counted(tmp_path):
    facts, path = ReadFacts(), tmp_path / "train.jsonl"
    bad = [b"oops\n", row(target=2), b'{"x": 0}\n', b"\xff\n"]
    path.write_bytes(ROW + b"\n" + b"".join(bad) + PAIR)
    assert [sample.origin for sample in read(path, facts=facts, max_bad_rows=4)] == [
        "train.jsonl:1",
        "train.jsonl:6",
        "train.jsonl:7",
    ]
    assert (facts.num_rows, facts.num_bad) == (7, 4)
    assert [example.split(": ")[0] for example in facts.bad_examples] == [
        f"train.jsonl:{line}" for line in (2, 3, 4, 5)
    ]
    refused(path, ["train.jsonl:5: not UTF-8", "3 bad rows before it"], max_bad_rows=3)


def test_28_a_function_of_50_mb_is_read_and_a_line_above_the_cap_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "train.jsonl"
    path.write_bytes(PAIR + row(code="x" * 50_000_000))
    assert [len(sample.code) for sample in read(path)] == [6, 6, 50_000_000]
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 10_000_000)
    refused(path, ["train.jsonl:3: a line above 10000000 bytes", "no function"])


@pytest.mark.parametrize("blank", ["", " \n\t"], ids=["29-empty", "29-blank"])
def test_a_function_without_code_is_dropped_and_counted(tmp_path, blank):
    facts, path = ReadFacts(), tmp_path / "train.jsonl"
    path.write_bytes(row(code=blank) + PAIR + row(code=blank))
    assert [sample.origin for sample in read(path, facts=facts)] == [
        "train.jsonl:2",
        "train.jsonl:3",
    ]
    assert (facts.num_rows, facts.num_empty) == (4, 2)


def test_37_extra_columns_are_ignored_and_listed_once(tmp_path):
    facts, path = ReadFacts(), tmp_path / "train.jsonl"
    path.write_bytes(row(x=1, cwe="CWE-1") + row(x=[2], y={}) + row(idx=7))
    samples = read(path, facts=facts)
    assert facts.ignored_fields == {"x", "y"}
    assert [sample.cwe for sample in samples] == ["CWE-1", "", ""]
    assert [sample.id for sample in samples] == ["train.jsonl:1", "train.jsonl:2", "7"]


def test_39_who_maps_the_id_to_another_column_has_no_duplicates(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(row(idx=1, key="a") + row(idx=1, key="b"))
    refused(path, ["train.jsonl:2: has the id of train.jsonl:1"])
    assert [sample.id for sample in read(path, fields={"id": "key"})] == ["a", "b"]
    places = ["train.jsonl:1", "train.jsonl:2"]
    assert [sample.id for sample in read(path, fields={"id": "none"})] == places
