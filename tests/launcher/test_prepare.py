"""The prepare command leaves data that training maps, and says what it came to."""

import json
import re
import shutil

import pytest
from conftest import write_rows
from rank_pool import run_ranks

from data.prepared.cache import FACTS, entries
from launcher.prepare import main as prepare_main


def test_prepare_prints_what_each_split_came_to_and_training_builds_nothing_anew(
    tiny_recipe, tmp_path, capsys
):
    cache = tmp_path / "cache"
    changed = [f"data.cache_dir={cache}", "data.seq_length=128", "data.long_functions=drop"]
    assert prepare_main([str(tiny_recipe), *changed]) == 0
    printed = capsys.readouterr().out
    [entry] = entries(cache)
    facts = json.loads((entry / FACTS).read_text())["splits"]
    tokens = facts["train"]["tokens"]
    assert 0 < tokens["long_counts"][1] < tokens["num_long"] < tokens["num_functions"] == 40

    assert cells(printed, "functions") == ["40", "20", "20"]
    lost = f"{tokens['num_long']} ({tokens['long_counts'][1]} vulnerable)"
    assert cells(printed, "long (drop)")[0] == lost
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
    assert entries(cache) == [entry]


def test_shown_functions_say_what_was_cut_and_json_gives_the_facts(tiny_recipe, tmp_path, capsys):
    command = [str(tiny_recipe), "data.seq_length=64", f"data.cache_dir={tmp_path / 'cache'}"]
    assert prepare_main([*command, "--show", "1"]) == 0
    printed = capsys.readouterr().out
    cut = re.search(r"\[(\d+) tokens cut off here: data\.long_functions=truncate\]", printed)
    assert cut is not None
    assert re.search(r"--- train\.jsonl:1: 64 tokens, target [01], read at the last", printed)
    assert prepare_main([*command, "data.seq_length=640", "--show", "1"]) == 0
    whole = re.search(r"--- train\.jsonl:1: (\d+) tokens", capsys.readouterr().out)
    assert whole is not None
    assert int(whole[1]) == 64 + int(cut[1])
    assert prepare_main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["splits"]["train"]["tokens"]["num_functions"] == 40


def test_targets_are_in_brackets_where_there_is_no_colour(tiny_recipe, tmp_path, capsys):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{n}"},
                {"role": "assistant", "content": "yes"},
            ]
        }
        for n in range(40)
    ]
    train = write_rows(tmp_path / "chats.jsonl", rows)
    command = [
        str(tiny_recipe), "task.name=instruction", "data.path=null", f"data.train={train}",
        "loss.gamma=0", "loss.alpha=null", "data.template=question_answer", "--show", "1",
    ]  # fmt: skip
    assert prepare_main(command) == 0
    printed = capsys.readouterr().out
    assert re.search(r"Answer: ?⟦ ?yes<\|endoftext\|>⟧", printed)
    assert cells(printed, "conversations") == ["36", "2", "2"]


def test_an_answer_of_a_conversation_in_several_examples_is_not_called_cut(
    tiny_recipe, tiny_model, tmp_path, capsys
):
    """A template that drops earlier thoughts makes an example for each answer."""
    rows = [
        {
            "messages": [
                {"role": role, "content": content}
                for role, content in [("user", f"q{n}"), ("assistant", "<think>a b c</think>yes")]
                * 2
            ]
        }
        for n in range(40)
    ]
    train = write_rows(tmp_path / "chats.jsonl", rows)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last else"
        " m.content.split('</think>')[-1] }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    command = [
        str(tiny_recipe), "task.name=instruction", "data.path=null", f"data.train={train}",
        "loss.gamma=0", "loss.alpha=null", "data.template=chat_template", "--show", "2",
        f"model.config={model}",
    ]  # fmt: skip
    assert prepare_main(command) == 0
    printed = capsys.readouterr().out
    assert len(set(re.findall(r"--- (chats\.jsonl:\d+): \d+ tokens", printed))) == 1
    assert printed.count("⟦") == 2
    assert "tokens cut" not in printed


