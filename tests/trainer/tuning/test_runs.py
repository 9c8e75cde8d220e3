"""Whole runs of every tuning method: ranks and ZeRO stages, resume, a fresh process, merge."""

import json
import shutil
import sys

import bitsandbytes  # noqa: F401  # a run of this process that needs none would hide it
import pytest
import torch
import yaml
from conftest import SAMPLES, sample_rows, write_rows
from cut_runs import cut_back
from method_cases import METHODS, PEFT_METHODS, overrides, write_model
from rank_pool import run_ranks
from safetensors.torch import load_file
from stock_pool import run_stock
from transformers import AutoModelForCausalLM

from launcher.evaluate import main as evaluate_main
from launcher.export import main as export_main
from trainer.run_folder.metrics import read_log

pytestmark = pytest.mark.usefixtures("stock_pool")
STEPS = 4
ROUNDING = 5e-6  # sums in another order, over four steps
FAMILY = {
    "full": "qwen2", "lora": "llama", "rslora": "qwen2", "dora": "gpt2", "ia3": "llama",
    "ptuning": "gpt_bigcode", "adapter_h": "llama", "adapter_p": "gpt2", "parallel": "gpt_bigcode",
    "vblora": "qwen2", "prefix_tuning": "llama",
}  # fmt: skip
NEW = [name for name in METHODS if name != "lora"] + list(
    PEFT_METHODS
)  # which test_resume.py and others take through
# One for each kind of trained parts: all, PEFT's matrices, its vectors, its prompt, our layers.
LAYOUTS = ["full", "dora", "ia3", "ptuning", "parallel", *PEFT_METHODS]


def run(arguments, folder, preset, world_size, *more, code=0):
    """The losses of a run, or what it printed where it must fail."""
    printed = folder.with_suffix(".txt")
    command = [*arguments, f"run.output_dir={folder}", f"engine.preset={preset}", *more]
    codes = run_ranks(command, world_size, printed)
    assert codes == [code] * world_size, printed.read_text()[-3000:]
    return printed.read_text() if code else losses(folder)


def losses(folder):
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


@pytest.fixture(scope="module")
def arguments_of(tiny_recipe, tmp_path_factory):
    """Recipe and overrides of a method on the family that it is tried on here."""
    models = tmp_path_factory.mktemp("models")
    folders = {
        family: write_model(models / family, family, SAMPLES / "model")
        for family in set(FAMILY.values())
    }

    def arguments(name):
        return [
            str(tiny_recipe), f"model.config={folders[FAMILY[name]]}", "data.seq_length=512",
            f"optim.max_steps={STEPS}", *overrides(name),
        ]  # fmt: skip

    return arguments


@pytest.fixture(scope="module")
def finished(arguments_of, tmp_path_factory):
    """Folder of every method's run under ZeRO 2 on two ranks."""
    root = tmp_path_factory.mktemp("finished")
    for name in NEW:
        run(arguments_of(name), root / name, "cpu_zero2", 2)
    return root


@pytest.mark.parametrize("name", NEW)
def test_one_rank_without_zero_has_the_losses_of_two_with_it(
    name, arguments_of, finished, tmp_path
):
    alone = run(arguments_of(name), tmp_path / "run", "cpu_zero0", 1)
    assert alone == pytest.approx(losses(finished / name), rel=ROUNDING)
    assert len(set(alone)) == STEPS


@pytest.mark.parametrize("name", NEW)
def test_a_continued_run_repeats_to_the_last_bit(name, arguments_of, finished, tmp_path):
    folder = cut_back(finished / name, tmp_path / "run", STEPS // 2)
    assert run(arguments_of(name), folder, "cpu_zero2", 2) == losses(finished / name)
    for path in sorted((finished / name / "model").glob("*.safetensors")):
        assert (folder / "model" / path.name).read_bytes() == path.read_bytes()
    report = (folder / "report" / "predictions.jsonl").read_text()
    assert report == (finished / name / "report" / "predictions.jsonl").read_text()


@pytest.mark.parametrize("name", LAYOUTS)
def test_zero_3_continues_what_zero_2_began(name, arguments_of, finished, tmp_path):
    folder = cut_back(finished / name, tmp_path / "run", STEPS // 2)
    continued = run(arguments_of(name), folder, "cpu_zero3", 2)
    assert continued == pytest.approx(losses(finished / name), rel=ROUNDING)
    assert scores(folder) == pytest.approx(scores(finished / name), abs=1e-5)


def scores(folder):
    lines = (folder / "report" / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["score"] for line in lines]


# Nothing of ours is imported: what a user of transformers and PEFT would write, and for bottleneck
# adapters what the text of trainer/tuning/bottleneck.py says.
STOCK = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

tokenizer = Tokenizer.from_file(sys.argv[1])
codes, classifier = json.load(open(sys.argv[2])), AutoModelForSequenceClassification

def load(adapter):
    if not (adapter / "adapter_config.json").exists():
        return classifier.from_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    base = classifier.from_pretrained(config["base_model_name_or_path"], num_labels=2)
    if config.get("format") != "focaltune-bottleneck-1":
        return PeftModel.from_pretrained(base, adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    base.load_state_dict({k: v for k, v in weights.items() if ".adapter_" not in k}, strict=False)
    for name in {k.split(".adapter_")[0] for k in weights if ".adapter_" in k}:
        [place] = [p for end, p in config["places"].items() if name.endswith("." + end)]
        down, up = (weights[f"{name}.adapter_{part}.weight"] for part in ("down", "up"))
        f = lambda x, down=down, up=up: torch.tanh(x @ down.T) @ up.T
        put(base.get_submodule(name), place, f)
    return base

def put(layer, place, added):
    if place == "input":
        layer.register_forward_pre_hook(lambda _, x: (x[0] + added(x[0]),))
    elif place == "output":
        layer.register_forward_hook(lambda _, x, y: y + added(y))
    else:
        layer.register_forward_hook(lambda _, x, y: y + added(x[0]))

results = {}
for adapter in map(Path, sys.argv[3:]):
    model, facts = load(adapter).eval(), json.loads((adapter / "focaltune.json").read_text())
    model.config.pad_token_id = None
    end = tokenizer.token_to_id(facts["end_token"])
    results[adapter.parent.name] = []
    for code in codes:
        ids = tokenizer.encode(code, add_special_tokens=False).ids[: facts["seq_length"] - 1]
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids + [end]])).logits
        results[adapter.parent.name].append(out.double().softmax(1)[0, 1].item())
