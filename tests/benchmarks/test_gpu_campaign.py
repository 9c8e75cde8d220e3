"""The GPU campaign: what fails or is late is recorded, and the rest goes on."""

import json

import pytest

from benchmarks import gpu_campaign, gpu_peers
from benchmarks.gpu_campaign import STAGES, Stage, campaign, report
from trainer.config.machines import DEVICES, Machine
from trainer.config.recipe import load_run_config
from trainer.planning.plan import read_shape
from trainer.planning.resolve import resolve

SLEEPS = ("-c", "import time; print('begun', flush=True); time.sleep(60)")


@pytest.fixture
def stages(monkeypatch):
    """A stage that fails, one that is late, and two of the campaign's own."""
    own = {
        "fails": Stage(20, ("-c", "import sys; print('why'); sys.exit(3)")),
        "late": Stage(2, SLEEPS),
        "facts": STAGES["facts"],
        "attention": STAGES["attention"],
        "peer unsloth": STAGES["peer unsloth"],
    }
    monkeypatch.setattr(gpu_campaign, "STAGES", own)
    return list(own)


def test_every_stage_is_recorded_and_the_tables_are_made_of_them(stages, tmp_path):
    out = tmp_path / "campaign.json"
    content = campaign(stages, 120, out, dry=True)
    assert json.loads(out.read_text()) == content
    fails, late, facts, attention, unsloth = content["stages"]
    assert (fails["code"], fails["printed"]) == (3, "why\n")
    assert (late["code"], late["printed"]) == (None, "begun\n")
    assert late["seconds"] < 20
    assert facts["result"]["tflops_fp32"] > 0
    assert set(attention["result"]) == {"64 mask", "64 segments"}
    assert all(0 < case["error"] < 0.05 for case in attention["result"].values())  # 8 bits
    assert unsloth["result"] == {"absent": "unsloth is not installed"}
    page = report(content)
    assert "| unsloth | unsloth is not installed | - " in " ".join(page.split())
    assert "| late | - | 2" in " ".join(page.split())
    assert "| 64 segments |" in page


def test_a_campaign_without_time_begins_nothing_more(stages, tmp_path):
    content = campaign(stages, gpu_campaign._LEAST_SECONDS - 1, tmp_path / "out.json", dry=True)
    assert content["stages"] == []


def test_a_training_is_measured_against_its_plan(tmp_path):
    """By hand: the median of the last two thirds of the steps, the highest peak."""
    run = tmp_path / "run"
    run.mkdir()
    speeds = [1.0, 100.0, 400.0]
    rows = [
        {"kind": "train", "loss": 1.0, "tokens_per_second": speed, "memory_gib": 2.0 - n}
        for n, speed in enumerate(speeds)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    memory = {"total": 3 * 2**30, "context": 2**30, "fragmentation": 0}
    plan = {"memory": memory, "flops": 6400.0, "num_steps": 2, "data": {"tokens_mean": 10.0}}
    (run / "plan.json").write_text(json.dumps(plan))
    (run / "config.yaml").write_text("optim: {global_batch_size: 16}")
    found = gpu_campaign._of_run(run, "  records    varlen (x): max |diff| to stock = 0.0e+00")
    assert found["tokens_per_second"] == 400.0
    assert (found["peak_gib"], found["planned_gib"]) == (2.0, 2.0)
    assert found["flops_a_token"] == 6400 / (10 * 16 * 2)
    assert found["records"].startswith("varlen")


def test_every_file_and_module_of_a_stage_exists():
    for stage in STAGES.values():
        if stage.command and stage.command[0] != "-m":
            assert (gpu_campaign.REPOSITORY / stage.command[0]).is_file()
        if stage.keys:
            keys = ["model.path=null"] if stage.keys[0].startswith("model.config") else []
            keys += ["optim.epochs=null", "optim.warmup_steps=0", *stage.keys]
            config = load_run_config(gpu_campaign.REPOSITORY / "recipes/quickstart.yaml", keys)
            assert (config.tokenizer_folder / "tokenizer.json").is_file()
            for device in ("H200", "A100-80"):
                recipe = resolve(config, read_shape(config), Machine(DEVICES[device], 1))
                assert not recipe.faults


@pytest.mark.parametrize(
    ("peer", "rows", "packing"), [("trl", 1, "wrapped"), ("trainer", 2, "none")]
)
def test_a_peer_trains_on_the_texts_of_our_run(peer, rows, packing):
    """TRL wraps texts into full rows; the Trainer pads two texts to the longer one."""
    given = gpu_peers.parsed([
        peer, "--model", str(gpu_campaign._TINY), "--device", "cpu", "--steps", "3",
        "--rows", str(rows), "--seq-length", "512",
    ])  # fmt: skip
    found = gpu_peers.measure(peer, given)
    assert found["packing"] == packing
    assert found["tokens_per_second"] > 0
    assert len(found["losses"]) == 3
    assert all(6 < loss < 9 for loss in found["losses"])  # log 2048 is 7.6: weights are random
    assert (0.01 < found["padding"] < 0.6) == (packing == "none")


def test_peers_are_compared_with_our_run_of_the_same_texts():
    """By hand: 300 tokens/s against 100 and 150."""
    names = {"7B QLoRA 512 text": 300.0, "peer trl": 150.0, "peer trainer": 100.0}
    stages = [
        {"name": name, "code": 0, "seconds": 1.0,
         "result": {"tokens_per_second": speed, "padding": 0.4, "packing": "none",
                    "peak_gib": 2.0, "planned_gib": 2.0}}
        for name, speed in names.items()
    ]  # fmt: skip
    page = report({"date": "2026-01-01", "stages": stages})
    rows = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in page.splitlines()
            if line.count("|") == 6}  # fmt: skip
    assert (rows["trl"], rows["trainer"]) == ("2.00", "3.00")
