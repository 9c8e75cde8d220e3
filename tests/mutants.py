"""Change the program in one place at a time and see whether a test notices.

A comparison turned, a number off by one, an operator or two arguments swapped, `not` or a call
dropped, in a copy of the repository. Exit code 1 where fewer than 95% are caught. What survives is
a missing test. Changes of NOTHING give the same results; they are counted apart.
"""

import argparse
import ast
import contextlib
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

REPOSITORY = Path(__file__).resolve().parents[1]
GUARDS: dict[str, list[str]] = {  # modules where a wrong result is silent -> files of tests/
    "data/audit/near.py": ["data/audit/test_duplicates.py"],
    "data/batches/batch.py": ["data/batches/test_batch.py", "data/batches/test_language_batch.py"],
    "data/batches/loader.py": ["data/batches/test_loader.py"],
    "data/batches/order.py": ["data/batches/test_order.py"],
    "data/batches/packing.py": ["data/batches/test_packing.py"],
    "data/prepared/division.py": ["data/prepared/test_division.py"],
    "data/prepared/prepare.py": [
        "data/batches/test_sampling.py",
        "data/prepared/test_cache.py",
        "data/prepared/test_language_splits.py",
    ],
    "data/prepared/sources.py": ["data/prepared/test_cache.py", "data/prepared/test_division.py"],
    "data/prepared/splits.py": ["data/prepared/test_splits.py"],
    "data/text/chat.py": ["data/text/test_chat.py", "data/text/test_templates.py"],
    "data/text/templates.py": ["data/text/test_templates.py"],
    "data/text/tokenization.py": [
        "data/text/test_tokenization.py",
        "data/text/test_language_encoding.py",
        "data/batches/test_language_batch.py",
    ],
    "trainer/cluster/supervision.py": ["trainer/cluster/test_supervision.py"],
    "trainer/engine/optim.py": ["trainer/engine/test_optim.py"],
    "trainer/evaluation/functions/metrics.py": [
        "trainer/evaluation/test_classification.py",
        "trainer/evaluation/test_bootstrap.py",
    ],
    "trainer/evaluation/comparison/compare.py": ["trainer/evaluation/test_comparison.py"],
    "trainer/evaluation/comparison/runs.py": ["trainer/evaluation/test_comparison.py"],
    "trainer/evaluation/bootstrap.py": ["trainer/evaluation/test_bootstrap.py"],
    "trainer/evaluation/resampling.py": ["trainer/evaluation/test_bootstrap.py"],
    "trainer/evaluation/robustness/languages.py": ["trainer/evaluation/test_transformations.py"],
    "trainer/evaluation/robustness/layout.py": ["trainer/evaluation/test_transformations.py"],
    "trainer/evaluation/robustness/measures.py": ["trainer/evaluation/test_robustness.py"],
    "trainer/evaluation/robustness/names.py": ["trainer/evaluation/test_transformations.py"],
    "trainer/evaluation/robustness/statements.py": ["trainer/evaluation/test_transformations.py"],
    "trainer/evaluation/suites/answers.py": ["trainer/evaluation/suites/test_answers.py"],
    "trainer/evaluation/suites/scoring.py": ["trainer/evaluation/suites/test_scoring.py"],
    "trainer/kernels/focal.py": ["trainer/losses/test_losses.py"],
    "trainer/losses/loss.py": [
        "trainer/losses/test_losses.py",
        "trainer/kernels/test_linear_focal.py",
    ],
    "trainer/planning/memory.py": [
        "trainer/planning/test_memory.py",
        "trainer/planning/test_golden_plans.py",
    ],
    "trainer/prediction/changes.py": ["trainer/prediction/test_changes.py"],
    "trainer/prediction/extraction.py": ["trainer/prediction/test_extraction.py"],
    "trainer/prediction/fingerprints.py": ["trainer/prediction/test_fingerprints.py"],
    "trainer/prediction/foreign.py": ["trainer/prediction/test_formats.py"],
    "trainer/prediction/tree.py": ["trainer/prediction/test_tree.py"],
    "trainer/prediction/walking.py": ["trainer/prediction/test_walking.py"],
    "trainer/processes/ranks.py": ["trainer/processes/test_launch_environment.py"],
    "trainer/run_folder/checkpoint.py": ["trainer/run_folder/test_checkpoint.py"],
    "trainer/evaluation/statistics.py": ["trainer/evaluation/test_statistics.py"],
    "trainer/evaluation/suites/asking.py": ["trainer/evaluation/suites/test_asking.py"],
    "trainer/evaluation/suites/recode.py": ["trainer/evaluation/suites/test_recode.py"],
    "trainer/evaluation/suites/security.py": ["trainer/evaluation/suites/test_security.py"],
}
SLOW = [  # tests of those files that are left out: they take seconds and are about whole processes
    "data/prepared/test_cache.py::test_a_build_that_is_killed_leaves_no_entry",
    "data/prepared/test_cache.py::test_a_comment_in_the_sources_shares_the_entry",
    "data/prepared/test_cache.py::test_processes_that_ask_at_once_build_one_entry",
    "trainer/cluster/test_supervision.py::test_a_launcher_that_says_0_is_not_believed",
    "trainer/evaluation/test_bootstrap.py::test_the_interval_covers_the_true_auc",
    "trainer/evaluation/test_comparison.py::test_a_comparison_loads_no_torch",
    "trainer/evaluation/test_classification.py::test_importing_the_evaluation_loads_no_heavy",
    "trainer/kernels/test_linear_focal.py::test_the_peak_memory_of_a_process",
    "trainer/run_folder/test_checkpoint.py::test_a_kill_at_every_writing_call",
]
_ROUNDED = (
    "abs((again or 0.0) - (said or 0.0)) > _ROUNDING -> "
    "abs((again or 0.0) - (said or 0.0)) >= _ROUNDING"
)
_EFFORT = "a bound of effort: any number near it will do"
# module -> (part of a line, its changes, why none of them changes a result)
NOTHING: dict[str, list[tuple[str, list[str], str]]] = {
    "data/batches/batch.py": [
        ("width = -(-max(1, ", ["1 -> 2"], "both are rounded up to 8"),
        ("width - used_B], axis=1).reshape(-1)", ["-1 -> -2"], "numpy takes any negative number"),
        ("row_ends_B, 0)", ["0 -> 1", "0 -> -1"], "values in the padding are overwritten"),
        ("np.cumsum(num_examples_B), -1)", ["-1 -> -2"], "any negative number marks padding"),
        ("mask = mask_BT.reshape(-1)", ["-1 -> -2"], "numpy takes any negative number as -1"),
    ],
    "data/batches/loader.py": [
        ("rank_micro_batches(whole, 0, ", ["0 -> 1", "0 -> -1"], "the epoch has one step"),
    ],
    "data/batches/order.py": [
        ("for p in batch), default=0)", ["0 -> 1", "0 -> -1"], "without rows it is not used"),
    ],
    "data/text/templates.py": [
        ("if span.supervised), default=0)", ["0 -> 1", "0 -> -1"], "none is supervised then"),
        ("template.question.format(instruction=users[0])", ["0 -> -1"], "there is one user turn"),
    ],
    "data/text/tokenization.py": [
        ("TOKENS_FORMAT = 5", ["5 -> 6", "5 -> 4"], "data prepared under another are made anew"),
        ("lengths = np.zeros(1, np.int32)", ["1 -> 2"], "one 0 and two have the same statistics"),
        ("_BLOCK = ", ["65536 -> 65537", "65536 -> 65535"], "blocks bound memory alone"),
    ],
    "trainer/losses/loss.py": [
        ("torch.where(labelled_S, targets_S, 0)", ["0 -> 1"], "a row of weight 0 has any class"),
    ],
    "trainer/prediction/changes.py": [
        ("_EVERY = ", ["10 -> 11", "9 -> 10", "9 -> 8"], "no file has so many lines"),
    ],
    "trainer/prediction/fingerprints.py": [
        ("_LINES = ", ["4096 -> 4097", "4096 -> 4095"], "blocks bound memory alone"),
    ],
    "trainer/prediction/foreign.py": [
        ("_MOST_BYTES = ", ["512 -> 513", "512 -> 511", "20 -> 21", "20 -> 19"], _EFFORT),
    ],
    "trainer/prediction/tree.py": [
        ("_CHUNK_CHARACTERS = ", ["1 -> 2", "24 -> 25", "24 -> 23"], _EFFORT),
    ],
    "trainer/prediction/walking.py": [
        ("_MOST_IGNORE_BYTES = ", ["1 -> 2", "20 -> 21", "20 -> 19"], _EFFORT),
    ],
    "trainer/run_folder/checkpoint.py": [
        ("_CHUNK = 1 << 20", ["1 -> 2", "20 -> 21", "20 -> 19"], "all is written in any pieces"),
    ],
    "trainer/evaluation/statistics.py": [
        (
            "return correlation(x_M, y_M)",
            ["correlation(x_M, y_M) -> correlation(y_M, x_M)"],
            "a correlation is symmetric",
        ),
    ],
    "trainer/evaluation/suites/recode.py": [
        ("rows = _rows(paths[0])", ["0 -> 1", "0 -> -1"], "there is one"),
        ("_MOST_BYTES = ", ["64 -> 65", "64 -> 63", "20 -> 19", "20 -> 21"], _EFFORT),
    ],
    "trainer/kernels/focal.py": [
        ("if gamma == 0:", ["0 -> -1"], "by the formula q^0 = 1 gives the same"),
    ],
    "trainer/evaluation/comparison/compare.py": [
        ("first, groups = runs[0]", ["0 -> 1", "0 -> -1"], "paired runs have the same groups"),
        ("replace(predictors[0], ", ["0 -> 1", "0 -> -1"], "labels are those of all"),
        (
            "if a is None or b is None",
            ["a is None or b is None -> a is None and b is None"],
            "with the same labels both are undefined",
        ),
    ],
    "trainer/evaluation/comparison/runs.py": [
        ("> _ROUNDING", [_ROUNDED], "no value differs by exactly this"),
    ],
    "trainer/evaluation/robustness/languages.py": [
        (
            "if len(source) > _MOST_BYTES",
            ["len(source) > _MOST_BYTES -> len(source) >= _MOST_BYTES"],
            _EFFORT,
        ),
        (
            "_MOST_BYTES, _MOST_NODES, _MOST_LEVELS = ",
            [f"{n} -> {n + by}" for n in (50_000, 20_000, 500) for by in (1, -1)],
            _EFFORT,
        ),
        (
            "root.descendant_count > _MOST_NODES",
            ["root.descendant_count > _MOST_NODES -> root.descendant_count >= _MOST_NODES"],
            _EFFORT,
        ),
        ("_LEAST_BYTES = 30", ["30 -> 31", "30 -> 29"], _EFFORT),
        ("(offset + 400)", ["400 -> 401", "400 -> 399"], _EFFORT),
    ],
    "trainer/evaluation/robustness/layout.py": [
        (
            "any(start < place < end ",
            ["start < place < end -> start <= place < end"],
            "a text at the start of a line has no indent before it",
        ),
        ('rfind(b"\\n", 0, ', ["0 -> 1"], "before a line end at the start there is no indent"),
    ],
    "trainer/evaluation/robustness/statements.py": [
        (
            "rng.randrange(2, 100)",
            ["2 -> 1", "2 -> 3", "100 -> 101", "100 -> 99"],
            "any number that is not below 0 will do",
        ),
        (
            "names <= own and",
            ["names <= own -> names < own"],
            "two that change places have names apart, so neither has all",
        ),
    ],
    "trainer/evaluation/functions/metrics.py": [
        ("mcc_K = np.round(", ["12 -> 13", "12 -> 11"], "unlike values differ by more"),
    ],
}
_PAIRS = [
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn),
    (ast.Is, ast.IsNot), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.And, ast.Or),
]  # fmt: skip
_TURNED = dict(_PAIRS) | {new: old for old, new in _PAIRS}
_TEXTS_AND_WAITS = {"say", "print", "sleep"}  # calls that no result depends on
_SYMMETRIC = {
    "_both_vary",
    "broadcast",
    "intersect1d",
    "kendalltau",
    "max",
    "maximum",
    "min",
    "minimum",
}


