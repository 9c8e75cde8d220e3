"""The checkpoint on disk: an interruption at any call of the writer loses nothing published."""

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

from data.prepared.manifest import manifest_bytes, read_manifest
from trainer.errors import ModelError
from trainer.run_folder.checkpoint import (
    MANIFEST,
    STATE,
    TRAINER,
    load_checkpoint,
    newest_checkpoint,
    remove_leftovers,
    rotate,
    write_checkpoint,
)
from trainer.run_folder.folder import built, write_json

WRITING_CALLS = ("write", "fsync", "rename", "mkdir", "open", "close", "unlink", "rmdir")


def written(root, step, tensors, trainer, identity):
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return write_checkpoint(root, step, shapes, tensors.items(), trainer, identity)


def save(root: Path, step: int) -> Path:
    tensors = {"weight": torch.full((3000, 100), float(step)), "exp_avg/weight": torch.ones(7)}
    root.mkdir(parents=True, exist_ok=True)
    path = written(root, step, tensors, {"state": {"step": step}}, {"base": "b0d1"})
    rotate(root, 2, best_step=1)
    return path


def die_at_call(number: int) -> None:
    """Make the process end, as kill -9 would, at the n-th call that changes the disk."""
    calls = itertools.count(1)

    def counted(call):
        def wrapper(*arguments, **options):
            if next(calls) == number:
                os._exit(137)
            return call(*arguments, **options)

        return wrapper

    for name in WRITING_CALLS:
        setattr(os, name, counted(getattr(os, name)))


def four_saves_until(root: Path, crash_at: int) -> tuple[int, int]:
    """Exit code of a child that saves steps 1 to 4 and dies, and the last step it acknowledged."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        tell = os.write
        die_at_call(crash_at)
        for step in (1, 2, 3, 4):
            save(root, step)
            tell(writer, bytes([step]))
        os._exit(0)
    os.close(writer)
    acknowledged = os.read(reader, 100)
    while more := os.read(reader, 100):
        acknowledged += more
    os.close(reader)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, max(acknowledged, default=0)


def test_the_newest_and_the_best_stay_and_the_others_go(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
        kept = {1, step - 1, step} - {0}
        assert {path.name for path in tmp_path.iterdir()} == {f"step-{n:08d}" for n in kept}


def test_without_a_best_step_only_the_newest_stay(tmp_path):
    for step in (1, 2, 3):
        written(tmp_path, step, {}, {}, {})
    rotate(tmp_path, 1, best_step=None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_files_have_the_users_modes_are_sorted_json_and_closed(tmp_path):
    os.umask(umask := os.umask(0))
    num_open = len(os.listdir("/proc/self/fd"))
    path = save(tmp_path, 2)
    assert len(os.listdir("/proc/self/fd")) == num_open
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o666 & ~umask}
    for name in (MANIFEST, TRAINER):
        text = (path / name).read_text()
        assert text == json.dumps(json.loads(text), indent=2, sort_keys=True)
    assert json.loads((path / MANIFEST).read_text())["format"] == 2  # with a digest of its own


def test_a_folder_that_was_removed_is_not_made_again(tmp_path):
    """A run whose folder is removed would leave one that is not known as a run's."""
    for write in (
        lambda run: written(run / "checkpoints", 2, {}, {}, {}),
        lambda run: write_json(run / "report" / "test.json", {}),
        lambda run: write_json(run / "plan.json", {}),
    ):
        with pytest.raises(FileNotFoundError):
            write(tmp_path / "run")
    with pytest.raises(FileNotFoundError), built(tmp_path / "run" / "adapter"):
        pass
    assert not (tmp_path / "run").exists()


def test_files_and_folder_reach_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path, monkeypatch
):
    """A power cut between two of these calls leaves a checkpoint out, never half of one."""
    calls, fsync, rename = [], os.fsync, os.rename

    def recording_fsync(descriptor):
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def recording_rename(old, new):
        calls.append(f"{Path(old).name} -> {Path(new).name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording_rename)
    root = tmp_path / "checkpoints"
    root.mkdir()
    save(root, 2)
    temporary = calls[3]
    assert temporary.startswith(".tmp-00000002-")
    renamed = f"{temporary} -> step-00000002"
    assert calls == [STATE, TRAINER, MANIFEST, temporary, renamed, "checkpoints"]


def test_a_system_that_writes_in_parts_writes_all_of_it(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:100_000]))
    path = save(tmp_path, 2)
    monkeypatch.undo()
    assert (path / STATE).stat().st_size > 1_200_000
    assert load_checkpoint(path).tensors()["weight"].eq(2).all()


def truncate(path: Path) -> str:
    (path / STATE).write_bytes((path / STATE).read_bytes()[:-1])
    return "bytes, the manifest says"


