"""Prepared data is whole or not there, is built once, and is what the files hold."""

import hashlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import REPOSITORY, file_tree, sample_rows, write_rows

from data.config import DataConfig
from data.prepared import cache as cache_module
from data.prepared import prepare as prepare_module
from data.prepared.cache import FACTS, cached, entries, read_facts
from data.prepared.prepare import open_splits, prepare
from data.prepared.sources import sources_digest
from data.readers import read_records
from data.text.tokenization import encode_functions
from data.text.tokenizer import CodeTokenizer


def write_three(folder: Path, pause: float = 0.0) -> dict[str, int]:
    (folder / "split").mkdir()
    for name in "abc":
        (folder / "split" / name).write_text(name * 10)
        time.sleep(pause)
    return {"pid": os.getpid()}


def test_an_entry_is_built_once_and_only_its_owner_may_read_it(tmp_path):
    root = tmp_path / "cache"
    entry = cached(root, "key", write_three)
    assert cached(root, "key", lambda _: pytest.fail("built twice")) == entry
    sizes = {name: said["bytes"] for name, said in read_facts(entry)["files"].items()}
    assert sizes == {"split/a": 10, "split/b": 10, "split/c": 10}
    assert stat.S_IMODE(entry.parent.stat().st_mode) == 0o700


def test_processes_that_ask_at_once_build_one_entry(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        asked = [pool.apply_async(ask_for_entry, (tmp_path,)) for _ in range(6)]
        builders = {result.get(timeout=60) for result in asked}
    assert len(builders) == 1


def ask_for_entry(root: Path) -> int:
    entry = cached(root, "key", lambda folder: write_three(folder, pause=0.1))
    return int(read_facts(entry)["pid"])


@pytest.mark.parametrize("seed", range(4))
def test_a_build_that_is_killed_leaves_no_entry_and_the_next_one_clears_up(tmp_path, seed):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=ask_for_entry, args=(tmp_path,))
    process.start()
    while not list(tmp_path.glob("*/.key-*")):
        time.sleep(0.005)
    time.sleep(np.random.default_rng(seed).uniform(0, 0.25))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    entry = cached(tmp_path, "key", write_three)
    assert sorted(path.name for path in entry.parent.iterdir()) == [
        "CACHEDIR.TAG", "key", "key.lock",
    ]  # fmt: skip
    assert read_facts(entry)["pid"] == os.getpid()


def test_a_build_that_fails_leaves_nothing_and_says_why(tmp_path):
    def fail(folder: Path) -> dict[str, int]:
        write_three(folder)
        raise ValueError("row 3")

    with pytest.raises(ValueError, match="row 3"):
        cached(tmp_path, "key", fail)
    (own,) = tmp_path.iterdir()
    assert sorted(path.name for path in own.iterdir()) == ["CACHEDIR.TAG", "key.lock"]


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["cut", "gone", "facts", "link"])
def test_a_damaged_entry_is_built_again_and_said_so(tmp_path, damage, capsys):
    entry = cached(tmp_path, "key", write_three)
    if damage == "cut":
        (entry / "split" / "b").write_text("b")
    else:
        (entry / ("split/b" if damage != "facts" else FACTS)).unlink()
    if damage == "link":
        (entry / "split" / "b").symlink_to(entry / "split" / "a")
    forget_verification(entry)
    again = cached(tmp_path, "key", write_three)
    assert (again / "split" / "b").read_text() == "b" * 10
    assert "is damaged and is built again" in capsys.readouterr().err


def forget_verification(entry: Path) -> None:
    """As if this process had started now."""
    (entry.parent / f"{entry.name}.lock").write_text("")


def test_every_flipped_bit_of_an_entry_is_found(tmp_path, capsys):
    """Tokens would train other losses, an Arrow file can end the process."""
    draw = random.Random(0)
    entry = cached(tmp_path, "key", write_three)
    for number in range(60):
        flip(draw.choice(sorted(path for path in entry.rglob("*") if path.is_file())), draw)
        forget_verification(entry)
        assert cached(tmp_path, "key", write_three) == entry
        assert capsys.readouterr().err.count("is built again") == 1, number
    assert (entry / "split" / "a").read_text() == "a" * 10


def test_an_entry_is_verified_once_for_all_processes_that_have_started(tmp_path, monkeypatch):
    checked: list[Path] = []
    monkeypatch.setattr(cache_module, "folder_fault", lambda f, name: checked.append(f) or "")
    entry = cached(tmp_path, "key", write_three)
    cached(tmp_path, "key", write_three)
    assert checked == []  # this process has built it
    later = cache_module.clock() + 1
    monkeypatch.setattr(cache_module, "_started", lambda: later)  # the next run
    cached(tmp_path, "key", write_three)
    assert checked == [entry]
    monkeypatch.setattr(cache_module, "_started", lambda: later - 100)
    monkeypatch.setattr(cache_module, "_boot_id", lambda: "another machine")
    cached(tmp_path, "key", write_three)
    cached(tmp_path, "key", write_three)
    assert checked == [entry, entry]
    monkeypatch.undo()
    cached(tmp_path, "key", lambda _: pytest.fail("built twice"))  # both machines are noted


