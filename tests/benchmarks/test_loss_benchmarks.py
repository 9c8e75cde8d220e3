"""The benchmarks of the loss and the LoRA layer run, and judge by their own numbers."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from conftest import REPOSITORY

from benchmarks.lora_linear import BACKENDS, Case, measure_layer, table
from benchmarks.loss_goals import cpu_goals, gpu_goals


def run(script, *arguments):
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_loss_benchmark_measures_ours_and_a_peer(tmp_path):
    result = tmp_path / "loss.json"
    printed = run(
        "loss.py", "--tokens", "512", "--vocab", "4096", "--hidden", "32", "--repeats", "1",
        "--json", str(result), "--only", "ours, torch", "naive eager", "Liger, plain cross-entropy",
    )  # fmt: skip
    ours, naive, liger = json.loads(result.read_text())["rows"]
    assert ours["error"] < 1e-5
    assert 0 < ours["peak_bytes"] < naive["peak_bytes"]
    assert liger["absent"]
    assert "not measured" in printed


def test_the_lora_benchmark_sets_both_side_by_side():
    device, case = torch.device("cpu"), Case("mixed", 0.05, 64, 32)
    found = {backend: measure_layer(backend, case, device) for backend in BACKENDS}
    assert all(found[backend]["seconds"] > 0 for backend in BACKENDS)
    by_hand = {b: found[b] | {"seconds": s} for b, s in (("fused", 2.0), ("peft", 3.0))}
    printed = table([asdict(case) | by_hand], device)
    assert "1.50x" in printed
    assert ">= 1x: met" in printed


def row(contender, seconds, peak_bytes, **changes):
    return {
        "contender": contender, "hidden_size": 2048, "num_tokens": 8192, "vocab_size": 49152,
        "gamma": 2.0, "ignored": 0.0, "seconds": seconds, "peak_bytes": peak_bytes, "error": 1e-3,
    } | changes  # fmt: skip


def verdicts(goals):
    return {(goal.name, goal.contender): goal.verdict for goal in goals}


def test_cpu_goals_by_hand():
    found = verdicts(
        cpu_goals([row("ours, torch", 7.0, 4), row("naive eager", 10.0, 99),
                   row("DeepSpeed tiled", 6.9, 5)])
    )  # fmt: skip
    assert found["our time / theirs", "naive eager"] == "met"  # 0.70
    assert found["our peak / theirs", "naive eager"] == "not met"  # 4 / 99 > 1 / 25
    assert found["our time / theirs", "DeepSpeed tiled"] == "not met"
    assert found["our peak / theirs", "DeepSpeed tiled"] == "met"
    assert found["our time / theirs", "TRL chunked + f(nll)"] == "not measured"


def test_gpu_goals_by_hand():
    rows = [
        row("ours, triton", 7e-3, 4),
        row("ours, triton", 6.9e-3, 4, gamma=0.0),
        row("ours, triton", 2.6e-3, 4, ignored=0.7),
        row("naive eager", 9e-3, 32),
    ]
    goals = gpu_goals(rows)
    found = verdicts(goals)
    assert found["speed-up", "naive eager"] == "met"  # 1.286
    assert found["peak / naive", "ours, triton"] == "met"
    assert found["time with 70% ignored / dense", "ours, triton"] == "not met"  # 0.371
    assert found["time of gamma 2 / gamma 0", "ours, triton"] == "met"
    # 4 x 8192 x 2048 x 49152 / 7 ms = 471 TFLOP/s of 790
    share = next(goal for goal in goals if goal.name == "share of peak")
    assert share.found == pytest.approx(0.5965, rel=1e-3)
    assert share.verdict == "met"