def flip_a_bit(path: Path) -> str:
    content = bytearray((path / STATE).read_bytes())
    content[-1] ^= 1
    (path / STATE).write_bytes(content)
    return "does not match its sha256"


def remove_a_file(path: Path) -> str:
    (path / TRAINER).unlink()
    return "trainer.json is missing"


def remove_the_manifest(path: Path) -> str:
    (path / MANIFEST).unlink()
    return "MANIFEST.json is missing"


def garble_the_manifest(path: Path) -> str:
    (path / MANIFEST).write_text("{")
    return "not readable"


def another_format(path: Path) -> str:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    return "format 99"


def files_of_two_steps(path: Path) -> str:
    other = save(path.parent / "other", 3)
    (path / STATE).write_bytes((other / STATE).read_bytes())
    return "does not match its sha256"


def a_pickle_instead(path: Path) -> str:
    """By somebody who knows how a manifest is sealed."""
    manifest = read_manifest(path / MANIFEST)
    files = manifest.pop("files")
    files["state.pt"] = files.pop(STATE)
    (path / MANIFEST).write_bytes(manifest_bytes(manifest, files))
    return "the manifest lists"


def another_identity(path: Path) -> str:
    """One digit: the message would blame the user's base."""
    text = (path / MANIFEST).read_text()
    base = json.loads(text)["identity"]["base"]
    (path / MANIFEST).write_text(text.replace(base, "f" + base[1:]))
    assert (path / MANIFEST).read_text() != text
    return "MANIFEST.json does not match its own digest"


def a_huge_header(path: Path) -> str:
    """The first eight bytes of a safetensors file are the length of its header."""
    (path / STATE).write_bytes(b"\xff" * 7 + b"\x7f" + (path / STATE).read_bytes()[8:])
    return "does not match its sha256"


def a_link(path: Path) -> str:
    (path / STATE).rename(path.parent / "elsewhere")
    (path / STATE).symlink_to(path.parent / "elsewhere")
    return "not a plain file"


DAMAGES = {
    "86-truncated": truncate,
    "87-flipped-bit": flip_a_bit,
    "87-flipped-identity": another_identity,
    "88-missing-file": remove_a_file,
    "89-no-manifest": remove_the_manifest,
    "89-garbled-manifest": garble_the_manifest,
    "90-unknown-format": another_format,
    "91-files-of-two-steps": files_of_two_steps,
    "96-pickle": a_pickle_instead,
    "97-huge-header": a_huge_header,
    "99-symlink": a_link,
}


@pytest.mark.parametrize("number", DAMAGES)
def test_bad_inputs_checkpoint(number, tmp_path):
    save(tmp_path, 1)
    damaged = save(tmp_path, 2)
    assert load_checkpoint(damaged).step == 2
    said = DAMAGES[number](damaged)
    with pytest.raises(ModelError, match=said):
        load_checkpoint(damaged)
    found, passed_over = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert len(passed_over) == 1
    assert said in passed_over[0]


def test_97_a_huge_header_under_a_manifest_that_fits_is_refused_not_allocated(tmp_path):
    path = save(tmp_path, 1)
    a_huge_header(path)
    manifest, content = read_manifest(path / MANIFEST), (path / STATE).read_bytes()
    files = manifest.pop("files")
    files[STATE]["sha256"] = hashlib.sha256(content).hexdigest()
    (path / MANIFEST).write_bytes(manifest_bytes(manifest, files))
    with pytest.raises(ModelError, match=r"step-00000001.state\.safetensors .*; restore it"):
        load_checkpoint(path).tensors()


def test_113_the_newest_checkpoint_is_that_of_the_highest_step_whatever_its_time(tmp_path):
    for step, seconds in ((1, 9e8), (2, 6e8), (3, 3e8)):  # a clock that went backwards
        os.utime(save(tmp_path, step), (seconds, seconds))
    newest, _ = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 3
    rotate(tmp_path, 1, best_step=None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_98_leftovers_are_not_checkpoints_and_are_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / f".tmp-00000002-{'0f' * 16}").mkdir()
    (tmp_path / f".trash-step-00000000-{'0f' * 16}").mkdir()
    (tmp_path / ".tmp-notes").mkdir()  # of another program
    found, passed_over = newest_checkpoint(tmp_path)
    assert (found.step if found else 0, passed_over) == (1, [])
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-notes", "step-00000001"]


