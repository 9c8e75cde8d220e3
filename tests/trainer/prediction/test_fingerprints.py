"""Fingerprints: those of code scanning by its own published values, ours under edits."""

from dataclasses import replace

import pytest

from trainer.prediction.extraction import Function
from trainer.prediction.fingerprints import fingerprints, line_hashes

# What code scanning's own action expects of these texts.
KNOWN = {
    "": "c129715d7a2bc9a3:1",
    " a\nb\n  \t\tc\n d": (
        "271789c17abda88f:1 54703d4cd895b18:1 180aee12dab6264:1 a23a3dc5e078b07b:1"
    ),
    " hello; \t\nworld!!!\r\n\n\r  \t\tGreetings\r End\r\n": (
        "e9496ae3ebfced30:1 fb7c023a8b9ccb3f:1 ce8ba1a563dcdaca:1 e20e36e16fcb0cc8:1"
        " b3edc88f2938467e:1 c8e28b0b4002a3a0:1 c129715d7a2bc9a3:1"
    ),
    "Lorem ipsum dolor sit amet.\n" * 10: (
        "a7f2ff13bc495cf2:1 a7f2ff13bc495cf2:2 a7f2ff13bc495cf2:3 a7f2ff13bc495cf2:4"
        " a7f2ff13bc495cf2:5 a7f2ff13bc495cf2:6 a7f2ff1481e87703:1 a9cf91f7bbf1862b:1"
        " 55ec222b86bcae53:1 cc97dc7b1d7d8f7b:1 c129715d7a2bc9a3:1"
    ),
}


@pytest.mark.parametrize("text", KNOWN, ids=["empty", "blanks", "line ends", "repeated"])
def test_line_hashes_are_those_of_code_scanning(text):
    assert line_hashes(text) == KNOWN[text].split()


ONE = Function("f", "A", "C", 3, 5, "int f(void) {\n  return 1;\n}")


def marks(*functions, file="a.c"):
    return list(fingerprints(file, functions))


def test_a_fingerprint_stays_under_moved_lines_and_layout():
    moved = replace(ONE, first_line=90, last_line=94, code="int f(void) {\r\n\treturn 1;\r\n}")
    assert marks(ONE) == marks(moved)
    assert len(marks(ONE)[0]) == 32


@pytest.mark.parametrize("change", [{"name": "g"}, {"container": "B"}, {"code": "int f() {}"}])
def test_another_name_class_text_or_file_is_another_finding(change):
    assert marks(ONE) != marks(replace(ONE, **change))
    assert marks(ONE) != marks(ONE, file="b.c")


def test_equal_functions_of_a_file_are_told_apart():
    assert len(set(marks(ONE, ONE, ONE))) == 3
    assert marks(ONE, ONE)[0] == marks(ONE)[0]
