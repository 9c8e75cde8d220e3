"""Every command has --help and --version; a new one is what CONTRIBUTING.md shows."""

import importlib.util
import re
import shutil
import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest
from conftest import REPOSITORY

from launcher.command import version

COMMANDS = sorted(
    path.stem
    for path in (REPOSITORY / "launcher").glob("*.py")
    if path.stem not in ("__init__", "command")
)
VERSION = re.search(r"^version = (\S+)$", (REPOSITORY / "setup.cfg").read_text(), re.MULTILINE)[1]


def printed(command: ModuleType, argument: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        command.main([argument])
    assert not ended.value.code
    said = capsys.readouterr()
    assert said.err == ""
    return str(said.out)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself_and_says_its_version(name, capsys):
    command = import_module(f"launcher.{name}")
    explained = printed(command, "--help", capsys)
    assert explained.startswith("usage: ")
    assert "".join((command.__doc__ or "").split()) in "".join(explained.split())
    assert max(map(len, explained.partition("keys of a recipe")[0].splitlines())) <= 100
    assert printed(command, "--version", capsys).startswith(f"focaltune {VERSION}")
    assert len(COMMANDS) >= 8


def a_folder(path):
    path.mkdir()
    shutil.copy(REPOSITORY / "setup.cfg", path)
    return path


def test_the_version_names_the_commit_of_a_checkout(tmp_path):
    root = a_folder(tmp_path / "clone")
    git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["tag", "v1.2.3"]):
        subprocess.run([*git, *words], check=True)
    assert version(root) == f"{VERSION} (git v1.2.3)"
    (root / "setup.cfg").write_text("[metadata]\nversion = 9\n")
    assert version(root) == "9 (git v1.2.3-dirty)"


def test_the_version_needs_neither_a_checkout_nor_git(tmp_path, monkeypatch):
    assert version(a_folder(tmp_path / "archive")) == VERSION
    root = a_folder(tmp_path / "broken")
    (root / ".git").write_text("gitdir: nowhere\n")
    assert version(root) == VERSION
    monkeypatch.setenv("PATH", str(tmp_path))
    (root / ".git").unlink()
    (root / ".git").mkdir()
    assert version(root) == VERSION


def test_a_command_is_added_as_contributing_shows(tmp_path, tiny_recipe, capsys, monkeypatch):
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    [source] = re.findall(r'```python\n("""Print the learning rate.*?)```', text, re.DOTALL)
    assert len(source.splitlines()) <= 25
    (tmp_path / "rate.py").write_text(source)
    spec = importlib.util.spec_from_file_location("launcher.rate", tmp_path / "rate.py")
    command = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(command)
    assert command.main([str(tiny_recipe), "optim.lr=1e-3"]) == 0
    assert capsys.readouterr().out == "0.001\n"
    assert command.main([str(tiny_recipe), "optim.lrr=1"]) == 2
    assert "did you mean 'lr'?" in capsys.readouterr().err
    assert printed(command, "--version", capsys).startswith("focaltune ")
