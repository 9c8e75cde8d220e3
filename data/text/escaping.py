"""The user's text on a terminal."""

import re

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 but \t and \n, DEL, C1


def escaped(text: str) -> str:
    """Text that cannot drive a terminal: control characters but line ends and tabs written out."""
    return _CONTROLS.sub(lambda found: repr(found.group())[1:-1], text)
