"""Compressed bytes -> bytes, by content, with a bound on what a small file may become."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any

from data.errors import DataError
from data.readers.reading import Reading

BUFFER_BYTES = 1 << 18  # of each layer; large, because a layer in Python costs a call a buffer
_CHUNK_BYTES = 1 << 16  # compressed bytes fed at a time
# Source code compresses 4 to 20 times, generated rows up to about 100. gzip cannot exceed 1,032,
# so 250 tells a bomb from data. What stays small is let through: it costs nothing.
MAX_RATIO = 250
RATIO_FLOOR_BYTES = 32 << 20
_XZ_MEMORY_BYTES = 256 << 20  # xz -9 needs 65 MiB; a hostile header can ask for 4 GiB
_HEAD_BYTES = 512  # enough for the magic of a tar, at byte 257


def buffered(
    read: Callable[[int], bytes], num_compressed: Callable[[], int], reading: Reading
) -> io.BufferedReader:
    """A byte stream whose faults are DataErrors and whose size is bounded.

    Args:
        read: Returns at most the requested number of bytes; b"" at the end.
        num_compressed: Bytes of the file that were needed so far.
        reading: Names the stream, and knows how many rows came before a fault.
    """
    return io.BufferedReader(_Guarded(read, num_compressed, reading), BUFFER_BYTES)


def decompressed(stream: io.BufferedReader, reading: Reading) -> io.BufferedReader:
    """The stream itself, or what its gzip, xz, zstd or bzip2 content becomes."""
    codec = compression(stream.peek(_HEAD_BYTES))
    if codec is None:
        return stream
    counted = _Counted(stream)
    if codec == "zst":
        import pyarrow

        file = pyarrow.PythonFile(counted, mode="r")
        source = pyarrow.CompressedInputStream(file, "zstd")

        def read(size: int) -> bytes:  # in pieces, for a fault takes the whole piece with it
            return bytes(source.read(min(size, _CHUNK_BYTES)))
    else:
        read = _Inflater(counted, codec).read
    return buffered(read, lambda: counted.num_bytes, reading)


def compression(head: bytes) -> str | None:
    """Which codec wrote these first bytes."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gz"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return "zst"
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":  # "BZh" alone can begin a text
        return "bz2"
    return None


def is_tar(stream: io.BufferedReader) -> bool:
    """A tar by its magic, wherever its name says."""
    return stream.peek(_HEAD_BYTES)[257:262] == b"ustar"


def is_zip(stream: io.BufferedReader) -> bool:
    """A zip, also an empty one, by its magic."""
    return stream.peek(_HEAD_BYTES)[:4] in (b"PK\x03\x04", b"PK\x05\x06")


class _Guarded(io.RawIOBase):
    """Fills a buffer; names every fault; refuses a bomb."""

    def __init__(
        self, read: Callable[[int], bytes], num_compressed: Callable[[], int], reading: Reading
    ) -> None:
        self._read = read
        self._num_compressed = num_compressed
        self._reading = reading
        self._name = reading.name
        self._num_bytes = 0
        self._fault: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view) and self._fault is None:
            try:
                data = self._read(len(view) - filled)
            except Exception as error:
                self._fault = error  # what came before it is delivered first
                break
            if not data:
                break
            view[filled : filled + len(data)] = data
            filled += len(data)
        if self._fault is not None and not filled:
            with self._reading.intact():
                raise self._fault
        self._num_bytes += filled
        self._refuse_bomb()
        return filled

    def _refuse_bomb(self) -> None:
        if self._num_bytes <= RATIO_FLOOR_BYTES:
            return
        compressed = self._num_compressed()
        if self._num_bytes > compressed * MAX_RATIO:
            raise DataError(
                f"{self._name}: {compressed} compressed bytes became more than {self._num_bytes}:"
                f" above {MAX_RATIO} to 1 this is taken for a decompression bomb; if the data is"
                " meant, unpack it yourself"
            )


class _Counted:
    """Passes reads on and counts them; the stream stays open when pyarrow has had enough."""

    closed = False

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self.num_bytes = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.num_bytes += len(data)
        return data

    def close(self) -> None:
        pass


class _Gunzip:
    """zlib's decompressor, which keeps no input, with the interface of the other two."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)  # 31: a gzip header and trailer, CRC verified

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


# Not the standard library's files: gzip's hands out bytes before it has checked them, lzma's and
# bz2's take garbage after a stream for its end, and lzma's has no memory limit.
_CODECS: dict[str, Callable[[], _Gunzip | lzma.LZMADecompressor | bz2.BZ2Decompressor]] = {
    "gz": _Gunzip,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY_BYTES),
    "bz2": bz2.BZ2Decompressor,
}


class _Inflater:
    """One or several compressed streams in a row, and nothing else after them."""

    def __init__(self, source: _Counted, name: str) -> None:
        self._source = source
        self._name = name
        self._codec = _CODECS[name]()
        self._pending = b""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" only at the end."""
        while True:
            if self._codec.eof and not self._next_stream():
                return b""
            data, self._pending = self._pending, b""
            if not data and self._codec.needs_input:
                data = self._source.read(_CHUNK_BYTES)
            out = self._codec.decompress(data, size)
            if out:
                return out
            if not data and not self._codec.eof:
                raise EOFError("the end of the stream is missing")

    def _next_stream(self) -> bool:
        rest = self._codec.unused_data.lstrip(b"\0")  # padding is allowed between streams
        # 10: the longest magic
        while len(rest) < 10 and (more := self._source.read(_CHUNK_BYTES)):
            rest = (rest + more).lstrip(b"\0")
        if not rest:
            return False
        if compression(rest) != self._name:
            raise OSError(f"{len(rest)} or more bytes of something else follow the compressed data")
        self._codec, self._pending = _CODECS[self._name](), rest
        return True