print(json.dumps(results))
"""


def test_every_method_gives_the_scores_of_its_report_in_a_process_without_us(
    finished, tiny_data, tiny_model, tmp_path
):
    inputs = tmp_path / "inputs.json"
    rows = map(json.loads, (tiny_data / "test.jsonl").read_text().splitlines())
    inputs.write_text(json.dumps([row["code"] for row in rows]))
    folders = [str(finished / name / "model") for name in NEW]
    tokenizer = str(tiny_model / "tokenizer.json")
    stock = run_stock([sys.executable, "-c", STOCK, tokenizer, str(inputs), *folders], cwd=tmp_path)
    assert stock.returncode == 0, stock.stderr[-2000:]
    theirs = json.loads(stock.stdout.splitlines()[-1])
    assert theirs.keys() == set(NEW)
    for name in NEW:
        ours = scores(finished / name)
        assert max(ours) - min(ours) > 1e-3
        assert theirs[name] == pytest.approx(ours, abs=2e-6), name


@pytest.mark.parametrize("name", NEW)
def test_a_finished_run_scores_another_file_the_same(name, finished, tiny_data, tmp_path):
    folder = shutil.copytree(finished / name, tmp_path / "run")
    again = shutil.copy(tiny_data / "test.jsonl", tmp_path / "again.jsonl")
    assert evaluate_main([str(folder), str(again)]) == 0
    lines = next((folder / "report").glob("again*.jsonl")).read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == pytest.approx(
        scores(finished / name), abs=1e-6
    )


@pytest.mark.parametrize("name", NEW)
def test_a_method_merges_where_merging_is_defined(name, finished, tmp_path, capsys):
    output = tmp_path / "merged"
    code = export_main([str(finished / name), str(output), "--merge"])
    captured = capsys.readouterr()
    if name in ("ptuning", "prefix_tuning", "adapter_h", "adapter_p", "parallel"):
        assert code == 2
        assert (
            "cannot be merged: its adapters are not part of a linear layer's weight" in captured.err
        )
        assert not output.exists()
        return
    assert code == 0, captured.err
    drift = json.loads((output / "focaltune.json").read_text())["merge"]
    assert drift["max_logit_difference"] < 1e-4 * max(1.0, drift["largest_logit"])
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "adapter_config.json" not in names


@pytest.mark.parametrize("name", NEW)
def test_a_method_of_peft_is_exported_as_it_is(name, finished, tmp_path, capsys):
    code = export_main([str(finished / name), str(tmp_path / "out")])
    captured = capsys.readouterr()
    if name in ("adapter_h", "adapter_p", "parallel"):
        assert code == 2
        assert "no stock library reads bottleneck adapters" in captured.err
        return
    assert code == 0, captured.err
    assert ("transformers" if name == "full" else "peft") in captured.out
    assert ("one function at a time" in (tmp_path / "out" / "README.md").read_text()) == (
        name == "ptuning"
    )


@pytest.mark.parametrize("name", ["full", "ptuning", "parallel"])
def test_init_from_starts_where_another_run_ended(name, arguments_of, finished, tmp_path):
    start = f"tuning.init_from={finished / name}"
    quiet = ["optim.lr=1e-12", "optim.max_steps=2", "optim.warmup_steps=0"]
    continued = run(arguments_of(name), tmp_path / "run", "cpu_zero1", 1, start, *quiet)
    assert continued[0] != pytest.approx(losses(finished / name)[0], rel=1e-3)
    # Nothing was learned since: the report is that of the run it started from.
    assert scores(tmp_path / "run") == pytest.approx(scores(finished / name), abs=1e-5)


def test_the_banner_lists_the_layers_that_are_adapted(finished):
    expected = {
        "ia3": "mlp.down_proj, self_attn.k_proj, self_attn.v_proj (auto: ia3 on llama)",
        "adapter_h": "mlp.down_proj (auto: adapter_h on llama)",
        "parallel": "attn.c_attn (auto: parallel on gpt_bigcode)",
        "dora": "c_attn, c_fc, c_proj (auto: every linear layer)",
    }
    for name, line in expected.items():
        assert line in (finished / name).with_suffix(".txt").read_text()
    assert "%, ptuning 5)" in (finished / "ptuning").with_suffix(".txt").read_text()
    assert "lora r 4, dora)" in (finished / "dora").with_suffix(".txt").read_text()


@pytest.mark.parametrize("name", NEW)
def test_the_plan_counts_what_the_run_trains(name, finished):
    printed = (finished / name).with_suffix(".txt").read_text()
    [line] = [line for line in printed.splitlines() if line.startswith("  trained ")]
    plan = json.loads((finished / name / "plan.json").read_text())
    assert line.startswith(f"  trained    {plan['num_trained']:,} of ")


@pytest.fixture(scope="module")
def instructions(tiny_recipe, tmp_path_factory):
    """Recipe and data of a language task: functions asked for by number."""
    folder = tmp_path_factory.mktemp("instructions")
    for split, count in (("train", 16), ("valid", 6), ("test", 6)):
        rows = [
            {"instruction": f"Write {split} function {index}.", "output": str(row["code"])[:300]}
            for index, row in enumerate(sample_rows(split, count, 600))
        ]
        write_rows(folder / f"{split}.jsonl", rows)
    values = yaml.safe_load(tiny_recipe.read_text())
    values["data"]["path"], values["task"] = str(folder), {"name": "instruction"}
    values["loss"] = {}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    return recipe


@pytest.mark.parametrize("name", ["full", "ia3", "ptuning", "parallel"])
def test_a_language_task_is_tuned_and_continued_alike(name, arguments_of, instructions, tmp_path):
    arguments = [str(instructions), *arguments_of(name)[1:]]
    alone = run(arguments, tmp_path / "alone", "cpu_zero0", 1)
    folder = tmp_path / "run"
    whole = run(arguments, folder, "cpu_zero2", 2)
    assert whole == pytest.approx(alone, rel=ROUNDING)
    assert len(set(whole)) == STEPS
    again = cut_back(folder, tmp_path / "again", STEPS // 2)
    assert run(arguments, again, "cpu_zero2", 2) == whole
    assert not any("score" in key for key in saved_weights(again / "model"))


def test_a_merged_model_whose_embedding_alone_was_trained_is_not_tied(
    arguments_of, instructions, tmp_path
):
    folder, output = tmp_path / "run", tmp_path / "merged"
    arguments = [str(instructions), *arguments_of("dora")[1:], "tuning.modules_to_save=[wte]"]
    run(arguments, folder, "cpu_zero1", 1)
    assert export_main([str(folder), str(output), "--merge"]) == 0
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    assert base.config.tie_word_embeddings
    merged = AutoModelForCausalLM.from_pretrained(output)
    assert not merged.config.tie_word_embeddings
    assert torch.equal(merged.lm_head.weight, base.lm_head.weight)
    assert not torch.equal(merged.transformer.wte.weight, base.transformer.wte.weight)


def saved_weights(folder):
    [path] = folder.glob("*model.safetensors")
    return load_file(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("dora", "nf4"), ("ia3", "int8"), ("ptuning", "int8"), ("adapter_h", "int8"),
     ("parallel", "nf4")],
)  # fmt: skip
def test_every_method_learns_beside_a_quantised_base(name, kind, arguments_of, tmp_path):
    folder = tmp_path / "run"
    keys = [f"tuning.quant_type={kind}", "model.gradient_checkpointing=true"]
    # Packed, every column is rounded to 8 bits, outliers too: a merge is closer without.
    keys += ["data.packing=false"] if name in ("ptuning", "ia3") else []
    learned = run(arguments_of(name), folder, "cpu_zero1", 1, *keys)
    assert min(learned) < learned[0]
    assert f"quantised  {kind}, " in folder.with_suffix(".txt").read_text()
    facts = json.loads((folder / "model" / "focaltune.json").read_text())
    assert facts["quantization"]["quant_type"] == kind
    if name == "ia3":
        output = tmp_path / "merged"
        assert export_main([str(folder), str(output), "--merge"]) == 0
        drift = json.loads((output / "focaltune.json").read_text())["merge"]
        assert drift["onto"] == "dequantized"
        # int8 products are rounded to whole numbers, which the decoded weights' are not.
        assert drift["max_logit_difference"] < 0.05 * max(1.0, drift["largest_logit"])