def test_118_a_full_disk_keeps_the_old_checkpoint_and_leaves_no_trace(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", no_space)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_checkpoint(tmp_path / "step-00000001").step == 1


def test_saving_a_step_twice_keeps_the_first_and_replaces_a_damaged_one(tmp_path):
    path = save(tmp_path, 3)
    before = (path / STATE).stat().st_mtime_ns
    assert save(tmp_path, 3) == path
    assert (path / STATE).stat().st_mtime_ns == before
    flip_a_bit(path)
    save(tmp_path, 3)
    assert load_checkpoint(path).step == 3


def test_a_step_saved_after_a_change_of_the_recipe_holds_the_new_one(tmp_path):
    path = save(tmp_path, 3)
    weights = load_checkpoint(path).tensors()
    changed = {"state": {"step": 3}, "lr": 0.5}
    assert written(tmp_path, 3, weights, changed, {"base": "b0d1"}) == path
    assert load_checkpoint(path).trainer == changed
    written(tmp_path, 3, weights, changed, {"base": "c"})
    assert load_checkpoint(path).identity == {"base": "c"}


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(tmp_path):
    save(tmp_path, 1)
    moved = save(tmp_path, 2).rename(tmp_path / "step-00000007")
    with pytest.raises(ModelError, match="the manifest is of step 2"):
        load_checkpoint(moved)
    found, [reason] = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "the manifest is of step 2" in reason


# In a process of its own: what others left in an allocator decides how much it asks for.
WRITE = """
import re
import sys
from pathlib import Path
import torch
from trainer.run_folder.checkpoint import write_checkpoint
def peak():  # not getrusage, which begins with the peak of the parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
def write(root, names, size):
    states = ((name, torch.full((size, size), float(name))) for name in names)
    write_checkpoint(Path(root), 1, dict.fromkeys(names, (size, size)), states, {}, {})
folder = Path(sys.argv[1])
write(folder / "first", ["0"], 2)  # what libraries take once
before = peak()
write(folder, [f"{n}" for n in range(24)], 2048)
print(peak() - before)
"""


def test_a_state_is_written_one_tensor_at_a_time(tmp_path):
    """24 tensors of 16 MiB: written together they took twice their 384 MiB."""
    (tmp_path / "first").mkdir()
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    returned = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # what is freed leaves it
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=returned
    )
    assert float(done.stdout) < 16 + 64  # MiB: one tensor and what Python takes
    stock = load_file(tmp_path / "step-00000001" / STATE)
    assert {name: float(tensor.mean()) for name, tensor in stock.items()} == {
        f"{n}": float(n) for n in range(24)
    }
    lazy = load_checkpoint(tmp_path / "step-00000001").tensors()
    assert lazy.keys() == stock.keys()
    assert all(torch.equal(lazy[name], stock[name]) for name in stock)


def test_what_other_ranks_help_to_gather_is_taken_to_the_end(tmp_path, monkeypatch):
    taken = []

    def gathered():
        for name in "abc":
            taken.append(name)
            yield name, torch.ones(3)

    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space left")))
    shapes = dict.fromkeys("abc", (3,))
    for root in (tmp_path, tmp_path / "removed"):
        with pytest.raises(OSError, match=r"no space left|No such file"):
            write_checkpoint(root, 1, shapes, gathered(), {}, {})
    assert taken == [*"abc", *"abc"]
    assert list(tmp_path.iterdir()) == []


def test_a_kill_at_every_writing_call_keeps_every_acknowledged_checkpoint(tmp_path):
    crash_at, codes = 0, []
    while not codes or codes[-1] != 0:
        crash_at += 1
        root = tmp_path / str(crash_at)
        code, acknowledged = four_saves_until(root, crash_at)
        codes.append(code)
        found, passed_over = newest_checkpoint(root)
        assert (found.step if found else 0) >= acknowledged, f"lost at call {crash_at}"
        assert passed_over == []  # nothing half written has a published name
        if found:
            assert found.tensors()["weight"][0, 0] == found.step
        if acknowledged >= 1:
            assert (root / "step-00000001").exists()  # the best one is never rotated away
        remove_leftovers(root)
        save(root, 9)
        newest = newest_checkpoint(root)[0]
        assert newest is not None
        assert newest.step == 9
        assert all(path.name.startswith("step-") for path in root.iterdir())
    assert codes[:-1] == [137] * (len(codes) - 1)
    assert len(codes) > 60  # every call of four saves and two rotations was a crash point


def test_every_flipped_bit_of_a_checkpoint_is_found_and_the_older_one_taken(tmp_path):
    draw = random.Random(0)
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    for _ in range(60):
        file = draw.choice([path / STATE, path / TRAINER, path / MANIFEST, path / MANIFEST])
        sound = file.read_bytes()
        content = bytearray(sound)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        found, passed_over = newest_checkpoint(tmp_path)
        assert found is not None
        assert (found.step, len(passed_over)) == (1, 1)
        file.write_bytes(sound)
    assert load_checkpoint(path).step == 2


def test_a_checkpoint_of_before_manifests_had_a_digest_is_read(tmp_path):
    path = save(tmp_path, 2)
    manifest = read_manifest(path / MANIFEST)
    (path / MANIFEST).write_text(json.dumps(manifest | {"format": 1}))
    assert load_checkpoint(path).step == 2
