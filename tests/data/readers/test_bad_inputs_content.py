"""Names that say something else than the content: case 16 of the list of bad inputs."""

import gzip
import lzma

import pytest
from dataset_files import PAIR, jsonl_bytes, parquet_bytes, read, refused, tar, zipped

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
