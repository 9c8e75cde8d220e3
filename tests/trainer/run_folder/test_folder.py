"""Only what a run has made is replaced or removed; what it reads back is as it was written."""

import multiprocessing
import os
import random
import socket
import stat
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from conftest import file_tree
from launched import wait_until
from rank_pool import run_ranks
from safetensors import SafetensorError

from trainer.config.recipe import _PATH_KEYS as PATH_KEYS
from trainer.config.recipe import load_run_config
from trainer.config.sections import LogSection, RunConfig
from trainer.engine.state import TrainState
from trainer.errors import ConfigError, MachineError, ModelError
from trainer.run_folder.folder import (
    LOCK,
    MANIFEST,
    built,
    is_run_folder,
    open_run_folder,
    verify,
    write_json,
)
from trainer.run_folder.metrics import RunLog


def config_with(recipe: Path, folder: Path, *more: str) -> RunConfig:
    return load_run_config(recipe, [f"run.output_dir={folder}", *more])


def published(folder: Path, text: str = "weights") -> Path:
    with built(folder) as building:
        (building / "sub").mkdir()
        (building / "sub" / "a.safetensors").write_text(text * 20)
        (building / "config.json").touch(mode=0o600)
        (building / "config.json").write_text("{}")
    return folder


def test_a_folder_is_replaced_whole_with_the_users_modes(tmp_path):
    before = os.umask(0o027)
    try:
        folder = published(published(tmp_path / "adapter"), "new")
    finally:
        os.umask(before)
    assert (folder / "sub" / "a.safetensors").read_text() == "new" * 20
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o640}
    assert stat.S_IMODE((folder / "sub").stat().st_mode) == 0o750


def test_every_flipped_bit_of_a_published_folder_is_found(tmp_path):
    draw = random.Random(0)
    folder = published(tmp_path / "adapter")
    assert verify(folder, "copy it again")
    for _ in range(200):
        path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        sound = path.read_bytes()
        content = bytearray(sound)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"is damaged: .*; copy it again"):
            verify(folder, "copy it again")
        path.write_bytes(sound)
    assert verify(folder, "copy it again")
    (folder / MANIFEST).unlink()
    assert not verify(folder, "copy it again")


@pytest.mark.parametrize(
    ("name", "text", "is_run"),
    [
        (LOCK, "", True),  # killed before it wrote a word
        (".lock", "process 7 on host", True),  # of an older version
        (".lock", "", False),
        (".lock", "{}", False),
        ("poetry.lock", "process 7 on host", False),
    ],
)
def test_a_run_folder_is_known_by_its_own_marker(name, text, is_run, tmp_path):
    (tmp_path / name).write_text(text)
    assert is_run_folder(tmp_path) is is_run


@pytest.mark.slow
@pytest.mark.parametrize(("section", "key"), [*PATH_KEYS, ("run", "resume")])
def test_files_of_others_stay_whatever_path_key_points_at_them(section, key, tiny_recipe, tmp_path):
    """Names are those that our own files have, or would match a careless pattern."""
    foreign = tmp_path / "project"
    for name in (
        ".vscode-server/f", ".poetry-x/a", "poetry.lock", ".lock", ".base-1/a", ".adapter-old-x/b",
        "checkpoints/.tmp-1/a", "checkpoints/step-00000001/state.safetensors", "key/facts.json",
        "report/test.json", "config.yaml", "log.jsonl",
    ):  # fmt: skip
        (foreign / name).parent.mkdir(parents=True, exist_ok=True)
        (foreign / name).write_text("precious")
    before = file_tree(foreign)
    values = yaml.safe_load(tiny_recipe.read_text())
    values["run"]["output_dir"] = str(tmp_path / "run")
    values["optim"] |= {"max_steps": 1, "warmup_steps": 0}
    values["optim"].pop("epochs", None)
    values.setdefault("tuning", {})["method"] = "qlora" if key == "quantize_cache" else "lora"
    values[section][key] = str(foreign)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    printed = tmp_path / "printed"
    (code,) = run_ranks([str(recipe)], 1, printed)
    is_cache = key in ("cache_dir", "quantize_cache")
    assert code in ((0,) if is_cache else (2, 3, 4)), printed.read_text()[-2000:]
    assert "Traceback" not in printed.read_text()
    after = {name: kept for name, kept in file_tree(foreign).items() if "focaltune-" not in name}
    assert after == before
    assert ((foreign / "focaltune-cache").is_dir()) is is_cache


