"""The program that changes one place at a time, and its table."""

from conftest import REPOSITORY
from mutants import GUARDS, mutants

SOURCE = """
def f(a: int = 1, b: str = "x") -> bool:
    if not a < 2 and b in g(a, b):
        raise ValueError(f"{a + 3}")
    g.update()
    a += b
    return a
"""
CHANGED = [
    "1 -> 2", "1 -> 0", "2 -> 3", "2 -> 1", "a < 2 -> a <= 2", "not a < 2 -> not not a < 2",
    "g(a, b) -> g(b, a)", "b in g(a, b) -> b not in g(a, b)",
    "not a < 2 and b in g(a, b) -> not a < 2 or b in g(a, b)", "g.update() -> None",
    "a += b -> a -= b",
]  # fmt: skip


def test_every_change_is_made_alone():
    found = mutants(SOURCE)
    assert sorted(change.partition(": ")[2] for change, _ in found) == sorted(CHANGED)
    assert len({text for _, text in found}) == len(CHANGED)
    [turned] = [text for change, text in found if change.endswith("a <= 2")]
    assert "if not a <= 2 and b in g(a, b):" in turned


def test_the_modules_and_their_tests_are_there():
    for module, tests in GUARDS.items():
        assert (REPOSITORY / module).is_file()
        assert all((REPOSITORY / "tests" / path).is_file() for path in tests)