def _called(tree: ast.AST) -> str:
    """The last name of what a call calls."""
    if not isinstance(tree, ast.Call):
        return ""
    return getattr(tree.func, "attr", "") or getattr(tree.func, "id", "")


def _is_int(tree: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(tree, ast.Constant) and type(tree.value) is int


def _is_symmetric(call: ast.Call) -> bool:
    has_indices = any(keyword.arg == "return_indices" for keyword in call.keywords)
    return _called(call) in _SYMMETRIC and not has_indices


def _is_wait(tree: object) -> bool:
    return isinstance(tree, ast.keyword) and tree.arg == "timeout"


def sites(tree: ast.AST) -> Iterator[tuple[ast.expr, str, object]]:
    """Every node that can be changed, a field and its new value; no messages, no annotations."""
    if isinstance(tree, ast.Raise | ast.JoinedStr):
        return
    if isinstance(tree, ast.Expr) and _called(tree.value) in _TEXTS_AND_WAITS:
        return
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub) and _is_int(tree.operand):
        yield tree, "operand", ast.Constant(tree.operand.value + 1)
        yield tree, "operand", ast.Constant(tree.operand.value - 1)
        return
    for field, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            is_read = field not in ("annotation", "returns") and not _is_wait(child)
            if is_read and isinstance(child, ast.AST):
                yield from sites(child)
    if isinstance(tree, ast.Compare) and type(tree.ops[0]) in _TURNED:
        yield tree, "ops", [_TURNED[type(tree.ops[0])](), *tree.ops[1:]]
    elif isinstance(tree, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(tree.op) in _TURNED:
        yield tree, "op", _TURNED[type(tree.op)]()
    elif _is_int(tree):
        yield tree, "value", tree.value + 1
        yield tree, "value", tree.value - 1
    elif isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not):
        yield tree, "operand", ast.UnaryOp(ast.Not(), tree.operand)
    elif isinstance(tree, ast.Call) and len(tree.args) > 1 and not _is_symmetric(tree):
        yield tree, "args", [tree.args[1], tree.args[0], *tree.args[2:]]
    elif isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Call):
        yield tree, "value", ast.Constant(None)