def test_69_a_run_that_is_not_to_be_continued_is_left_alone(tiny_recipe, tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / "config.yaml").write_text("run: {}\n")
    before = file_tree(tmp_path)
    with pytest.raises(ConfigError, match=r"another folder, or run\.resume=auto") as caught:
        open_run_folder(config_with(tiny_recipe, tmp_path, "run.resume=never"))
    assert caught.value.exit_code == 2
    assert file_tree(tmp_path) == before


@pytest.mark.parametrize("boot", ["of this boot", "of an earlier boot"])
def test_111_the_lock_of_a_run_that_is_gone_lets_the_next_one_in(boot, tiny_recipe, tmp_path):
    """Its text names a process: the kernel holds the lock, so a number may be used again."""
    number = os.getpid() if boot == "of an earlier boot" else 2**22 + 1  # no process has it
    (tmp_path / LOCK).write_text(f"process {number} on {socket.gethostname()}")
    config = config_with(tiny_recipe, tmp_path)
    lock = open_run_folder(config)
    with pytest.raises(MachineError, match=rf"another run.*process {os.getpid()} on"):  # a live one
        open_run_folder(config)
    lock.release()
    open_run_folder(config).release()


def test_98_leftovers_stay_while_their_run_lives_and_go_with_the_next_one(tiny_recipe, tmp_path):
    config = config_with(tiny_recipe, tmp_path)
    owner = open_run_folder(config)
    saving = tmp_path / "checkpoints" / f".tmp-00000002-{'0f' * 16}"
    saving.mkdir()
    with pytest.raises(MachineError, match="another run is writing here"):
        open_run_folder(config)
    assert saving.is_dir()
    owner.release()
    open_run_folder(config).release()
    assert not saving.exists()


def hold_and_wait(folder, mark):
    with built(folder) as building:
        (building / "weights").write_text("half")
        mark.touch()
        time.sleep(60)


def test_what_a_killed_process_was_building_is_removed_and_what_a_live_one_builds_is_kept(tmp_path):
    folder, mine, mark = tmp_path / "merged", tmp_path / ".merged-notes", tmp_path / "mark"
    mine.mkdir()
    (mine / "a.txt").touch()
    process = multiprocessing.Process(target=hold_and_wait, args=(folder, mark))
    process.start()
    wait_until(mark.exists, 10, "a folder that is built")
    [building] = set(tmp_path.glob(".merged-*")) - {mine}
    published(folder)
    assert (building / "weights").exists()
    process.kill()
    process.join()
    published(folder)
    assert not building.exists()
    assert (mine / "a.txt").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("I/O error")])
def test_97_a_full_disk_while_a_folder_is_written_leaves_the_old_one_alone(error, tmp_path):
    folder = published(tmp_path / "adapter")
    with pytest.raises(MachineError, match=r"was not written: .*make room"), built(folder):
        raise error
    assert verify(folder, "")
    assert list(tmp_path.iterdir()) == [folder]


def test_97_a_full_disk_names_the_small_file_that_was_not_written(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/plan\.json'"):
        write_json(tmp_path / "plan.json", {})


def test_a_run_that_is_removed_while_a_folder_is_built_gets_no_part_again(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(MachineError, match="was removed meanwhile"), built(run / "adapter") as new:  # noqa: PT012
        run.rename(tmp_path / "moved")
        new.mkdir(parents=True)  # as save_pretrained does
        (new / "weights").touch()
    assert not any(run.iterdir())


def test_a_run_that_is_removed_while_tensorboard_loads_is_not_made_again(tmp_path, monkeypatch):
    from torch.utils import tensorboard

    run = tmp_path / "run"
    run.mkdir()

    class Loading(ModuleType):
        def __getattr__(self, name):
            if name == "SummaryWriter" and run.exists():
                run.rename(tmp_path / "moved")
            return getattr(tensorboard, name)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Loading("tensorboard"))
    with pytest.raises(MachineError, match="run/tensorboard"):
        RunLog(run, LogSection(), TrainState(), 8)
    assert not run.exists()
