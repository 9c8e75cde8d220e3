"""Bad datasets, by the project's list of bad inputs: the number stands first in each test's id.

A refusal is a DataError (exit code 3) that names the file, the line, what was found and the remedy.
"""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from data.config import DataConfig
from data.errors import DataError
from data.readers import ReadFacts, read_records, split_path
from data.records import CodeSample

GOOD = {"code": "int a;", "target": 0}
ROW = json.dumps(GOOD).encode()
PAIR = ROW + b"\n" + json.dumps({"code": "int b;", "target": 1}).encode() + b"\n"


def read(
    path: Path, split: str = "train", facts: ReadFacts | None = None, **config: object
) -> list[CodeSample]:
    return list(read_records(path, split, DataConfig.model_validate(config), facts))


def row(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode() + b"\n"


def tar(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.mode, info.size = 0o4755, len(member[1])  # setuid: never to be written
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


LONG_GZIP = gzip.compress(b"".join(row(code=f"int x{n * n};") for n in range(10_000)))
CUT_GZIP = LONG_GZIP[: len(LONG_GZIP) // 2]  # some rows are whole, the rest is gone
BIG_TAR = tar(("train.jsonl", ROW + b"\n" + row(code="x" * 4000)))

REFUSED = {
    "01-empty-file": (b"", "train.jsonl: no rows", "one JSON object per line"),
    "01-empty-gzip": (gzip.compress(b""), "train.jsonl: no rows", "one JSON object per line"),
    "02-only-blank-lines": (b"\n  \n\r\n", "train.jsonl: no rows", "one JSON object per line"),
    "03-truncated-gzip": (CUT_GZIP, "train.jsonl: compressed", "after", "rows", "fetch the file"),
    "04-gzip-with-trailing-garbage": (
        gzip.compress(PAIR) + b"garbage",
        "train.jsonl: compressed data is damaged",
        "fetch the file again",
    ),
    "05-tar-cut-at-a-block-boundary": (
        BIG_TAR[:1024],
        "train.jsonl: ",
        "damaged",
        "fetch it again",
    ),
    "05-tar-cut-in-its-header": (BIG_TAR[:300], "train.jsonl: ", "damaged", "fetch it again"),
    "05-gzipped-tar-cut": (gzip.compress(BIG_TAR)[:-20], "train.jsonl", "damaged", "again"),
    "08-symlink": (
        tar(link("train.jsonl", tarfile.SYMTYPE, "other")),
        "no member train.jsonl",
        "['train.jsonl']",
    ),
    "08-hardlink": (tar(link("train.jsonl", tarfile.LNKTYPE, "other")), "no member train.jsonl"),
    "09-fifo": (tar(link("train.jsonl", tarfile.FIFOTYPE)), "no member train.jsonl"),
    "15-no-recognised-member": (
        tar(("README", b"x"), ("a/training.jsonl", PAIR)),
        "no member train.jsonl",
        "['README', 'a/training.jsonl']",
    ),
    "17-not-utf-8": (
        PAIR + b'{"code": "caf\xe9", "target": 0}\n',
        "train.jsonl:3: not UTF-8 at byte 13",
        r"(b'\xe9",
        "convert the file to UTF-8",
    ),
    "17-utf-16": (PAIR.decode().encode("utf-16"), "train.jsonl:1: not UTF-8 at byte 0", "convert"),
    "19-raw-control-character": (
        PAIR + b'{"code": "a\tb", "target": 0}\n',
        "train.jsonl:3: not a JSON object: Invalid control character",
        "at column 12",
        "write one per line",
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
    "24-truncated-last-row": (
        PAIR + ROW[:12],
        "train.jsonl:3: not a JSON object: Unterminated string starting at at column 10",
        "write one per line",
    ),
    "25-bad-line-far-into-the-file": (
        ROW.join([b"", *[b"\n"] * 20_000]) + b"oops\n" + PAIR,
        "train.jsonl:20001: not a JSON object: Expecting value at column 1",
    ),
    "26-duplicate-key": (
        PAIR + b'{"code": "a", "target": 0, "target": 1}\n',
        "train.jsonl:3: key 'target' stands twice in one row",
        "keep one",
    ),
    "27-json-array-on-one-line": (
        b"[" + ROW + b"]\n",
        "train.jsonl:1: a row must be a JSON object, found [{'code': 'int a;'",
        "this is a JSON array: write one object per line",
    ),
    "27-json-array-over-lines": (
        b" [\n" + ROW + b"\n]\n",
        "train.jsonl:1: not a JSON object",
        "this is a JSON array: write one object per line",
    ),
    "27-a-row-that-is-text": (
        b'"int a;"\n',
        "train.jsonl:1: a row must be a JSON object, found 'int a;' (str)",
        "write one per line",
    ),
    "30-label-missing": (
        PAIR + b'{"code": "a", "label": 0}\n',
        "train.jsonl:3: no field 'target'",
        "the row has ['code', 'label']",
        "data.fields={target: NAME}",
    ),
    "30-label-null": (row(target=None), "train.jsonl:1: 'target'", "found None (NoneType)"),
    "31-label-2": (PAIR + row(target=2), "train.jsonl:3: 'target'", "found 2 (int)"),
    "32-label-as-text": (row(target="1"), "train.jsonl:1: 'target'", "found '1' (str)"),
    "33-label-true": (row(target=True), "train.jsonl:1: 'target'", "found True (bool)"),
    "33-label-1.0": (row(target=1.0), "train.jsonl:1: 'target'", "found 1.0 (float)"),
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
    "36-brackets-without-end": (b"[" * 100_000, "train.jsonl:1: not a JSON object", "recursion"),
    "38-column-missing": (
        b'{"func": "a", "target": 0}\n',
        "train.jsonl:1: no field 'code'",
        "the row has ['func', 'target']",
        "data.fields={code: NAME}",
    ),
}


@pytest.mark.parametrize(
    ("content", "parts"),
    [pytest.param(case[0], case[1:], id=name) for name, case in REFUSED.items()],
)
def test_a_bad_file_is_refused_with_its_place_the_finding_and_the_remedy(tmp_path, content, parts):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "train.jsonl" in message
    assert [part for part in parts if part not in message] == [], message
    assert len(message) < 400  # quotes the value, not the file
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(CUT_GZIP, id="03-truncated"),
        pytest.param(LONG_GZIP + b"garbage", id="04-garbage"),
    ],
)
def test_a_damaged_gzip_says_how_many_rows_came_before(tmp_path, content):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(content)
    places = []
    with pytest.raises(DataError) as caught:
        places += (sample.origin for sample in read_records(path, "train", DataConfig()))
    num_rows = len(places)
    assert num_rows > 0
    assert f"train.jsonl.gz: compressed data is damaged or cut off after {num_rows} rows" in str(
        caught.value
    )


ACCEPTED = {
    "16-gzip-named-jsonl": gzip.compress(PAIR),
    "16-tar-named-jsonl": tar(("folder/train.jsonl", PAIR)),
    "16-gzipped-tar-named-jsonl": gzip.compress(tar(("train.jsonl", PAIR))),
    "21-byte-order-mark": b"\xef\xbb\xbf" + PAIR,
    "22-crlf": PAIR.replace(b"\n", b"\r\n"),
    "22-cr": PAIR.replace(b"\n", b"\r"),
    "23-no-final-newline": PAIR.rstrip(b"\n"),
    "02-blank-lines-between": b"\n" + PAIR.replace(b"\n", b"\n \n"),
}


@pytest.mark.parametrize(
    "content", [pytest.param(content, id=name) for name, content in ACCEPTED.items()]
)
def test_a_file_of_another_shape_holds_the_same_two_functions(tmp_path, content):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    facts = ReadFacts()
    found = [(sample.code, sample.target) for sample in read(path, facts=facts)]
    assert found == [("int a;", 0), ("int b;", 1)]
    assert facts == ReadFacts(num_rows=2)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"], ids=["22-lf", "22-crlf", "22-cr"])
def test_lines_are_counted_as_an_editor_counts_them_and_code_keeps_its_own_endings(
    tmp_path, ending
):
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


@pytest.mark.parametrize("split", ["train", "valid"], ids=["10-train", "10-valid"])
def test_a_member_is_read_in_place_whatever_its_mode_and_nothing_is_written(tmp_path, split):
    path = tmp_path / "data.tar"
    path.write_bytes(tar(("valid.jsonl", PAIR), ("train.jsonl", PAIR)))
    assert [sample.origin for sample in read(path, split)] == [
        f"data.tar::{split}.jsonl:{line}" for line in (1, 2)
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_18_a_nul_in_code_is_kept(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(row(code="a\0b"))
    assert read(path)[0].code == "a\0b"


def test_20_a_character_written_as_a_whole_surrogate_pair_is_read(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"code": "\\ud83d\\ude00", "target": 0}\n')
    assert read(path)[0].code == "\N{GRINNING FACE}"


@pytest.mark.parametrize("blank", ["", " \n\t"], ids=["29-empty", "29-blank"])
def test_a_function_without_code_is_dropped_and_counted(tmp_path, blank):
    facts = ReadFacts()
    path = tmp_path / "train.jsonl"
    path.write_bytes(row(code=blank) + PAIR + row(code=blank))
    assert [sample.origin for sample in read(path, facts=facts)] == [
        "train.jsonl:2",
        "train.jsonl:3",
    ]
    assert (facts.num_rows, facts.num_empty) == (4, 2)


def test_37_extra_columns_are_ignored_and_listed_once(tmp_path):
    facts = ReadFacts()
    path = tmp_path / "train.jsonl"
    path.write_bytes(row(x=1, cwe="CWE-1") + row(x=[2], y={}) + row(idx=7))
    samples = read(path, facts=facts)
    assert facts.ignored_fields == {"x", "y"}
    assert [sample.cwe for sample in samples] == ["CWE-1", "", ""]
    assert [sample.id for sample in samples] == ["train.jsonl:1", "train.jsonl:2", "7"]


def test_38_a_named_column_is_read_and_an_unknown_field_of_ours_is_refused(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"func": "a", "label": 1, "project": "p"}\n')
    fields = {"code": "func", "target": "label", "commit": "project"}
    assert read(path, fields=fields) == [
        CodeSample("train.jsonl:1", "a", 1, "train.jsonl:1", commit="p", project="p")
    ]
    with pytest.raises(DataError, match=r"data\.fields: \['cod'\] .* allowed: \['code', "):
        read(path, fields={"cod": "func"})


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        pytest.param({}, ("data.train is not set", "data.path"), id="68-nothing-given"),
        pytest.param({"path": "no"}, ("data.path: no does not exist", "resolved"), id="68-path"),
        pytest.param({"train": "no.jsonl"}, ("data.train: no.jsonl", "resolved"), id="68-file"),
        pytest.param(
            {"path": "."}, ("train.jsonl or train.jsonl.gz", "found 2"), id="68-two-files"
        ),
        pytest.param({"path": "empty"}, ("train.jsonl or", "found 0"), id="68-empty-folder"),
    ],
)
def test_a_path_that_holds_no_split_names_its_key_and_what_was_looked_for(
    tmp_path, monkeypatch, config, parts
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("train.jsonl", "train.jsonl.gz"):
        (tmp_path / name).write_bytes(PAIR)
    with pytest.raises(DataError) as caught:
        split_path(DataConfig.model_validate(config), "train")
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)