@dataclass(frozen=True)
class Mutant:
    """A module with one change."""

    number: int
    line: str
    change: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """The mutant of every site."""
    found, tree, lines = [], ast.parse(source), source.splitlines()
    for node, field, value in list(sites(tree)):
        before, old = ast.unparse(node), getattr(node, field)
        setattr(node, field, value)
        line, change = lines[node.lineno - 1].strip(), f"{before} -> {ast.unparse(node)}"
        if ast.unparse(node) != before:  # two equal arguments may change places
            found.append(Mutant(node.lineno, line, change, ast.unparse(tree)))
        setattr(node, field, old)
    return found


def reason(module: str, mutant: Mutant) -> str:
    """Why a mutant gives the same results; "" where it does not."""
    listed = NOTHING.get(module, [])
    found = (w for part, changes, w in listed if part in mutant.line and mutant.change in changes)
    return next(found, "")


def passes(folder: Path, tests: list[str], seconds: float) -> bool:
    """Whether the tests pass in a child that inherits the heavy imports."""
    child = multiprocessing.get_context("fork").Process(target=_test, args=(folder, tests))
    child.start()
    child.join(seconds)
    child.kill()  # a loop without an end is noticed, too
    child.join()
    return child.exitcode == 0


def _test(folder: Path, tests: list[str]) -> None:
    import pytest
    from hypothesis import Phase, settings

    # A failing example needs no smaller one.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("unshrunk", deadline=None, database=None, phases=phases)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    printed = os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
    options += ["--hypothesis-profile", "unshrunk"]
    options += [f"--deselect=tests/{test}" for test in SLOW]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is loaded before
    code = pytest.main([*options, *(f"tests/{path}" for path in tests)])
    if sys.dont_write_bytecode is False:
        packages = (name for name, module in list(sys.modules.items()) if _is_installed(module))
        Path("loaded.txt").write_text("\n".join(packages))
    os._exit(code)