def cells(printed: str, name: str) -> list[str]:
    """The numbers of a row of the table."""
    lines = [line for line in printed.splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    [found] = [row[1:] for row in rows if row[0] == name]
    return found


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_table_counts_the_rows_of_short_files_that_never_share_one(
    tiny_recipe, tmp_path, capsys, packing
):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(120):
        (corpus / f"{number}.txt").write_text(f"text {number} of a corpus\n" * (1 + number % 3))
    command = [
        str(tiny_recipe), "task.name=causal_lm", "data.path=null", f"data.train={corpus}",
        "data.seq_length=256", "loss.gamma=0", "loss.alpha=null", f"data.packing={packing}",
    ]  # fmt: skip
    assert prepare_main([*command, "data.order=sequential"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    [files, *_], [tokens, *_] = cells(printed, "texts"), cells(printed, "tokens")
    assert 60 < int(files) < 120
    assert cells(printed, "rows of 256")[0] == files
    num_tokens = int(tokens.replace(",", ""))
    assert cells(printed, "fill")[0] == f"{num_tokens / int(files) / 256:.2%}"
    said = re.search(
        rf"{files} files of (\d+) tokens on average make {files} rows of 256, .* into (\d+)",
        printed,
    )
    assert bool(said) == (packing == "true")
    if said:
        assert int(said[1]) == round(num_tokens / int(files))
        least = num_tokens // 256 + 1
        assert least <= int(said[2]) <= 1.2 * least
        assert prepare_main([*command, "data.order=shuffled"]) == 0
        shuffled = capsys.readouterr().out
        assert cells(shuffled, "rows of 256")[0] == said[2]
        assert "tokens on average make" not in shuffled


def test_names_out_of_the_data_cannot_drive_the_terminal(tiny_recipe, tiny_data, tmp_path, capsys):
    rows = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    train = write_rows(tmp_path / "train.jsonl", [row | {"\x1b[2J": 1} for row in rows])
    assert prepare_main([str(tiny_recipe), f"data.train={train}"]) == 0
    printed = capsys.readouterr().out
    assert "columns not read: \\x1b[2J" in printed
    assert "\x1b" not in printed


def test_bad_data_ends_prepare_with_the_datas_exit_code(tiny_recipe, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text('{"code": "a"}\n')
    assert prepare_main([str(tiny_recipe), f"data.train={tmp_path / 'train.jsonl'}"]) == 3
    assert "train.jsonl:1: no field 'target'" in capsys.readouterr().err


def test_41_contradictory_labels_are_counted_by_prepare(tiny_recipe, tiny_data, tmp_path, capsys):
    rows = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    turned = [{"code": row["code"], "target": 1 - row["target"]} for row in rows[:3]]
    train = write_rows(tmp_path / "train.jsonl", [*rows, *turned])
    assert prepare_main([str(tiny_recipe), f"data.train={train}"]) == 0
    assert "train: 3 functions have both labels there" in capsys.readouterr().out


def test_42_one_class_ends_prepare_with_the_class(tiny_recipe, tmp_path, capsys):
    rows: list[dict[str, object]] = [{"code": f"f{n}();", "target": 1} for n in range(3)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    assert prepare_main([str(tiny_recipe), f"data.train={train}"]) == 3
    assert "train: all 3 functions have target 1; need both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("unit", "packing", "said"),
    [("examples", "true", "40 examples"), ("rows", "false", "40 rows")],
)
def test_44_fewer_rows_than_the_global_batch_are_said_by_prepare(
    unit, packing, said, tiny_recipe, capsys
):
    settings = [f"optim.batch_unit={unit}", f"data.packing={packing}"]
    for size, is_more in ((41, True), (40, False)):
        assert prepare_main([str(tiny_recipe), *settings, f"optim.global_batch_size={size}"]) == 0
        line = f"train has {said}, fewer than optim.global_batch_size={size}: every step takes all"
        assert (line in capsys.readouterr().out) is is_more


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
    assert {path.name for path in folder.iterdir()} == {"audit.json", "audit.md", "lengths.svg"}
    assert not (tmp_path / "run").exists()
    assert prepare_main([*recipe, "data.allow_leaks=true"]) == 0
    assert "LEAK (data.allow_leaks): 1 function, equal but" in capsys.readouterr().out


def test_collapse_says_how_many_functions_it_harms(tiny_recipe, tmp_path, capsys):
    collapse = ["data.normalize_whitespace=collapse", f"run.output_dir={tmp_path / 'run'}"]
    assert prepare_main([str(tiny_recipe), *collapse]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"train: normalize_whitespace=collapse changes the meaning of \d+ of 40", printed
    )
