"""Small datasets in every format, compression and archive, and how a refusal is checked."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig
from data.errors import DataError
from data.readers import ReadFacts, read_records
from data.records import CodeSample

GOOD = {"code": "int a;", "target": 0}
ROW = json.dumps(GOOD).encode()
PAIR = ROW + b"\n" + json.dumps({"code": "int b;", "target": 1}).encode() + b"\n"
MAX_MESSAGE = 450  # quotes the value, not the file


def read(
    path: Path, split: str = "train", facts: ReadFacts | None = None, **config: object
) -> list[CodeSample]:
    return list(read_records(path, split, DataConfig.model_validate(config), facts))


def refused(path: Path, parts: Sequence[str], split: str = "train", **config: object) -> None:
    """Reading is a DataError whose message holds all parts, and the file is left as it is."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(DataError) as caught:
        read(path, split, **config)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert path.name in message
    assert [part for part in parts if part not in message] == [], message
    assert len(message) < MAX_MESSAGE
    assert (path.read_bytes() if path.is_file() else None) == before


def row(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode() + b"\n"


def tar(*members: tarfile.TarInfo | tuple[str, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
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


def zipped(*members: tuple[str, bytes], mode: int = 0o104755) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.filename = name  # the constructor cuts it at a NUL
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return buffer.getvalue()


def jsonl_bytes(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def json_bytes(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def csv_bytes(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet_bytes(rows: list[dict[str, Any]], **options: Any) -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl": jsonl_bytes,
    "json": json_bytes,
    "csv": csv_bytes,
    "parquet": parquet_bytes,
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
}
