"""The pages: every command is one that runs, every link and key exists, every key is explained.

A command runs in-process with tiny data and a tiny model in place of MY_DATA, MY_MODEL and so on.
Training itself is proven by test_recipes.py and the tests of runs; here its recipe is planned and
its data prepared, which reads and checks both. Commands for several GPUs or hosts, which this
machine has not, are parsed by the launcher's own parser, and their training command is treated
as any other.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, sample_rows, write_rows
from rank_pool import run_ranks
from recipe_cases import write_model, write_records
from test_architecture import ROOMS_OF
from test_vulnerability_recipes import CASES, devign

from data.config import DataConfig
from data.readers import read_language, read_records
from trainer.config.recipe import load_run_config
from trainer.config.renamed import RENAMED
from trainer.config.sections import RunConfig
from trainer.processes.hostfile import read_hostfile
from trainer.run.passport import original_run

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "*/README.md", "ds_configs/*.md", "data/samples/*.md")
    for path in REPOSITORY.glob(pattern)
)
FIRST_SCREEN = 60  # lines
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SYSTEM = {"apt-get", "export", "python3", "ssh-copy-id"}  # not ours: read, not run
SIZES = ("1B", "3B", "7B", "16B")
LANGUAGES = {"bash", "json", "python", "sh", "yaml"}  # sh: a script with commands in it
KEYS = {
    f"{section}.{key}"
    for section, field in RunConfig.model_fields.items()
    for key in field.annotation.model_fields
}


def commands(page: Path) -> list[str]:
    """Each command of a page's bash blocks on one line, and those of ours in its scripts."""
    found: list[str] = []
    for language, block in FENCE.findall(page.read_text()):
        assert language in LANGUAGES, f"{page}: ```{language}"
        lines = block.replace("\\\n", " ").splitlines()
        lines = [line for line in lines if line.strip() and not line.startswith("#")]
        if language == "bash":
            found += lines
        elif language == "yaml":
            yaml.safe_load(block)
        elif language == "sh":
            subprocess.run(["bash", "-n"], input=block, text=True, check=True)
            found += [line for line in lines if "launcher/" in line]
    return found


COMMANDS = [(page, line) for page in PAGES for line in commands(page)]


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_data, tiny_model) -> dict[str, str]:
    """What replaces each placeholder."""
    root = tmp_path_factory.mktemp("places")
    chats, texts = root / "chats", root / "texts"
    write_records(chats, "chat")
    write_records(texts, "text")
    write_records(root / "alpaca", "alpaca")
    chat_model = write_model(root / "chat", REPOSITORY / "recipes" / "qwen2_5_coder_7b.json")
    (root / "chats.jsonl").write_bytes((chats / "train.jsonl").read_bytes() * 3)
    (root / "alpaca.json").write_bytes((root / "alpaca" / "train.jsonl").read_bytes())
    devign(root / "devign.json", CASES)
    write_rows(
        root / "suites.jsonl", [{"func1": "a", "func2": "b", "label": n % 2} for n in range(4)]
    )
    (root / "outputs.json").write_text(json.dumps([["Yes"], ["No"], ["no"], ["yes"]]))
    other = write_rows(root / "other.jsonl", sample_rows("test", 20))
    return {
        "MY_CHATS.jsonl": str(root / "chats.jsonl"),
        "MY_COMMITS": str(chats),
        "MY_DEVIGN.json": str(root / "devign.json"),
        "MY_INSTRUCTIONS.json": str(root / "alpaca.json"),
        "MY_OTHER.jsonl": str(other),
        "MY_NEW_FOLDER": str(root / "new"),
        "MY_TEXTS": str(texts),
        "MY_SUITES": str(root / "suites.jsonl"),
        "MY_OUTPUTS.json": str(root / "outputs.json"),
        "MY_SOURCES": str(REPOSITORY / "data" / "text"),
        "MY_DATA": str(tiny_data),
        "MY_CONFIG": str(tiny_model),
        "MY_TOKENIZER": str(tiny_model),
        "MY_MODEL": str(chat_model),
        **{f"MY_{size}": str(shutil.copytree(tiny_model, root / size)) for size in SIZES},
        "RECIPE": str(REPOSITORY / "recipes" / "quickstart.yaml"),
    }


