"""Bad archives and compressed files: cases 3 to 16 of the list, the number first in each id."""

import gzip
import io
import itertools
import lzma
import os
import random
import tarfile
import zipfile
from collections import deque
from pathlib import Path

import pytest
from dataset_files import (
    COMPRESSIONS,
    PAIR,
    ROW,
    link,
    read,
    refused,
    row,
    tar,
    zipped,
    zstd,
)

from data.config import DataConfig
from data.errors import DataError
from data.readers import ReadFacts, archives, read_records

LONG = b"".join(row(code=f"int x{n * n};") for n in range(10_000))
BIG_TAR = tar(("train.jsonl", ROW + b"\n" + row(code="x" * 4000)))
TWO_MEMBERS = tar(("train.jsonl", PAIR), ("valid.jsonl", PAIR))
BOMB_BYTES = 64 << 20
DAMAGED = ("damaged or cut off", "fetch")


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def encrypted_zip() -> bytes:
    content = bytearray(zipped(("train.jsonl", PAIR)))
    content[6] |= 1  # the flag in the local header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    return bytes(content)


def sparse_tar() -> bytes:
    """A member of 1 TiB of zeros in one block: tarfile would produce them all."""
    info = tarfile.TarInfo("train.jsonl")
    info.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,0"}
    return tar(info, format=tarfile.PAX_FORMAT)


