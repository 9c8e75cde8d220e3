"""The prepare command leaves data that training maps, and says what it came to."""

import json
import re

from rank_pool import run_ranks

from data.cache import FACTS
from launcher.prepare import main as prepare_main


def test_prepare_prints_what_each_split_came_to_and_training_builds_nothing_anew(
    tiny_recipe, tmp_path, capsys
):
    cache = tmp_path / "cache"
    changed = [f"data.cache_dir={cache}", "data.seq_length=128", "data.long_functions=drop"]
    assert prepare_main([str(tiny_recipe), *changed]) == 0
    printed = capsys.readouterr().out
    [entry] = [path for path in cache.iterdir() if path.is_dir()]
    facts = json.loads((entry / FACTS).read_text())["splits"]
    tokens = facts["train"]["tokens"]
    assert 0 < tokens["long_positive"] < tokens["num_long"] < tokens["num_functions"] == 40

    def row(name: str) -> list[str]:
        [line] = [line for line in printed.splitlines() if line.startswith(f"│ {name}")]
        return [cell.strip() for cell in line.strip("│").split("│")]

    assert row("functions") == ["functions", "40", "20", "20"]
    lost = f"{tokens['num_long']} ({tokens['long_positive']} vulnerable)"
    assert row("long (drop)")[1] == lost
    packed, unpacked = (
        re.search(r"packed: (\d+) rows", printed),
        re.search(r"unpacked: (\d+) rows", printed),
    )
    assert packed is not None
    assert unpacked is not None
    assert int(packed[1]) < int(unpacked[1]) == tokens["num_functions"] - tokens["num_long"]
    before = entry.stat().st_mtime_ns, (entry / FACTS).stat().st_ino
    command = [str(tiny_recipe), *changed, f"run.output_dir={tmp_path / 'run'}"]
    assert run_ranks(command, 2, tmp_path / "printed.txt") == [0, 0]
    assert (entry.stat().st_mtime_ns, (entry / FACTS).stat().st_ino) == before
    assert [path for path in cache.iterdir() if path.is_dir()] == [entry]


def test_bad_data_ends_prepare_with_the_datas_exit_code(tiny_recipe, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text('{"code": "a"}\n')
    assert prepare_main([str(tiny_recipe), f"data.train={tmp_path / 'train.jsonl'}"]) == 3
    assert "train.jsonl:1: no field 'target'" in capsys.readouterr().err


def test_an_audit_is_written_although_the_leak_it_found_stops_the_command(
    tiny_recipe, tiny_data, tmp_path, capsys
):
    rows = (tiny_data / "train.jsonl").read_text().splitlines(keepends=True)
    leaking = tmp_path / "test.jsonl"
    leaking.write_text((tiny_data / "test.jsonl").read_text() + rows[4])
    recipe = [str(tiny_recipe), f"data.test={leaking}", f"run.output_dir={tmp_path / 'run'}"]
    assert prepare_main([*recipe, "--audit"]) == 3
    printed = capsys.readouterr()
    assert "leak: " in printed.out
    assert "train.jsonl:5 = test.jsonl:21" in printed.out
    assert "data.allow_leaks=true" in printed.err
    folder = tmp_path / "run.audit"
    assert {path.name for path in folder.iterdir()} == {"audit.json", "audit.md", "lengths.png"}
    assert not (tmp_path / "run").exists()
    assert prepare_main([*recipe, "data.allow_leaks=true"]) == 0
    assert "LEAKS: " in capsys.readouterr().out


def test_collapse_says_how_many_functions_it_harms(tiny_recipe, tmp_path, capsys):
    collapse = ["data.normalize_whitespace=collapse", f"run.output_dir={tmp_path / 'run'}"]
    assert prepare_main([str(tiny_recipe), *collapse]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"train: normalize_whitespace=collapse changes the meaning of \d+ of 40", printed
    )
