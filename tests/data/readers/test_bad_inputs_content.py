"""Content that is something else than the name or the program says: case 16, and other programs."""

import gzip
import lzma

import pytest
from dataset_files import PAIR, jsonl_bytes, parquet_bytes, read, refused, row, tar, zipped

from data.readers import ReadFacts

ACCEPTED = {
    "16-gzip-named-jsonl": gzip.compress(PAIR),
    "16-two-gzip-streams": gzip.compress(PAIR[:9]) + gzip.compress(PAIR[9:]) + bytes(100),
    "16-two-xz-streams": lzma.compress(PAIR[:9]) + bytes(4) + lzma.compress(PAIR[9:]),
    "16-xz-named-jsonl": lzma.compress(PAIR),
    "16-tar-named-jsonl": tar(("folder/train.jsonl", PAIR)),
    "16-gzipped-tar-named-jsonl": gzip.compress(tar(("train.jsonl", PAIR))),
    "16-zip-named-jsonl": zipped(("train.jsonl", PAIR)),
    "16-parquet-named-jsonl": parquet_bytes(
        [{"code": "int a;", "target": 0}, {"code": "int b;", "target": 1}]
    ),
    "16-compressed-member": tar(("train.jsonl.xz", lzma.compress(PAIR))),
    "16-macos-archive": zipped(("train.jsonl", PAIR), ("__MACOSX/._train.jsonl", b"\0\5\x16\7")),
    "16-old-tar-with-the-shortest-end": tar(("train.jsonl", PAIR))[: 512 * 3] + bytes(1024),
}


@pytest.mark.parametrize(
    "content", [pytest.param(content, id=name) for name, content in ACCEPTED.items()]
)
def test_content_decides_not_the_name(tmp_path, content):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    assert [(s.code, s.target) for s in read(path)] == [("int a;", 0), ("int b;", 1)]


@pytest.mark.parametrize(
    ("wanted", "content", "parts"),
    [
        pytest.param(
            "csv", PAIR, ("data.format=csv", "the content is jsonl"), id="16-csv-is-jsonl"
        ),
        pytest.param("parquet", PAIR, ("set data.format=jsonl",), id="16-parquet-is-jsonl"),
        pytest.param(
            "parquet", b"code,target\n", ("something else (it begins with b'code,",), id="16-no-pq"
        ),
        pytest.param("jsonl", parquet_bytes([{"a": 1}]), ("is parquet",), id="16-jsonl-is-pq"),
        pytest.param("json", PAIR, ("set data.format=jsonl",), id="16-json-is-jsonl"),
        pytest.param("datasets", PAIR, ("a folder with state.json",), id="16-datasets-is-a-file"),
        pytest.param("folder", PAIR, ("neither folder nor archive",), id="16-folder-is-a-file"),
    ],
)
def test_a_stated_format_that_the_content_contradicts_is_refused(tmp_path, wanted, content, parts):
    path = tmp_path / "train.data"
    path.write_bytes(content)
    refused(path, parts, format=wanted)


def test_16_text_of_an_unknown_name_is_refused_and_of_another_name_told(tmp_path):
    unknown, other = tmp_path / "train.txt", tmp_path / "train.csv"
    unknown.write_bytes(b"code,target\nint a;,0\n")
    refused(unknown, ["not recognised", "b'code,target", "set data.format"])
    assert len(read(unknown, format="csv")) == 1
    other.write_bytes(jsonl_bytes([{"code": "a", "target": 1}]))
    facts = ReadFacts()
    assert len(read(other, facts=facts)) == 1
    assert facts.warnings == ["train.csv: named csv, but read as jsonl: it is that"]


FOREIGN = {
    "sqlite": (b"SQLite format 3\0" + bytes(99), ["the data is damaged or cut off"]),
    "utf-16": ("code,target\na,1\n".encode("utf-16"), ["text in UTF-16", "save it as UTF-8"]),
    "pickle": (b"\x80\x04\x95\x11" + bytes(20), ["a pickle, which is never opened"]),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), ["an HDF5 file", "train.parquet"]),
    "excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), ["an Excel file"]),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["db", "csv", "jsonl"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_program_is_named_with_how_to_get_rows_out_of_it(tmp_path, kind, ending):
    content, parts = FOREIGN[kind]
    (tmp_path / f"train.{ending}").write_bytes(content)
    refused(tmp_path / f"train.{ending}", parts)


def test_nan_of_an_optional_column_is_unknown_as_null_is(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(row(cwe=float("nan"), commit=None))
    [sample] = read(tmp_path / "train.jsonl")
    assert (sample.cwe, sample.commit) == ("", "")


@pytest.mark.parametrize("column", ["split", "partition", "set"])
def test_a_row_of_train_that_says_it_is_held_out_is_refused(tmp_path, column):
    for said in ("valid", "Val", "dev", "test"):
        path = tmp_path / "train.jsonl"
        path.write_bytes(row(**{column: "train"}) + row(code="int b;", **{column: said}))
        refused(path, ["train.jsonl:2:", f"{column!r} says {said!r}", f"ignore_columns=[{column}]"])
        assert len(read(path, ignore_columns=[column])) == 2
        assert len(read(path, split="test")) == 2  # an evaluation may read any rows
        assert len(read(path, fields={"status": column})) == 2


@pytest.mark.parametrize(
    ("label", "no", "yes"),
    [
        ("Not Vulnerable", "Not Vulnerable", "Vulnerable"),
        ("BAD", "GOOD", "BAD"),
        ("True", "False", "True"),
        ("nO", "nO", "OTHER"),
    ],
)
def test_the_advised_map_of_labels_is_spelled_as_the_label(tmp_path, label, no, yes):
    (tmp_path / "train.jsonl").write_bytes(row(target=label))
    refused(tmp_path / "train.jsonl", [f"""data.labels='{{"{no}": 0, "{yes}": 1}}'"""])


def test_a_file_of_columns_is_refused_with_how_pandas_writes_rows(tmp_path):
    for codes, targets in ((["int a;"], [0]), ({"0": "int a;"}, {"0": 0})):
        (tmp_path / "train.json").write_bytes(row(code=codes, target=targets))
        refused(tmp_path / "train.json", ["'code' must be text", "orient='records', lines=True"])


def test_a_label_of_another_type_is_refused_with_the_map_that_reads_it(tmp_path):
    for label, key in (("mine", "mine"), (7.5, "7.5")):
        (tmp_path / "train.jsonl").write_bytes(row(target=label))
        refused(tmp_path / "train.jsonl", [f"""data.labels='{{"{key}": 0, "OTHER": 1}}'"""])
        [sample] = read(tmp_path / "train.jsonl", labels={key: 0, "OTHER": 1})
        assert sample.target == 0


def test_members_named_by_windows_are_found(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(("data\\train.jsonl", row())))
    assert len(read(tmp_path / "a.zip")) == 1
