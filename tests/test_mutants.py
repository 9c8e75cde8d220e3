"""The program that changes one place at a time, and its table."""

from conftest import REPOSITORY
from mutants import GUARDS, NOTHING, SLOW, mutants

SOURCE = """
def f(a: int = 1, b: str = "x") -> bool:
    if not a < 2 and b in g(a, b):
        raise ValueError(f"{a + 3}")
    g.update()
    say(a, 1)
    g.run(max(1, a), timeout=5)
    a += b
    return a[-1]
"""
CHANGED = [
    "1 -> 2", "1 -> 0", "2 -> 3", "2 -> 1", "a < 2 -> a <= 2", "not a < 2 -> not not a < 2",
    "g(a, b) -> g(b, a)", "b in g(a, b) -> b not in g(a, b)",
    "not a < 2 and b in g(a, b) -> not a < 2 or b in g(a, b)", "g.update() -> None",
    "g.run(max(1, a), timeout=5) -> None", "1 -> 2", "1 -> 0", "a += b -> a -= b",
    "-1 -> -2", "-1 -> -0",
]  # fmt: skip


def test_every_change_is_made_alone():
    found = mutants(SOURCE)
    assert sorted(mutant.change for mutant in found) == sorted(CHANGED)
    assert len({mutant.source for mutant in found}) == len(CHANGED)
    [turned] = [mutant for mutant in found if mutant.change.endswith("a <= 2")]
    assert "if not a <= 2 and b in g(a, b):" in turned.source
    assert (turned.number, turned.line) == (3, "if not a < 2 and b in g(a, b):")


def test_the_modules_and_their_tests_are_there():
    for module, tests in GUARDS.items():
        assert (REPOSITORY / module).is_file()
        assert all((REPOSITORY / "tests" / path).is_file() for path in tests)


def test_every_change_of_nothing_is_one_that_is_made():
    for module, listed in NOTHING.items():
        made = mutants((REPOSITORY / module).read_text())
        for part, changes, _ in listed:
            found = [mutant.change for mutant in made if part in mutant.line]
            assert [found.count(change) for change in changes] == [1] * len(changes), part


def test_the_tests_that_are_left_out_are_there():
    for test in SLOW:
        path, _, name = test.partition("::")
        assert f"def {name}" in (REPOSITORY / "tests" / path).read_text()