def test_the_pages_and_their_commands_are_found():
    names = {page.name for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SCALING.md", "functions.md"} <= names
    assert len(COMMANDS) > 40
    files = {path.name for path in (REPOSITORY / "launcher").glob("*.py")}
    shown = {line.split("launcher/")[1].split()[0] for _, line in COMMANDS if "launcher/" in line}
    assert shown == files - {"__init__.py", "command.py"}


def test_the_first_screen_has_everything_a_newcomer_needs():
    lines = (REPOSITORY / "README.md").read_text().splitlines()[:FIRST_SCREEN]
    text = "\n".join(lines)
    for needed in ("make quickstart", "quickstart.svg", "MY_DATA", "MY_CHATS", "--hostfile", "TRL"):
        assert needed in text
    assert lines[0] == "# focaltune"


@pytest.mark.usefixtures("stock_pool")
@pytest.mark.parametrize(
    ("page", "line"),
    COMMANDS,
    ids=[f"{page.stem}-{number}" for number, (page, _) in enumerate(COMMANDS)],
)
def test_a_command_runs_as_printed(page, line, places, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    shutil.rmtree(places["MY_NEW_FOLDER"], ignore_errors=True)
    for name, place in places.items():
        line = re.sub(rf"\b{re.escape(name)}\b", place, line)
    assert "MY_" not in line, "a placeholder that has no stand-in"
    words = shlex.split(line, comments=True)
    if words[0] in ("srun", *SYSTEM) and "launcher/" in line:
        words = words[next(i for i, word in enumerate(words) if word.startswith(".venv/")) :]
    if words[0] in SYSTEM:
        return
    if words[0] == "make":
        check_make(words[1:])
        return
    assert words[0].startswith(".venv/bin/"), f"{page.name}: runs only after an activation: {line}"
    of_run = {f"launcher/{name}.py" for name in ("evaluate", "export", "compare", "predict")}
    if {*of_run, "--repeat"} & set(words):
        shutil.copytree(finished, tmp_path / "run")
    check_ours(Path(words[0]).name, words[1:], tmp_path, monkeypatch)
    capsys.readouterr()


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in words if "=" not in word and word not in targets] == []


def check_ours(
    program: str, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command of .venv/bin."""
    if program in ("deepspeed", "torchrun"):
        words = launched(program, words)
    elif program != "python":  # pip, tensorboard and the like come with the dependencies
        assert program in ("pip", "tensorboard", "pytest")
        return
    assert (REPOSITORY / words[0]).is_file(), words[0]
    if not words[0].startswith("launcher/"):
        return
    name, arguments = Path(words[0]).stem, words[1:]
    if "--help" in arguments or "--version" in arguments:
        with pytest.raises(SystemExit) as ended:
            import_module(f"launcher.{name}").main(arguments)
        assert not ended.value.code
        return
    CHECKS[name](arguments, folder, monkeypatch)


def launched(program: str, words: list[str]) -> list[str]:
    """The script and its arguments that a launcher starts, read by its own parser."""
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(words)
        return [given.training_script, *given.training_script_args]
    from deepspeed.launcher.runner import parse_args

    given = parse_args(words)
    if "--hostfile" in words:
        assert read_hostfile(Path(given.hostfile))
    return [given.user_script, *given.user_args]


Check = Callable[[list[str], Path, pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_recipe) -> Path:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("finished")
    words = [str(tiny_recipe), f"run.output_dir={folder / 'run'}", "optim.max_steps=1"]
    words += ["optim.warmup_steps=0", "eval.interval=epoch", "save.interval=epoch"]
    assert run_ranks(words, 1, folder / "printed") == [0], (folder / "printed").read_text()
    return folder / "run"


def check_train(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data is prepared and its model planned; steps are proven by test_recipes.py."""
    from launcher.plan import main as plan

    if arguments[0] == "--repeat":  # test_passport.py repeats one
        original_run(folder / "run", arguments[2:])
        return
    check_prepare(arguments, folder, monkeypatch)
    assert plan(arguments) == 0


def check_prepare(arguments: list[str], folder: Path, _: pytest.MonkeyPatch) -> None:
    from launcher.prepare import main as prepare

    assert prepare([*arguments, f"run.output_dir={folder / 'run'}"]) == 0


def check_plan(arguments: list[str], _: Path, __: pytest.MonkeyPatch) -> None:
    from launcher.plan import main as plan

    assert plan(arguments) == 0


def check_doctor(arguments: list[str], _: Path, __: pytest.MonkeyPatch) -> None:
    """Of several hosts, which do not exist here, the hostfile and the recipe are read."""
    from launcher.doctor import main as doctor

    if "--hostfile" not in arguments:
        assert doctor(arguments) in (0, 5)  # 5: this machine may have a fault
        return
    place = arguments.index("--hostfile")
    assert read_hostfile(Path(arguments[place + 1]))
    if rest := arguments[:place] + arguments[place + 2 :]:
        load_run_config(Path(rest[0]), rest[1:])


def check_sweep(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid is made and every cell's recipe checked; tests/launcher/test_sweep.py trains one."""
    from launcher.sweep import main as sweep

    started: list[object] = []
    monkeypatch.setattr("trainer.sweep.sweep.run_sweep", lambda *given: started.append(given))
    recipe, *rest = arguments
    assert sweep([recipe, f"run.output_dir={folder / 'sweep'}", *rest]) == 0
    assert len(started) == 1


def check_supervise(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything up to the first start; tests/cluster has the hosts."""
    from launcher.supervise import main as supervise

    started: list[object] = []
    monkeypatch.setattr(
        "trainer.cluster.supervision.supervise", lambda *given: bool(started.append(given))
    )
    assert supervise(arguments) == 0
    assert len(started) == 1
    rest = arguments[arguments.index("--") + 2 :]
    check_train(rest, folder, monkeypatch)


def check_run_folder(name: str) -> Check:
    def check(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the run of one step; test_language_run.py has runs of language, parsed here."""
        path, *rest = arguments
        of_run, inner, _ = path.partition("/model")
        recipes = {}
        for recipe in (REPOSITORY / "recipes").rglob("*.yaml"):
            values = yaml.safe_load(recipe.read_text())
            recipes[values["run"]["output_dir"]] = values
        if "task" in recipes[of_run]:  # a run that a recipe leaves
            monkeypatch.setattr("launcher.command.run_command", lambda action: 0)
        assert import_module(f"launcher.{name}").main([f"{folder}/run{inner}", *rest]) == 0

    return check


def check_compare(arguments: list[str], folder: Path, _: pytest.MonkeyPatch) -> None:
    """With the run of one step, once for each run that is named."""
    from launcher.compare import main as compare

    names = [argument for argument in arguments if argument.startswith("runs/")]
    for name in names:
        shutil.copytree(folder / "run", folder / name)
    assert compare([str(folder / word) if word in names else word for word in arguments]) == 0


def check_suite(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's is parsed here; test_suite_run.py has models that write."""
    from launcher.suite import main as suite

    if arguments[0].startswith("runs/"):
        monkeypatch.setattr("launcher.command.run_command", lambda action: 0)
    assert suite([*arguments, "--output", str(folder / "suites")]) == 0


CHECKS: dict[str, Check] = {
    "suite": check_suite,
    "chat": check_run_folder("chat"),
    "compare": check_compare,
    "train": check_train,
    "prepare": check_prepare,
    "plan": check_plan,
    "doctor": check_doctor,
    "sweep": check_sweep,
    "supervise": check_supervise,
    "evaluate": check_run_folder("evaluate"),
    "export": check_run_folder("export"),
    "predict": check_run_folder("predict"),
}


def links(page: Path) -> Iterator[str]:
    text = FENCE.sub("", page.read_text())
    yield from re.findall(r"\]\(([^)\s]+)\)", text)
    yield from re.findall(r'src="([^"]+)"', text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_path_and_key_of_a_page_exists(page):
    text = page.read_text()
    for link in links(page):
        if not link.startswith(("http:", "https:")):
            target, _, anchor = link.partition("#")
            assert not target or (page.parent / target).exists(), link
            assert not anchor, f"{link}: anchors are not checked"
    named = re.findall(
        r"`((?:launcher|recipes|data|trainer|tests|benchmarks|ds_configs|hostfiles|docs)/[\w./-]*)`",
        text,
    )
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
    sections = "|".join(RunConfig.model_fields)
    keys = set(re.findall(rf"(?<![\w./-])((?:{sections})\.[a-z][a-z_]+)\b(?!\.\w)", text))
    older = RENAMED.keys() if page.name == "CHANGELOG.md" else set()
    assert keys - {"data.json", "log.jsonl", "run.json", "model.onnx"} - KEYS - older == set()


def test_an_example_of_a_record_is_one_that_is_read(tmp_path):
    blocks = [
        block
        for page in PAGES
        for language, block in FENCE.findall(page.read_text())
        if language == "json"
    ]
    rows = [json.loads(line) for block in blocks for line in block.splitlines()]
    functions = write_rows(tmp_path / "functions.jsonl", [row for row in rows if "code" in row])
    read = list(read_records(functions, "train", DataConfig()))
    assert [record.target for record in read] == [1, 0]
    for number, row in enumerate(row for row in rows if "code" not in row):
        path = write_rows(tmp_path / f"{number}.jsonl", [row])
        assert len(list(read_language(path, "train", DataConfig()))) == 1


def test_every_page_is_listed_in_the_readme():
    linked = set(links(REPOSITORY / "README.md"))
    assert {f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")} <= linked


def test_every_guarantee_names_a_test_that_exists():
    text = (REPOSITORY / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 15
    for file, name in named:
        assert f"\ndef {name}(" in (REPOSITORY / file).read_text(), f"{file}::{name}"
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    assert all("::" in row[3] for row in rows)


def test_contributing_has_the_rooms_in_the_order_of_imports():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    for top, rooms in ROOMS_OF.items():
        listed = re.findall(rf"^\| `{top}/(\w+)/` \|", text, re.MULTILINE)
        assert listed == [room for room in rooms if room != "samples"]
    readme = (REPOSITORY / "README.md").read_text()
    assert [
        f"{top}/{r}/" for top in ROOMS_OF for r in ROOMS_OF[top] if f"`{top}/{r}/`" not in readme
    ] == []


def test_every_key_has_a_recipe_or_a_page_that_needs_it():
    used = {
        f"{section}.{key}"
        for path in (REPOSITORY / "recipes").rglob("*.yaml")
        for section, block in yaml.safe_load(path.read_text()).items()
        for key in block
    }
    text = "\n".join(page.read_text() for page in PAGES)
    explained = {key for key in KEYS if key in text}
    assert KEYS - used - explained == set()
    assert len(used) > 20