BOMBS = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": zstd,
    "tar": lambda bomb: gzip.compress(tar(("x", bomb), ("train.jsonl", PAIR))),
    "zip": lambda bomb: zipped(("train.jsonl", bomb)),
    "within-a-tar": lambda bomb: tar(("train.jsonl.gz", gzip.compress(bomb))),
}
"""Compressed by the test: to collect tests, which every process does, must not take seconds."""
REFUSED = {
    **{
        f"03-truncated{end}": (half(COMPRESSIONS[end](LONG)), *DAMAGED, "after", "rows")
        for end in (".gz", ".xz", ".zst", ".bz2")
    },
    **{
        f"04-trailing-garbage{end}": (compress(PAIR) + b"garbage", *DAMAGED, "after", "rows")
        for end, compress in COMPRESSIONS.items()
        if end
    },
    "04-flipped-bit": (
        b"".join([gzip.compress(PAIR)[:20], b"\xff\xff", gzip.compress(PAIR)[22:]]),
        *DAMAGED,
    ),
    "05-tar-cut-at-a-block-boundary": (BIG_TAR[:1024], "train.jsonl: ", *DAMAGED),
    "05-tar-cut-in-its-header": (BIG_TAR[:300], *DAMAGED),
    "05-tar-cut-between-two-members": (TWO_MEMBERS[:1024], *DAMAGED, "empty blocks"),
    "05-gzipped-tar-cut": (gzip.compress(BIG_TAR)[:-20], *DAMAGED),
    "05-gzipped-tar-without-its-checksum": (gzip.compress(BIG_TAR)[:-8], *DAMAGED),
    "05-gzipped-tar-cut-within-a-zstd-member": (
        half(gzip.compress(tar(("train.jsonl.zst", zstd(LONG))))),
        *DAMAGED,
    ),
    "05-zip-cut": (half(zipped(("train.jsonl", LONG))), *DAMAGED),
    "06-dots-in-a-tar": (tar(("../train.jsonl", PAIR)), "'../train.jsonl' leads out", "new one"),
    "06-dots-in-another-member": (
        tar(("train.jsonl", PAIR), ("a/../../x", b"")),
        "'a/../../x' leads out of the archive",
    ),
    "06-dots-in-a-zip": (zipped(("..\\train.jsonl", PAIR)), "leads out of the archive"),
    "07-absolute-in-a-tar": (tar(("/train.jsonl", PAIR)), "'/train.jsonl' has an absolute path"),
    "07-absolute-in-a-zip": (zipped(("C:\\train.jsonl", PAIR)), "has an absolute path"),
    "08-symlink": (
        tar(link("train.jsonl", tarfile.SYMTYPE, "/etc/passwd")),
        "no member train.jsonl",
        "ignored link members ['train.jsonl']",
    ),
    "08-hardlink": (
        tar(("x.rows", PAIR), link("train.jsonl", tarfile.LNKTYPE, "x.rows")),
        "no member train.jsonl",
        "the archive holds ['x.rows']",
        "ignored link members ['train.jsonl']",
    ),
    "08-symlink-in-a-zip": (
        zipped(("train.jsonl", b"/etc/passwd"), mode=0o120777),
        "ignored link members ['train.jsonl']",
    ),
    "09-fifo": (
        tar(link("train.jsonl", tarfile.FIFOTYPE)),
        "no member train.jsonl",
        "ignored device or fifo members ['train.jsonl']",
    ),
    "09-device": (tar(link("train.jsonl", tarfile.CHRTYPE)), "ignored device or fifo members"),
    "11-one-name-twice-in-a-tar": (
        tar(("train.jsonl", PAIR), ("./train.jsonl", PAIR)),
        "two members are called './train.jsonl'",
        "keep one",
    ),
    "11-another-name-twice": (
        tar(("train.jsonl", PAIR), ("x", b""), ("x", b"")),
        "two members are called 'x'",
    ),
    "11-two-members-of-a-split": (
        tar(("a/train.jsonl", PAIR), ("b/train.csv", PAIR)),
        "'a/train.jsonl' and 'b/train.csv' both hold train; keep one",
    ),
    "12-nul-in-a-zip": (zipped(("train.jsonl\0.txt", PAIR)), "has a NUL in its name"),
    "12-three-hundred-characters": (
        tar(("x" * 300, b""), ("train.jsonl", PAIR)),
        "has a name of 300 bytes, above 255",
    ),
    **{f"13-bomb-{kind}": (None, "decompression bomb") for kind in BOMBS},
    "13-sparse-member": (sparse_tar(), "ignored sparse members ['train.jsonl']"),
    "14-archive-in-an-archive-alone": (
        tar(("train.tar", TWO_MEMBERS)),
        "no member train.jsonl",
        "ignored archive members ['train.tar']",
    ),
    "14-archive-disguised": (
        tar(("train.jsonl", TWO_MEMBERS)),
        "an archive within an archive; unpack the outer",
    ),
    "15-no-recognised-member": (
        tar(("README", b"x"), ("a/training.rows", PAIR)),
        "no member train.jsonl",
        "['README', 'a/training.rows']",
    ),
    "15-no-member-at-all-in-a-zip": (zipped(), "no member train.jsonl", "the archive holds []"),
    "15-encrypted-zip": (encrypted_zip(), "train.jsonl: ", "encrypted", "unpack it yourself"),
}


@pytest.mark.parametrize(
    ("content", "parts"),
    [pytest.param(case[0], case[1:], id=name) for name, case in REFUSED.items()],
)
def test_a_bad_archive_is_refused_with_its_place_the_finding_and_the_remedy(
    tmp_path, content, parts, request
):
    if content is None:
        content = BOMBS[request.node.callspec.id.removeprefix("13-bomb-")](bytes(BOMB_BYTES))
        parts = (*parts, "unpack it yourself")
    path = tmp_path / "train.jsonl"  # the name says nothing: content decides
    path.write_bytes(content)
    refused(path, parts)
    assert list(tmp_path.iterdir()) == [path]


def test_12_a_nul_in_a_pax_header_is_refused(tmp_path):
    info = tarfile.TarInfo("x")
    info.pax_headers = {"path": "train.jsonl\0.txt"}
    path = tmp_path / "data.tar"
    path.write_bytes(tar(info, format=tarfile.PAX_FORMAT))
    refused(path, ["has a NUL in its name"])


def test_13_more_members_than_any_dataset_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    path = tmp_path / "data.tar"
    path.write_bytes(tar(*[(str(n), b"") for n in range(3)], ("train.jsonl", PAIR)))
    refused(path, ["more than 3 members", "unpack it"])


