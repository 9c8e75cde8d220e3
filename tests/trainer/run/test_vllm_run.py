"""vLLM behind the function that writes: equal suites and chats through both doors.

vLLM itself is not here: tests/vllm_stand_in.py takes its place and says what that proves.
"""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import vllm_stand_in
import yaml
from conftest import write_rows
from rank_pool import run_ranks

from launcher.chat import main as chat
from launcher.suite import main as suite
from trainer.errors import ConfigError
from trainer.evaluation.suites.suites import SUITES
from trainer.generation import vllm_writer
from trainer.generation.decoding import Limits, Prompt, Writer
from trainer.processes.distributed import Ranks
from trainer.run.build import resolve_here
from trainer.run.trained import open_trained

needs_sandbox = pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap here")
ROWS = [
    {"idx": n, "func": f"int f{n}(int a) {{ return a / {n}; }}", "target": n % 2} for n in range(5)
]
ROWS += [{"idx": 9, "func": "int long_one() {" + " x += 1;" * 300 + " }", "target": 1}]
PACK = {
    "task_id": "Python/0", "prompt": "def f(a):\n    \"\"\"One.\"\"\"\n", "entry_point": "f",
    "declaration": "def f(a):\n", "canonical_solution": "    return 1\n",
    "buggy_solution": "    return 2\n", "test": "def check(f):\n    assert f(0) == 1\n",
    "docstring": "One thing that is said.", "instruction": "Write f.",
}  # fmt: skip
CUDA = Ranks(0, 0, 1, torch.device("cuda", 0))


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """A LoRA adapter that has learned enough to change what the base says, and its base."""
    folder = tmp_path_factory.mktemp("vllm")
    pairs = [{"instruction": f"say {n}", "output": f"yes, {n}.\nno more"} for n in range(6)]
    data = str(write_rows(folder / "train.jsonl", pairs))
    values = {
        "run": {"output_dir": str(folder / "run"), "seed": 3},
        "model": {"config": str(tiny_model)},
        "task": {"name": "instruction"},
        "data": {
            "train": data, "valid": data, "test": data, "seq_length": 128, "allow_leaks": True,
        },
        "tuning": {"method": "lora", "lora_r": 4, "variant": "rslora"},
        "optim": {"lr": 1e-2, "warmup_steps": 1, "max_steps": 8, "global_batch_size": 3},
        "log": {"interval": 1, "progress": False, "trackers": []},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    printed = folder / "printed.txt"
    assert run_ranks([str(folder / "recipe.yaml")], 1, printed) == [0], printed.read_text()[-3000:]
    write_rows(folder / "defect.jsonl", ROWS)
    return folder / "run"


@pytest.fixture
def vllm(monkeypatch):
    for name, module in vllm_stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in (*vllm_writer._OFFLINE, "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.setenv(name, "0")  # what the writer sets ends with the test
    monkeypatch.setattr(vllm_writer, "_sees_gpu", lambda ranks: True)
    vllm_stand_in.LOADED.clear()


def logged(folder, name="outputs"):
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return sorted((row["id"], row["sample"], row["output"]) for row in rows)


def words(model, names, data, output, engine):
    return [str(model), *names, "--data", str(data), "--output", str(output), "--engine", engine]


def test_a_suite_is_the_same_through_both_doors_for_an_adapter_and_a_base(run, vllm, tmp_path):
    """At temperature 0, with prompts that lose their beginning."""
    data, said = run.parent / "defect.jsonl", {}
    base = tmp_path / "plain" / "base"
    shutil.copytree(run / "base", base)
    for path in (run / "model").glob("tokenizer*"):
        shutil.copy(path, base)
    for model in (run, base):
        for engine in ("own", "vllm"):
            folder = tmp_path / model.name / engine
            assert suite(words(model, ["defect"], data, folder, engine)) == 0
            said[model.name, engine] = logged(folder / "defect")
        reports = [
            json.loads((tmp_path / model.name / engine / "defect" / "suite.json").read_text())
            for engine in ("own", "vllm")
        ]
        assert reports[0] == reports[1]
    assert said["run", "own"] == said["run", "vllm"]
    assert said["base", "own"] == said["base", "vllm"]
    assert said["run", "own"] != said["base", "own"]  # or the adapter proves nothing
    adapted, plain = vllm_stand_in.LOADED
    assert adapted.is_adapted
    assert not plain.is_adapted
    assert adapted.kwargs["max_lora_rank"] == 8  # the least that takes rank 4
    assert {*adapted.handed[0].stop} == {"\n", "<|endoftext|>"}


def test_the_ids_of_answers_are_the_same_with_the_token_that_ends_them(run, vllm):
    """No stop string: ended by an end token, by what is over after so many tokens, or by length."""
    trained = open_trained(run)
    alone = Ranks(0, 0, 1, torch.device("cpu"))
    own = Writer(trained.load(alone), alone.device, is_alone=True)
    settled = resolve_here(trained.config, alone.device).config
    other = vllm_writer.VllmWriter(settled, trained.folder, alone, 1024)
    limits = Limits(900, 600, temperature=0.7, top_p=0.9, together=4)
    prompts = [Prompt([5 + n] * 9, "", set(), place=(n, 1)) for n in range(4)]
    whole = own.write(prompts, limits)
    end = whole[0][20]  # a token that is written, but in no way special
    prompts[0] = replace(prompts[0], ends={end})
    prompts[1] = replace(prompts[1], is_over=lambda answer: len(answer) >= 300)
    prompts[2] = replace(prompts[2], most=270)
    ended = own.write(prompts, limits)
    assert other.write(prompts, limits) == ended
    assert ended[0] == whole[0][: whole[0].index(end) + 1]
    assert [len(ids) for ids in ended[1:]] == [304, 270, 600]


@needs_sandbox
def test_programs_drawn_through_both_doors_are_the_same(run, vllm, tmp_path, monkeypatch):
    """By item and sample, for calls of any size; described first, cut by the same stop strings."""
    name = "humanevalpack-explain-python"
    asking = replace(SUITES[name].asking, most_tokens=400, num_samples=4, temperature=0.8)
    describes = replace(asking.describes, most_tokens=150, num_samples=4, temperature=0.8)
    asking = replace(asking, describes=describes)
    monkeypatch.setitem(SUITES, name, replace(SUITES[name], asking=asking))
    write_rows(tmp_path / "pack.jsonl", [PACK, {**PACK, "task_id": "Python/1"}])
    given = {"own": "own", "vllm": "vllm", "small": "vllm"}
    for folder, engine in given.items():
        monkeypatch.setattr(vllm_writer.VllmWriter, "at_once", 3 if folder == "small" else 512)
        assert suite(words(run, [name], tmp_path, tmp_path / folder, engine)) == 0
    for log in ("descriptions", "outputs"):
        own, whole, small = (logged(tmp_path / folder / name, log) for folder in given)
        assert own == whole == small
        assert len({text for _, _, text in own}) > 4  # samples differ
    handed = vllm_stand_in.LOADED[0].handed
    assert {"\ndef", "\nprint"} < {*handed[-1].stop}
    # an answer that no stop string ends is written in parts
    assert max(one.max_tokens for one in handed) == vllm_writer._PART < 400


def test_two_ranks_have_a_vllm_each_on_their_gpu(run, vllm, tmp_path):
    given = words(run, ["defect"], run.parent / "defect.jsonl", tmp_path / "two", "auto")
    printed = tmp_path / "printed.txt"
    codes = run_ranks(given, 2, printed, entry=vllm_stand_in.measure)
    assert codes == [0, 0], printed.read_text()[-3000:]
    assert suite(words(run, ["defect"], run.parent / "defect.jsonl", tmp_path / "one", "own")) == 0
    assert logged(tmp_path / "two" / "defect") == logged(tmp_path / "one" / "defect")
    said = printed.read_text()
    assert "told vllm 6 1" in said
    assert "told vllm 7 1" in said
    assert said.count("engine     vLLM") == 1


@pytest.mark.parametrize(
    ("seen", "rank", "name"), [("", 0, "0"), ("", 1, "1"), ("6,7", 1, "7"), ("GPU-a", 0, "GPU-a")]
)
def test_a_rank_has_the_gpu_of_its_place_among_those_that_are_seen(seen, rank, name):
    assert vllm_writer.own_gpu(seen, rank) == name


def test_what_one_engine_wrote_is_not_taken_for_the_others(run, vllm, tmp_path):
    data = run.parent / "defect.jsonl"
    for engine in ("own", "vllm", "auto"):
        assert suite(words(run, ["defect"], data, tmp_path, engine)) == 0
    assert len(logged(tmp_path / "defect")) == 2 * len(ROWS)
    assert [len(one.handed) > 0 for one in vllm_stand_in.LOADED] == [True, False]


@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_a_chat_is_the_same_through_both_doors(temperature, run, vllm, monkeypatch, capsys):
    said = {}
    monkeypatch.setattr(vllm_stand_in, "PLACES", vllm_stand_in.IN_A_CHAT)
    for engine in ("own", "vllm"):
        typed = io.TextIOWrapper(io.BytesIO(b"say 3\nagain\n"), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", typed)
        given = ["--temperature", temperature, "--tokens", "40", "--engine", engine]
        assert chat([str(run), *given]) == 0
        said[engine] = capsys.readouterr().out
    assert said["own"] == said["vllm"]
    assert len(said["own"]) > 4
    assert len(vllm_stand_in.LOADED) == 1


def faulty(run, tmp_path, tuning=None, **settings):
    folder = tmp_path / "model"
    shutil.copytree(run / "model", folder, dirs_exist_ok=True)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    config = open_trained(run).config
    return config.changed("tuning", **(tuning or {})), folder


@pytest.mark.parametrize(
    ("tuning", "settings", "reason"),
    [
        ({}, {"use_dora": True}, "plain LoRA, this is DoRA"),
        ({}, {"modules_to_save": ["lm_head"]}, "layers trained as a whole"),
        ({}, {"bias": "all"}, "trained biases"),
        ({}, {"target_parameters": ["experts"]}, "parameters that are no layers"),
        ({}, {"alpha_pattern": {"c_attn": 9}}, "scales of their own"),
        ({}, {"r": 600}, "rank 600, above 512"),
        ({"method": "ia3"}, {}, "this is a ia3 adapter"),
        ({"method": "qlora", "quant_type": "fp4"}, {}, "nf4 with double quantisation, this one"),
        ({"method": "qlora", "quant_type": "int8"}, {}, "this one was int8"),
        ({"method": "qlora", "double_quant": False}, {}, "was nf4 with single"),
    ],
)
def test_what_vllm_does_not_read_is_refused_with_what_it_does(
    tuning, settings, reason, run, vllm, tmp_path, capsys
):
    config, folder = faulty(run, tmp_path, tuning, **settings)
    with pytest.raises(ConfigError, match="--merge") as caught:
        vllm_writer.takes_vllm("vllm", config, folder, CUDA)
    assert reason in str(caught.value)
    assert not vllm_writer.takes_vllm("auto", config, folder, CUDA)
    assert f"own, because {str(caught.value)[15:60]}" in capsys.readouterr().err
    assert not vllm_stand_in.LOADED  # before anything is loaded


def test_a_quantised_base_is_quantised_alike(run, vllm, tmp_path):
    config, folder = faulty(run, tmp_path, {"method": "qlora"})
    config = config.changed("engine", precision="bf16")
    assert vllm_writer.takes_vllm("vllm", config, folder, CUDA)
    options = vllm_writer._options(config, folder)
    assert (options["quantization"], options["dtype"]) == ("bitsandbytes", "bfloat16")


def test_without_vllm_or_a_gpu_own_writes_and_vllm_is_refused(run, vllm, monkeypatch, capsys):
    config, folder = open_trained(run).config, Path(run / "model")
    with pytest.raises(ConfigError, match=r"temperatures from 0\.01 to 2"):
        vllm_writer.takes_vllm("vllm", config, folder, CUDA, 3.0)
    monkeypatch.setattr(vllm_writer, "_sees_gpu", lambda ranks: ranks.device.type == "cuda")
    alone = Ranks(0, 0, 1, torch.device("cpu"))
    assert not vllm_writer.takes_vllm("auto", config, folder, alone)
    monkeypatch.delitem(sys.modules, "vllm")
    assert suite(words(run, ["defect"], run.parent / "defect.jsonl", run.parent, "vllm")) == 2
    assert "vLLM is not installed here" in capsys.readouterr().err
