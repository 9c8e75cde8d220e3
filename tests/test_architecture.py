"""The shape of the sources: who imports whom, how long things are, what never stands in them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

ROOMS = ("data", "trainer", "launcher", "benchmarks")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Lowest first. A module imports from its own layer and those below it; a name stands for the whole
# package under it, and the longest name that fits decides. A new module belongs in one of them.
LAYERS = [
    ["data.errors", "data.config", "data.records", "data.samples"],
    ["data.packing", "data.order", "data.sampling", "data.table", "data.chat", "data.tokenizer"],
    ["data.readers", "data.splits", "data.tokenization", "data.templates"],
    ["data.audit", "data.batch", "data.cache", "data.language"],
    ["data.build"],
    ["data.prepare"],
    ["data.loader"],
    ["trainer.errors", "trainer.config", "trainer.distributed", "trainer.capabilities"],
    ["trainer.shapes"],
    ["trainer.targets"],
    ["trainer.recipe", "trainer.preparation"],
    ["trainer.devices", "trainer.data_facts", "trainer.cluster"],
    ["trainer.memory"],
    ["trainer.job"],
    ["trainer.plan"],
    ["trainer.plan_change"],
    ["trainer.plan_view"],
    ["trainer.kernels"],
    ["trainer.losses"],
    ["trainer.models", "trainer.tuning"],
    ["trainer.tasks", "trainer.data_report"],
    ["trainer.optim", "trainer.checkpoint", "trainer.moments", "trainer.state"],
    ["trainer.finite", "trainer.peers", "trainer.stopping", "trainer.watchdog"],
    ["trainer.engine", "trainer.run_folder"],
    ["trainer.metrics", "trainer.export", "trainer.resume", "trainer.build"],
    ["trainer.cluster.supervision"],
    ["trainer.evaluation"],
    ["trainer.loop"],
    ["trainer.session", "trainer.banner", "trainer.merge"],
    ["trainer.planned_run"],
    ["trainer.run"],
    ["trainer.sweep"],
    ["launcher"],
    ["benchmarks"],
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"torch.load", "os.system", "os.popen", "eval", "exec"}
FORBIDDEN_METHODS = {"extractall"}  # of anything
FORBIDDEN_TRUE = {"shell", "trust_remote_code"}


def sources() -> dict[str, Path]:
    """Module name -> file, of every file of the rooms."""
    files = {}
    for room in ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


SOURCES = sources()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of ours that a file imports anywhere: at its top, in functions, for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            # from trainer.evaluation import figures: figures is a module, write_report is not
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in SOURCES else str(node.module) for name in whole]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ROOMS)


def level(module: str) -> int | None:
    """Layer of a module; None where neither it nor a package above it is listed."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in LEVELS:
            return LEVELS[name]
    return None


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(tree: ast.AST) -> Iterator[str]:
    """What no source of ours may hold, with its line."""
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name in FORBIDDEN_IMPORTS]
        elif isinstance(node, ast.ImportFrom):
            found = [str(node.module)] if node.module in FORBIDDEN_IMPORTS else []
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            is_method = name.split(".")[-1] in FORBIDDEN_METHODS
            found = [name] if name in FORBIDDEN_CALLS or is_method else []
            found += [
                f"{keyword.arg}=True"
                for keyword in node.keywords
                if keyword.arg in FORBIDDEN_TRUE and can_be_true(keyword.value)
            ]
        elif isinstance(node, ast.Dict):
            found = [
                f"{key.value}=True"
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
                and key.value in FORBIDDEN_TRUE
                and can_be_true(value)
            ]
        yield from (f"line {getattr(node, 'lineno', 0)}: {name}" for name in found)


def can_be_true(node: ast.AST) -> bool:
    """True itself, or a name whose value the source does not show; a tuple is a sample's text."""
    if isinstance(node, ast.Constant):
        return bool(node.value)
    return not isinstance(node, ast.Tuple)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def test_the_sources_are_found():
    assert {"data.readers", "trainer.evaluation", "trainer.loop", "launcher.train"} <= set(SOURCES)
    assert "trainer.evaluation.figures" in set(imported(TREES["trainer.evaluation.report"]))
    assert "trainer.run" in set(imported(TREES["launcher.train"]))  # inside a function


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_imports_only_from_its_own_layer_or_lower_ones(module):
    if module in ROOMS:
        assert not list(imported(TREES[module]))
        return
    own = level(module)
    assert own is not None, f"{module} stands in no layer: add it to LAYERS"
    upward = [name for name in imported(TREES[module]) if (level(name) or 0) > own]
    assert not upward, f"{module} imports upward: {upward}"


def test_every_layer_names_something_that_exists():
    assert [name for name in LEVELS if name not in SOURCES] == []
    assert len(LEVELS) == sum(map(len, LAYERS))  # no name twice


def test_rooms_import_only_from_rooms_below_and_nothing_the_benchmarks():
    for module, tree in TREES.items():
        rooms = {name.split(".")[0] for name in imported(tree)}
        allowed = {
            "data": {"data"},
            "trainer": {"data", "trainer"},
            "launcher": {"data", "trainer", "launcher"},
            "benchmarks": set(ROOMS),
        }
        assert rooms <= allowed[module.split(".")[0]], module


def test_modules_do_not_import_each_other_in_a_circle():
    below = {module: set(imported(tree)) - {module} for module, tree in TREES.items()}
    while below:
        free = {module for module, names in below.items() if not names & below.keys()}
        assert free, f"a circle among {sorted(below)}"
        below = {module: names for module, names in below.items() if module not in free}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_file_stays_below_400_lines_and_a_function_within_60(module):
    assert len(SOURCES[module].read_text(encoding="utf-8").splitlines()) < MAX_FILE_LINES
    long = [f.name for f in functions(TREES[module]) if num_lines(f) > MAX_FUNCTION_LINES]
    assert not long


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_source_unpickles_unpacks_archives_runs_a_shell_or_trusts_remote_code(module):
    assert list(faults(TREES[module])) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", "pickle"),
        ("from marshal import loads", "marshal"),
        ("torch.load(path)", "torch.load"),
        ("archive.extractall(path)", "archive.extractall"),
        ("subprocess.run(command, shell=True)", "shell=True"),
        ("load(path, trust_remote_code=flag)", "trust_remote_code=True"),
        ("settings = {'trust_remote_code': True}", "trust_remote_code=True"),
    ],
)
def test_the_search_finds_what_it_forbids(code, found):
    assert list(faults(ast.parse(code))) == [f"line 1: {found}"]


@pytest.mark.parametrize(
    "code", ["load(trust_remote_code=False)", "x = 'pickle.loads(y)'", "model.eval()", "load(path)"]
)
def test_the_search_lets_pass_what_is_harmless(code):
    assert list(faults(ast.parse(code))) == []