def test_13_a_small_file_of_one_repeated_row_is_no_bomb(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    content = gzip.compress(whole := ROW.join([b"", *[b"\n"] * 200_000]), 9)
    assert len(whole) > 250 * len(content)  # above the ratio, below the floor
    path.write_bytes(content)
    assert len(read(path)) == 200_000


def test_13_a_bomb_is_refused_before_it_is_whole(tmp_path):
    whole = io.BytesIO()
    with gzip.open(whole, "wb", compresslevel=9) as stream:
        for _ in range(256):
            stream.write(bytes(1 << 20))
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(whole.getvalue())
    with pytest.raises(DataError) as caught:
        read(path, format="jsonl")
    stopped_at = int(str(caught.value).split("more than ")[1].split(":")[0])
    assert stopped_at <= 36 << 20  # the floor and a buffer, of 256 MiB


@pytest.mark.parametrize(
    ("end", "least"), [(".gz", 10_000), (".xz", 10_000), (".bz2", 10_000), (".zst", 6_000)]
)
def test_04_garbage_at_the_end_comes_after_the_rows_before_it(tmp_path, end, least):
    """Of zstd, pyarrow loses up to a piece of 64 KiB before the fault."""
    num_rows = rows_before_a_fault(tmp_path, COMPRESSIONS[end](LONG) + b"garbage")
    assert least <= num_rows <= 10_000


@pytest.mark.parametrize("end", [".gz", ".xz", ".zst"])  # bzip2 has blocks of 900 kB
def test_03_rows_before_the_cut_are_read(tmp_path, end):
    content = COMPRESSIONS[end](incompressible(10_000))
    assert 2_000 < rows_before_a_fault(tmp_path, half(content)) < 6_000


def incompressible(count: int) -> bytes:
    noise = random.Random(0)
    return b"".join(row(code=f"{noise.getrandbits(512):x}") for _ in range(count))


def rows_before_a_fault(folder: Path, content: bytes) -> int:
    """How many rows are yielded; the message must say the same."""
    path = folder / "train.jsonl"
    path.write_bytes(content)
    samples, count = read_records(path, "train", DataConfig()), itertools.count()
    with pytest.raises(DataError) as caught:
        deque(zip(samples, count, strict=False), maxlen=0)
    num_rows = next(count)
    assert f"train.jsonl: the data is damaged or cut off after {num_rows} rows" in str(caught.value)
    return num_rows


@pytest.mark.parametrize("split", ["train", "valid"], ids=["10-train", "10-valid"])
@pytest.mark.parametrize("archive", [tar, zipped])
def test_a_member_is_read_in_place_whatever_its_mode_and_nothing_is_written(
    tmp_path, split, archive
):
    path = tmp_path / "data.bin"
    path.write_bytes(archive(("valid.jsonl", PAIR), ("sub/train.jsonl", PAIR)))
    inner = "sub/train.jsonl" if split == "train" else "valid.jsonl"
    assert [s.origin for s in read(path, split)] == [f"data.bin::{inner}:{n}" for n in (1, 2)]
    assert list(tmp_path.iterdir()) == [path]


def test_14_a_nested_archive_and_a_link_are_ignored_and_told(tmp_path):
    path = tmp_path / "data.tar"
    members = ("old.tar.gz", b"x"), ("train.jsonl", PAIR), link("last", tarfile.SYMTYPE, "x")
    path.write_bytes(tar(*members))
    facts = ReadFacts()
    assert len(read(path, facts=facts)) == 2
    assert facts.warnings == [
        "data.tar: ignored archive members ['old.tar.gz']",
        "data.tar: ignored link members ['last']",
    ]


def test_09_a_fifo_is_refused_instead_of_waited_for(tmp_path):
    path = tmp_path / "train.jsonl"
    os.mkfifo(path)
    refused(path, ["must be a regular file"])


def test_the_encrypted_zip_is_one():
    with (
        zipfile.ZipFile(io.BytesIO(encrypted_zip())) as archive,
        pytest.raises(RuntimeError, match="is encrypted, password required"),
    ):
        archive.open("train.jsonl")
