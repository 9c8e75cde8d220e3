"""Change the program in one place at a time and see whether a test notices.

A comparison turned, a number off by one, an operator or two arguments swapped, `not` or a call
dropped, in a copy of the repository. Exit code 1 where fewer than 95% are caught. What survives is
a missing test, or a change that changes nothing.
"""

import argparse
import ast
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
GUARDS: dict[str, list[str]] = {  # modules where a wrong result is silent -> files of tests/
    "data/audit/near.py": ["data/audit/test_duplicates.py"],
    "data/batches/batch.py": ["data/batches/test_batch.py", "data/batches/test_language_batch.py"],
    "data/batches/loader.py": ["data/batches/test_loader.py"],
    "data/batches/order.py": ["data/batches/test_order.py"],
    "data/batches/packing.py": ["data/batches/test_packing.py"],
    "data/prepared/prepare.py": [
        "data/batches/test_sampling.py",
        "data/prepared/test_cache.py",
        "data/prepared/test_language_splits.py",
    ],
    "data/prepared/splits.py": ["data/prepared/test_splits.py"],
    "data/text/chat.py": ["data/text/test_templates.py"],
    "data/text/templates.py": ["data/text/test_templates.py"],
    "data/text/tokenization.py": [
        "data/text/test_tokenization.py",
        "data/batches/test_language_batch.py",
    ],
    "trainer/cluster/supervision.py": ["trainer/cluster/test_supervision.py"],
    "trainer/engine/optim.py": ["trainer/engine/test_optim.py"],
    "trainer/evaluation/functions/metrics.py": [
        "trainer/evaluation/test_classification.py",
        "trainer/evaluation/test_bootstrap.py",
    ],
    "trainer/evaluation/resampling.py": ["trainer/evaluation/test_bootstrap.py"],
    "trainer/kernels/focal.py": ["trainer/losses/test_losses.py"],
    "trainer/losses/loss.py": [
        "trainer/losses/test_losses.py",
        "trainer/kernels/test_linear_focal.py",
    ],
    "trainer/planning/memory.py": [
        "trainer/planning/test_golden_plans.py",
        "trainer/planning/test_plan.py",
    ],
    "trainer/processes/ranks.py": ["trainer/processes/test_launch_environment.py"],
    "trainer/run_folder/checkpoint.py": ["trainer/run_folder/test_checkpoint.py"],
    "trainer/sweep/statistics.py": ["trainer/sweep/test_statistics.py"],
}
_PAIRS = [
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn),
    (ast.Is, ast.IsNot), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.And, ast.Or),
]  # fmt: skip
_TURNED = dict(_PAIRS) | {new: old for old, new in _PAIRS}


def sites(tree: ast.AST) -> Iterator[tuple[ast.expr, str, object]]:
    """Every node that can be changed, a field and its new value; no messages, no annotations."""
    if isinstance(tree, ast.Raise | ast.JoinedStr):
        return
    for field, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and field not in ("annotation", "returns"):
                yield from sites(child)
    if isinstance(tree, ast.Compare) and type(tree.ops[0]) in _TURNED:
        yield tree, "ops", [_TURNED[type(tree.ops[0])](), *tree.ops[1:]]
    elif isinstance(tree, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(tree.op) in _TURNED:
        yield tree, "op", _TURNED[type(tree.op)]()
    elif isinstance(tree, ast.Constant) and type(tree.value) is int:
        yield tree, "value", tree.value + 1
        yield tree, "value", tree.value - 1
    elif isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not):
        yield tree, "operand", ast.UnaryOp(ast.Not(), tree.operand)
    elif isinstance(tree, ast.Call) and len(tree.args) > 1:
        yield tree, "args", [tree.args[1], tree.args[0], *tree.args[2:]]
    elif isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Call):
        yield tree, "value", ast.Constant(None)


def mutants(source: str) -> list[tuple[str, str]]:
    """(what changed, the changed source) of every site."""
    found, tree = [], ast.parse(source)
    for node, field, value in list(sites(tree)):
        before, old = ast.unparse(node), getattr(node, field)
        setattr(node, field, value)
        found.append((f"{node.lineno}: {before} -> {ast.unparse(node)}", ast.unparse(tree)))
        setattr(node, field, old)
    return found


def passes(folder: Path, tests: list[str]) -> bool:
    """Whether the tests pass in a child that inherits the heavy imports."""
    child = multiprocessing.get_context("fork").Process(target=_test, args=(folder, tests))
    child.start()
    child.join(300)
    child.kill()  # a loop without an end is noticed, too
    child.join()
    return child.exitcode == 0


def _test(folder: Path, tests: list[str]) -> None:
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    printed = os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is loaded before
    os._exit(pytest.main([*options, *(f"tests/{path}" for path in tests)]))


def survivors(folder: Path, module: str, chosen: list[tuple[str, str]]) -> list[str]:
    """The changes of a module of the copy that no test notices; the module is put back."""
    path, found = folder / module, []
    source = path.read_text()
    assert passes(folder, GUARDS[module]), (folder / "printed.txt").read_text()[-3000:]
    for change, text in chosen:
        path.write_text(text)
        if passes(folder, GUARDS[module]):
            found.append(change)
    path.write_text(source)
    return found


def main(arguments: list[str]) -> int:
    """Sample, run and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=list(GUARDS), metavar="MODULE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=6, help="mutants of a module")
    given = parser.parse_args(arguments)
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}  # no threads to fork
    sys.dont_write_bytecode = True
    sys.path.pop(0)  # tests/ of this repository
    importlib.import_module("transformers.modeling_utils")  # and torch: once, for all children
    survived = total = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(".*", "runs"))
        for module in given.modules:
            every = mutants((folder / module).read_text())
            chosen = random.Random(given.seed).sample(every, min(given.each, len(every)))
            found = survivors(folder, module, chosen)
            survived, total = survived + len(found), total + len(chosen)
            lines = [f"{module}: {len(chosen) - len(found)} of {len(chosen)} caught"]
            print(*lines, *found, sep="\n  survived, line ", flush=True)
    print(f"{total - survived} of {total} caught, {1 - survived / total:.0%}")
    return int(survived > total / 20)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