def test_a_process_knows_when_it_started():
    seconds = time.time() - psutil.Process().create_time()
    assert cache_module.clock() - cache_module._started() == pytest.approx(seconds, abs=1.5)


def test_files_of_others_in_the_cache_folder_stay(tmp_path):
    project = tmp_path / "project"
    for name in (".vscode-server/f", ".key-abandoned/a", "key/facts.json", "key.lock", "my.lock"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("precious")
    before = file_tree(project)
    entry = cached(project, "key", write_three)
    cached(project, "other", write_three)
    (entry.parent / ".key-dead").mkdir()
    cached(project, "third", write_three)
    assert not (entry.parent / ".key-dead").exists()  # ours
    after = {name: kept for name, kept in file_tree(project).items() if "focaltune" not in name}
    assert after == before
    assert [path.name for path in entries(project)] == ["key", "other", "third"]


def test_a_folder_of_our_name_without_our_tag_is_refused_and_not_touched(tmp_path):
    foreign = tmp_path / "focaltune-cache"
    (foreign / "key").mkdir(parents=True)
    (foreign / "key" / FACTS).write_text("{}")
    (foreign / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# cargo\n")
    before = file_tree(tmp_path)
    with pytest.raises(OSError, match=r"data\.cache_dir .* holds files of another program"):
        cached(tmp_path, "key", write_three)
    assert file_tree(tmp_path) == before
    assert entries(tmp_path) == []


def test_an_entry_is_used_where_nothing_can_be_written(tmp_path, monkeypatch):
    entry = cached(tmp_path, "key", write_three)
    plain_open = Path.open

    def open_to_read(path: Path, mode: str = "r", **options: Any) -> Any:
        if "a" in mode or "w" in mode:
            raise PermissionError("read-only")  # root may write whatever a folder's mode is
        return plain_open(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_to_read)
    assert cached(tmp_path, "key", write_three) == entry
    os.truncate(entry / "split" / "c", 9)
    with pytest.raises(OSError, match=r"data\.cache_dir .* name another"):
        cached(tmp_path, "key", write_three)
    monkeypatch.undo()


def test_the_cache_holds_exactly_the_records_and_tokens_of_the_files(tiny_data, tiny_model):
    config = DataConfig(path=str(tiny_data), seq_length=64, long_functions="window")
    prepared = prepare(config, tiny_model)
    tokenizer = CodeTokenizer(tiny_model)
    for name, split in prepared.splits.items():
        records = list(read_records(tiny_data / f"{name}.jsonl", name, config))
        assert list(split.samples) == records
        one_by_one = [encode_functions([r.code], tokenizer, config) for r in records]
        assert np.array_equal(split.examples.tokens, np.concatenate([p.tokens for p in one_by_one]))
        lengths = np.concatenate([p.lengths_E for p in one_by_one])
        assert np.array_equal(split.examples.lengths, lengths)
        places = [n for n, p in enumerate(one_by_one) for _ in p.lengths_E]
        assert split.examples.record_E.tolist() == places
        assert split.examples.label_E.tolist() == [records[n].target for n in places]
        assert split.examples.share_E.sum() == pytest.approx(len(records))
        assert split.code_lengths.tolist() == [int(p.code_lengths_N[0]) for p in one_by_one]
    assert max(places) + 1 < len(places)  # some functions were cut into windows


def test_what_changes_the_rows_changes_the_entry_and_what_does_not_shares_it(tiny_data, tiny_model):
    def entry(**changes: object) -> str:
        config = DataConfig.model_validate({"path": str(tiny_data)} | changes)
        return str(prepare(config, tiny_model).facts["cache"])

    base = entry()
    same = [
        {"packing": False},
        {"sampling": "balanced"},
        {"allow_leaks": True},
        {"leak_groups": []},
    ]
    assert {entry(**changes) for changes in same} == {base}
    other = [
        {"seq_length": 512},
        {"long_functions": "drop"},
        {"normalize_whitespace": "lines"},
        {"end_token": ";"},
        {"max_function_bytes": 10_000},
    ]
    assert len({base, *(entry(**changes) for changes in other)}) == 1 + len(other)


def entry_of_sources(folder: Path, data: Path, model: Path) -> str:
    """Key of prepared data as the sources in `folder` choose it."""
    script = (
        "import sys; from pathlib import Path; from data.config import DataConfig;"
        "from data.prepared.prepare import open_splits;"
        "config = DataConfig(path=sys.argv[1], cache_dir='cache');"
        "print(Path(open_splits(config, Path(sys.argv[2])).facts['cache']).name)"
    )
    command = [sys.executable, "-c", script, str(data), str(model)]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_a_comment_in_the_sources_shares_the_entry_and_a_raised_format_does_not(
    tiny_data, tiny_model, tmp_path
):
    ignored = shutil.ignore_patterns("samples", "__pycache__")
    shutil.copytree(REPOSITORY / "data", tmp_path / "data", ignore=ignored)
    before = entry_of_sources(tmp_path, tiny_data, tiny_model)
    for path in (tmp_path / "data").rglob("*.py"):
        path.write_text(path.read_text() + "# a comment\n")
    assert entry_of_sources(tmp_path, tiny_data, tiny_model) == before
    tokenization = tmp_path / "data" / "text" / "tokenization.py"
    tokenization.write_text(tokenization.read_text() + "TOKENS_FORMAT += 1\n")
    assert entry_of_sources(tmp_path, tiny_data, tiny_model) != before


def test_the_digest_of_a_file_is_its_sha256_and_of_several_that_of_names_and_digests(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text(f"of {path.name}")
    one, other = (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert sources_digest(paths[:1]) == one
    listed = f"a.jsonl\0{one}\nb.jsonl\0{other}\n"
    assert sources_digest(paths) == hashlib.sha256(listed.encode()).hexdigest()


def test_the_key_is_of_data_settings_and_library_versions(tiny_model, tmp_path, monkeypatch):
    for split, rows in {"train": sample_rows("train", 4), "valid": sample_rows("valid", 4)}.items():
        write_rows(tmp_path / f"{split}.jsonl", rows)
    config = DataConfig(path=str(tmp_path), test=str(tmp_path / "valid.jsonl"))

    def entry() -> str:
        return str(open_splits(config, tiny_model).facts["cache"])

    first = entry()
    assert re.fullmatch("[0-9a-f]{32}", Path(first).name)
    assert entry() == first
    write_rows(tmp_path / "train.jsonl", sample_rows("train", 5))
    second = entry()
    monkeypatch.setattr(prepare_module, "version", lambda name: "0.0")
    assert len({first, second, entry()}) == 3


def test_weights_are_the_groups_times_the_classes(tiny_data, tiny_model):
    config = DataConfig(path=str(tiny_data))
    rows = sample_rows("train", 40)
    positives = sum(int(str(row["target"])) for row in rows)
    status = str(rows[0]["status"])
    splits = prepare(
        config, tiny_model, group_weights={status: 0.5}, class_weights="balanced"
    ).splits
    of_class = {0: 40 / (2 * (40 - positives)), 1: 40 / (2 * positives)}
    for name, num in (("train", 40), ("valid", 20)):  # of valid too: its loss is that of training
        expected = [
            of_class[int(str(row["target"]))] * (0.5 if row["status"] == status else 1)
            for row in sample_rows(name, num)
        ]
        assert splits[name].examples.weight_E.tolist() == pytest.approx(expected)
        assert len(set(expected)) > 1
    assert set(splits["test"].examples.weight_E.tolist()) == {1.0}


def test_the_rarer_class_weighs_more_and_a_weight_follows_its_record(tiny_model, tmp_path):
    """A dropped function comes before the others, and the first of these is cut into windows."""
    rows: list[dict[str, object]] = [
        {"code": f"f{n} ();" * (40 if n == 1 else 1), "target": int(n in (1, 4)), "status": f"s{n}"}
        for n in range(9)
    ]
    rows[0]["code"] = "x" * 5000
    files = dict.fromkeys(("train", "valid", "test"), str(write_rows(tmp_path / "r.jsonl", rows)))
    config = DataConfig.model_validate(
        files
        | {"cache_dir": str(tmp_path / "cache"), "allow_leaks": True, "max_function_bytes": 1000}
        | {"seq_length": 64, "long_functions": "window"}
    )
    prepared = prepare(config, tiny_model, group_weights={"s4": 0.5}, class_weights="balanced")
    examples = prepared.splits["train"].examples
    assert examples.record_E.tolist() == [1] * (len(examples) - 7) + list(range(2, 9))
    assert len(examples) > 9
    # 8 functions are trained on, 2 of them vulnerable: 8 / (2 x 2) and 8 / (2 x 6)
    of_record = {n: 2.0 if n == 1 else 2.0 * 0.5 if n == 4 else 2 / 3 for n in range(1, 9)}
    expected = [of_record[record] for record in examples.record_E.tolist()]
    assert examples.weight_E.tolist() == pytest.approx(expected)