def _is_installed(module: object) -> bool:
    return "site-packages" in (getattr(module, "__file__", None) or "")


def prepared(folder: Path, tests: list[str]) -> float:
    """Run the tests of the unchanged copy and load the packages they use; seconds for a change."""
    sys.dont_write_bytecode, begin = False, time.monotonic()
    assert passes(folder, tests, 600), (folder / "printed.txt").read_text()[-3000:]
    sys.dont_write_bytecode, seconds = True, time.monotonic() - begin
    for name in (folder / "loaded.txt").read_text().split():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return 20 + 5 * seconds


def survivors(folder: Path, module: str, chosen: list[Mutant]) -> list[Mutant]:
    """The mutants of a module of the copy that no test notices; the module is put back."""
    path, found = folder / module, []
    source, seconds = path.read_text(), prepared(folder, GUARDS[module])
    for mutant in chosen:
        path.write_text(mutant.source)
        if passes(folder, GUARDS[module], seconds):
            found.append(mutant)
    path.write_text(source)
    return found


def main(arguments: list[str]) -> int:
    """Sample, run and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=list(GUARDS), metavar="MODULE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=8, help="mutants of a module")
    given = parser.parse_args(arguments)
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}  # no threads to fork
    sys.path.pop(0)  # tests/ of this repository
    importlib.import_module("transformers.modeling_utils")  # and torch: once, for all children
    survived = total = nothing = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(".*", "runs"))
        for module in given.modules:
            every = mutants((folder / module).read_text())
            drawn = random.Random(given.seed).sample(every, min(given.each, len(every)))
            same = [mutant for mutant in drawn if reason(module, mutant)]
            chosen = [mutant for mutant in drawn if mutant not in same]
            found = survivors(folder, module, chosen)
            print(f"{module}: {len(chosen) - len(found)} of {len(chosen)} caught")
            for mutant in found:
                print(f"  survived, line {mutant.number}: {mutant.change}")
            for mutant in same:
                why = reason(module, mutant)
                print(f"  changes nothing, line {mutant.number}: {mutant.change} ({why})")
            sys.stdout.flush()
            survived, total = survived + len(found), total + len(chosen)
            nothing += len(same)
    print(f"{total - survived} of {total} caught, {1 - survived / total:.0%}; besides", end=" ")
    print(f"{nothing} that change nothing")
    return int(survived > total / 20)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
