"""The shape of the sources: who imports whom, how long things are, what never stands in them."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import REPOSITORY

from trainer.config.renamed import RENAMED
from trainer.config.sections import RunConfig

TOPS = ("data", "trainer", "launcher", "benchmarks")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# The rooms of trainer/ and data/, lowest first. A file imports from its room and those before it;
# a file of the root belongs to no room and comes before all of them.
ROOMS_OF = {
    "data": ["samples", "text", "readers", "prepared", "batches", "audit"],
    "trainer": [
        "config", "architectures", "processes", "kernels", "losses", "tuning", "models", "planning",
        "engine", "run_folder", "cluster", "generation", "evaluation", "run", "prediction", "sweep",
    ],
}  # fmt: skip
MAX_ROOT_FILES = {"trainer": 4, "data": 5}
APART = {"sweep": "run"}  # a sweep starts runs as processes and reads their folders

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"torch.load", "os.system", "os.popen", "eval", "exec"}
RUNS_CODE = {  # in the sandbox only, where it is what runs; nothing imports it
    "trainer.evaluation.suites.inside": {"eval", "exec"},
}
FORBIDDEN_METHODS = {"extractall"}  # of anything
FORBIDDEN_TRUE = {"shell", "trust_remote_code"}


def sources() -> dict[str, Path]:
    """Module name -> file, of every file of the rooms."""
    files = {}
    for room in TOPS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


SOURCES = sources()


@cache
def parsed(module: str) -> ast.Module:
    """Not where tests are collected: every process does that."""
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


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
        yield from (name for name in names if name.split(".")[0] in TOPS)


def level(module: str) -> int:
    """Place of a module's room; -1 at the root."""
    top, _, inner = module.partition(".")
    room = inner.split(".")[0]
    rooms = ROOMS_OF[top]
    return rooms.index(room) if room in rooms else -1


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
    assert {"data.readers", "trainer.evaluation", "trainer.run.loop"} <= set(SOURCES)
    report = "trainer.evaluation.functions.report"
    assert "trainer.evaluation.figures" in set(imported(parsed(report)))
    assert "trainer.run.training" in set(
        imported(parsed("trainer.run.commands"))
    )  # inside a function


@pytest.mark.parametrize(
    "module", sorted(name for name in SOURCES if name.split(".")[0] in ROOMS_OF)
)
def test_a_file_imports_only_from_its_own_room_and_those_before_it(module):
    top = module.split(".")[0]
    if module == top:
        assert not list(imported(parsed(module)))
        return
    ours = [name for name in imported(parsed(module)) if name.split(".")[0] == top]
    upward = [name for name in ours if level(name) > level(module)]
    assert not upward, f"{module} imports upward: {upward}"
    room = module.split(".")[1]
    apart = [name for name in ours if name.startswith(f"{top}.{APART.get(room, '-')}.")]
    assert not apart, f"{module} imports {apart}"


@pytest.mark.parametrize("top", sorted(ROOMS_OF))
def test_every_folder_is_a_listed_room_that_says_what_lives_there(top):
    folders = {path.parent.name for path in (REPOSITORY / top).glob("*/__init__.py")}
    bare = {path.parent.name for path in (REPOSITORY / top).glob("*/*.py")}
    assert bare == set(ROOMS_OF[top])
    assert folders | {"samples"} == bare | {"samples"}
    for room in ROOMS_OF[top]:
        if room != "samples":  # scripts and data; nothing imports it
            text = ast.get_docstring(parsed(f"{top}.{room}")) or ""
            assert text.count(".") >= 2, f"{top}/{room}: what lives there, what it may import"
    root = [path.name for path in (REPOSITORY / top).glob("*.py")]
    assert len(root) <= MAX_ROOT_FILES[top], root


def test_rooms_import_only_from_rooms_below_and_nothing_the_benchmarks():
    for module in SOURCES:
        rooms = {name.split(".")[0] for name in imported(parsed(module))}
        allowed = {
            "data": {"data"},
            "trainer": {"data", "trainer"},
            "launcher": {"data", "trainer", "launcher"},
            "benchmarks": set(TOPS),
        }
        assert rooms <= allowed[module.split(".")[0]], module


def test_modules_do_not_import_each_other_in_a_circle():
    below = {module: set(imported(parsed(module))) - {module} for module in SOURCES}
    while below:
        free = {module for module, names in below.items() if not names & below.keys()}
        assert free, f"a circle among {sorted(below)}"
        below = {module: names for module, names in below.items() if module not in free}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_file_stays_below_400_lines_and_a_function_within_60(module):
    assert len(SOURCES[module].read_text(encoding="utf-8").splitlines()) < MAX_FILE_LINES
    long = [f.name for f in functions(parsed(module)) if num_lines(f) > MAX_FUNCTION_LINES]
    assert not long


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_source_unpickles_unpacks_archives_runs_a_shell_or_trusts_remote_code(module):
    found = {fault.split(": ")[1] for fault in faults(parsed(module))}
    assert found == RUNS_CODE.get(module, set())


def test_nothing_imports_what_may_run_code():
    assert not [m for m in SOURCES if set(imported(parsed(m))) & RUNS_CODE.keys()]


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


KEYS = {
    f"{section}.{key}"
    for section, field in RunConfig.model_fields.items()
    for key in field.annotation.model_fields
}
_KEY = re.compile(rf"(?<![\w./{{-])(?:{'|'.join(RunConfig.model_fields)})\.([a-z_.]*[a-z_])")
_FILE_ENDINGS = {"json", "jsonl", "py", "tar", "safetensors", "safetensors.index.json", "onnx"}


def unknown_keys(tree: ast.AST) -> list[str]:
    """What texts name as a recipe's key and is none; {task.fields} is a column of rich."""
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    found = [match for text in texts if isinstance(text, str) for match in _KEY.finditer(text)]
    return [m[0] for m in found if m[0] not in KEYS and m[1] not in _FILE_ENDINGS]


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_every_recipe_key_that_a_text_names_exists(module):
    older = list(RENAMED) if module == "trainer.config.renamed" else []
    assert unknown_keys(parsed(module)) == older


def test_the_search_finds_a_key_that_does_not_exist():
    assert "data.seq_length" in KEYS
    assert unknown_keys(ast.parse("f'data.seq_length {n}; see data.sequence and data.json'")) == [
        "data.sequence"
    ]
