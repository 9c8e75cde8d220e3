"""Every bad input of the list has a test by its number."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

NUMBERS = range(1, 134)
# test_70_a_folder_that_cannot_be_made..., or a parameter's id such as "70-no-folder"
_FUNCTION, _PARAMETER = re.compile(r"test_(\d+)_"), re.compile(r"(\d{1,3})-[a-z0-9]+(-|$)", re.I)


def numbers(source: str) -> Iterator[int]:
    """The numbers in names of test functions and in ids of parameters."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (found := _FUNCTION.match(node.name)):
            yield int(found[1])
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and (found := _PARAMETER.match(text)):
            yield int(found[1])


def test_every_number_has_a_test():
    tests = Path(__file__).parent
    found = {n for path in tests.rglob("test_*.py") for n in numbers(path.read_text())}
    assert [number for number in NUMBERS if number not in found] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def test_70_a_folder(): pass", [70]),
        ('CASES = {"07-absolute-in-a-tar": 1}', [7]),
        ('pytest.param(1, id="97-header")', [97]),
        ("def test_a_70_b(): pass", []),
        ('"""97 and 98: a sentence."""', []),
        ('"2020-13-45"', []),
    ],
)
def test_a_number_is_read_where_pytest_shows_it(source, expected):
    assert list(numbers(source)) == expected
