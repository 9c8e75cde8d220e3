"""Members of a tar or zip, one after the other, in place: nothing is ever written to disk.

An archive with a path outside itself, a name twice or a name no file system takes is refused whole:
it is hostile or a mistake. Links, devices and archives inside it are never opened: a warning names
them.
"""

import io
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, cast

from data.errors import DataError, parsing
from data.readers.reading import Reading, listed, shown
from data.readers.streams import buffered, decompressed, is_tar, is_zip

# The largest public set of single functions has 330,000; the headers of half a million cost 300 MB.
MAX_MEMBERS = 500_000
_MAX_COMPONENT = 255  # bytes of a file name on every common file system
_ARCHIVE_NAME = re.compile(r"\.(tar(\.\w+)?|tgz|txz|zip|7z|rar|jar)$", re.IGNORECASE)
_END_OF_TAR = bytes(512)


@dataclass(frozen=True)
class Member:
    """A regular file of an archive, to be opened before the next one is taken.

    Attributes:
        name: Its path in the archive.
        open: Its bytes, whose faults name the archive and the member.
    """

    name: str
    open: Callable[[], io.BufferedReader]


def opened(
    raw: io.BufferedReader, reading: Reading
) -> tuple[io.BufferedReader, Iterator[Member] | None]:
    """The decompressed content of a file, and its members where it is an archive."""
    if is_zip(raw):
        return raw, zip_members(raw, reading)
    stream = decompressed(raw, reading)
    return stream, tar_members(stream, reading) if is_tar(stream) else None


def tar_members(stream: IO[bytes], reading: Reading) -> Iterator[Member]:
    """Regular members in the order of the archive, streamed.

    Raises:
        DataError: Damaged, cut off (also between two members), hostile, or too many members.
    """
    names = _Names(reading)
    tail = _Tail(stream)
    with reading.intact():
        with tarfile.open(fileobj=cast(IO[bytes], tail), mode="r|") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                kind = "" if member.isreg() and not member.issparse() else _kind(member)
                if names.is_wanted(member.name, kind):
                    yield Member(member.name, _tar_opener(archive, member, names.inner(member)))
            while tail.read(1 << 18):  # to the end: the compression's checksums are there
                pass
        if tail.last != _END_OF_TAR:  # tarfile takes a cut between two members for the end
            raise EOFError("it does not end with the empty blocks that end a tar")
    names.finish()


def zip_members(stream: IO[bytes], reading: Reading) -> Iterator[Member]:
    """Regular members in the order of the archive's directory.

    Raises:
        DataError: As tar_members.
    """
    names = _Names(reading)
    num_bytes = stream.seek(0, io.SEEK_END)
    with reading.intact(), zipfile.ZipFile(stream) as archive:
        wanted = [
            member
            for member in archive.infolist()
            # zipfile cuts a name at its NUL, so that "a\0b" would pass for "a"
            if names.is_wanted(member.orig_filename, _zip_kind(member))
        ]
        for member in wanted:
            # a header may claim any size, but no member needs more than the whole file
            compressed = max(min(member.compress_size, num_bytes), 1)
            opener = _zip_opener(archive, member, compressed, names.inner(member))
            yield Member(member.filename.replace("\\", "/"), opener)  # Windows
    names.finish()


class _Names:
    """Which names of an archive are safe, wanted and new."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.archive = reading.name
        self.seen: set[int] = set()  # 64-bit hashes: a bounded cost a member
        self.passed: dict[str, list[str]] = {}

    def is_wanted(self, name: str, kind: str) -> bool:
        """Whether to offer a member; `kind` names one that is not a regular file."""
        fault = _unsafe(name)
        if fault:
            raise DataError(
                f"{self.archive}: member {name[:80]!r} {fault}; such an archive is not read: make a"
                " new one from a clean folder"
            )
        if kind == "folder":
            return False
        key = hash(name.removeprefix("./"))
        if key in self.seen:
            raise DataError(f"{self.archive}: two members are called {name!r}; keep one")
        self.seen.add(key)
        if len(self.seen) > MAX_MEMBERS:
            raise DataError(
                f"{self.archive}: more than {MAX_MEMBERS} members; unpack it, or put the functions"
                " into one jsonl"
            )
        kind = kind or ("archive" if _ARCHIVE_NAME.search(name) else "")
        if kind:
            self.passed.setdefault(kind, []).append(name)
        return not kind

    def inner(self, member: tarfile.TarInfo | zipfile.ZipInfo) -> Reading:
        """Names the faults in a member's bytes."""
        name = member.name if isinstance(member, tarfile.TarInfo) else member.filename
        return replace(self.reading, name=shown(f"{self.archive}::{name}"))

    def finish(self) -> None:
        for kind, names in self.passed.items():
            self.reading.facts.warn(f"{self.archive}: ignored {kind} members {listed(names)}")


def _unsafe(name: str) -> str:
    """What is wrong with a member's name, or nothing."""
    if "\0" in name:
        return "has a NUL in its name"
    parts = name.replace("\\", "/").split("/")
    if ".." in parts:
        return "leads out of the archive"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name):
        return "has an absolute path"
    longest = max(len(part.encode("utf-8", "surrogateescape")) for part in parts)
    if longest > _MAX_COMPONENT:
        return f"has a name of {longest} bytes, above {_MAX_COMPONENT}"
    return ""


def _kind(member: tarfile.TarInfo) -> str:
    if member.isdir():
        return "folder"
    if member.issym() or member.islnk():
        return "link"
    return "sparse" if member.issparse() else "device or fifo"


def _zip_kind(member: zipfile.ZipInfo) -> str:
    mode = stat.S_IFMT(member.external_attr >> 16)
    if member.is_dir():
        return "folder"
    if mode in (0, stat.S_IFREG):
        return ""
    return "link" if mode == stat.S_IFLNK else "device or fifo"


def _tar_opener(
    archive: tarfile.TarFile, member: tarfile.TarInfo, reading: Reading
) -> Callable[[], io.BufferedReader]:
    def opened() -> io.BufferedReader:
        content = archive.extractfile(member)
        assert content is not None  # a regular member always has content
        return buffered(content.read, lambda: max(content.tell(), 1), reading)

    return opened


def _zip_opener(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, num_compressed: int, reading: Reading
) -> Callable[[], io.BufferedReader]:
    def opened() -> io.BufferedReader:
        remedy = "fetch the archive again, or unpack it yourself"
        with parsing(f"{reading.name}: the member cannot be opened", DataError, remedy):
            content = archive.open(member)
        return buffered(content.read, lambda: num_compressed, reading)

    return opened


class _Tail:
    """Passes reads on and remembers the last block."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.last = (self.last + data[-512:])[-512:]
        return data
