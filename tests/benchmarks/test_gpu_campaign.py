"""The GPU campaign: what fails or is late is recorded, and the rest goes on."""

import json

import pytest

from benchmarks import gpu_campaign
from benchmarks.gpu_campaign import STAGES, Stage, campaign, report

SLEEPS = ("-c", "import time; print('begun', flush=True); time.sleep(60)")


@pytest.fixture
def stages(monkeypatch):
    """A stage that fails, one that is late, and two of the campaign's own."""
    own = {
        "fails": Stage(20, ("-c", "import sys; print('why'); sys.exit(3)")),
        "late": Stage(2, SLEEPS),
        "facts": STAGES["facts"],
        "attention": STAGES["attention"],
    }
    monkeypatch.setattr(gpu_campaign, "STAGES", own)
    return list(own)


def test_every_stage_is_recorded_and_the_tables_are_made_of_them(stages, tmp_path):
    out = tmp_path / "campaign.json"
    content = campaign(stages, 120, out, dry=True)
    assert json.loads(out.read_text()) == content
    fails, late, facts, attention = content["stages"]
    assert (fails["code"], fails["printed"]) == (3, "why\n")
    assert (late["code"], late["printed"]) == (None, "begun\n")
    assert late["seconds"] < 20
    assert facts["result"]["tflops_fp32"] > 0
    assert set(attention["result"]) == {"64 mask", "64 segments"}
    assert all(0 < case["error"] < 0.05 for case in attention["result"].values())  # 8 bits
    page = report(content)
    assert "| late      | -    | 2" in page
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
        for key in stage.keys:
            if key.startswith("model.config="):
                assert gpu_campaign.Path(key.partition("=")[2]).is_file()
