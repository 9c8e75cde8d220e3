"""What stays the same of a finding when lines above it move."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

from trainer.prediction.extraction import Function

FINGERPRINT = "focaltuneFunction/v1"
"""Its name among the fingerprints of a result."""
_BLOCK, _FACTOR, _BITS = 100, 37, (1 << 64) - 1
_END = 0xFFFF  # stands behind a file's last character


def fingerprints(file: str, functions: Sequence[Function]) -> Iterator[str]:
    """A digest of each function of a file: of its place by name and its text without layout.

    Functions of one file that are alike are told apart by their number.
    """
    seen = Counter[str]()
    for one in functions:
        text = "\0".join((file, one.container, one.name, " ".join(one.code.split())))
        seen[text] += 1
        whole = f"{text}\0{seen[text]}".encode("utf-8", "backslashreplace")
        yield hashlib.sha256(whole).hexdigest()[:32]


def line_hashes(text: str) -> list[str]:
    """The hash of every line that code scanning knows as primaryLocationLineHash.

    It is a polynomial in 37 of the 100 UTF-16 units that begin with the line, modulo 2^64, blanks
    left out, with a number that tells equal ones apart. Computed here, a platform that computes it
    from the file itself finds the same.
    """
    units, starts = _units(text)
    padded = [0] * _BLOCK + units + [0] * _BLOCK
    drop = pow(_FACTOR, _BLOCK, 1 << 64)
    wanted, hashes, seen = set(starts), {}, Counter[str]()
    value = 0
    for end in range(_BLOCK, len(padded)):
        begin = end - _BLOCK  # the window before this unit begins here
        if begin - _BLOCK in wanted:
            hashes[begin - _BLOCK] = value
        value = (value * _FACTOR + padded[end] - drop * padded[begin]) & _BITS
    found = []
    for start in starts:
        digest = f"{hashes.get(start, value):x}"
        seen[digest] += 1
        found.append(f"{digest}:{seen[digest]}")
    return found


def _units(text: str) -> tuple[list[int], list[int]]:
    """UTF-16 units without blanks, line ends as one, and the place where each line begins."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    raw = plain.encode("utf-16-le", "surrogatepass")
    units, starts, is_start = list[int](), list[int](), True
    for low, high in zip(raw[::2], raw[1::2], strict=True):
        unit = low | high << 8
        if unit in (0x20, 0x09):
            continue
        if is_start:
            starts.append(len(units))
        is_start = unit == 0x0A
        units.append(unit)
    if is_start:
        starts.append(len(units))
    units.append(_END)
    return units, starts
