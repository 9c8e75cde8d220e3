"""What stays the same of a finding when lines above it move."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from trainer.prediction.extraction import Function

FINGERPRINT = "focaltuneFunction/v1"
"""Its name among the fingerprints of a result."""
_BLOCK = 100
_POWERS = np.array([pow(37, _BLOCK - 1 - place, 1 << 64) for place in range(_BLOCK)], np.uint64)
_LINES = 4096  # whose blocks are in memory at a time
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
    plain = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-16-le", "surrogatepass")
    units = np.frombuffer(plain, "<u2")
    units = units[(units != ord(" ")) & (units != ord("\t"))]
    starts = np.append(0, np.flatnonzero(units == ord("\n")) + 1)
    padded = np.concatenate([units, [_END], np.zeros(_BLOCK)]).astype(np.uint64)
    seen, found = Counter[str](), list[str]()
    for first in range(0, len(starts), _LINES):
        places = starts[first : first + _LINES, None] + np.arange(_BLOCK)
        for value in (padded[places] * _POWERS).sum(axis=1).tolist():  # modulo 2^64, as it wraps
            seen[digest := f"{value:x}"] += 1
            found.append(f"{digest}:{seen[digest]}")
    return found
