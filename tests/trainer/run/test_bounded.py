"""A run that cannot go on ends by itself: soon, on all ranks, and saying why."""

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import rank_checks
import torch
from rank_pool import run_ranks, start_ranks, wait_ranks

from trainer.engine.finite import FiniteCheck, Report, diverged
from trainer.errors import HungError, LostRankError
from trainer.processes.distributed import Ranks
from trainer.processes.peers import connection_error, silent_hosts
from trainer.processes.watchdog import Watchdog
from trainer.run_folder.metrics import read_log

HOST = socket.gethostname()
ALONE = Ranks(0, 0, 2, torch.device("cpu"), (HOST, HOST))


def command(recipe, folder, *overrides):
    return [str(recipe), f"run.output_dir={folder}", "eval.interval=never", *overrides]


def steps_saved(folder):
    return sorted(
        int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir()
    )


@pytest.mark.parametrize("preset", ["cpu_zero1", "cpu_zero2", "cpu_zero3"])
def test_every_group_of_an_engine_has_the_timeout_of_the_recipe(preset, tiny_recipe, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    asked = command(
        tiny_recipe, folder, "optim.max_steps=2", f"engine.preset={preset}",
        "engine.timeout_seconds=77",
    )  # fmt: skip
    codes = run_ranks(asked, 2, printed, entry=rank_checks.report_engine_timeouts)
    assert codes == [0, 0], printed.read_text()[-2000:]
    found = re.findall(r"timeout (\S+) of (\d+)", printed.read_text())
    assert {seconds for seconds, _ in found} == {"77.0"}
    assert len(found) == 2 * int(found[0][1]) >= 4  # the world's, and at least one more


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("loss", ["engine.preset=cpu_zero1"]),
        ("loss", ["engine.preset=cpu_zero2", "engine.precision=bf16", "log.interval=1000"]),
        ("gradient", ["engine.preset=cpu_zero2", "engine.precision=bf16", "log.interval=1000"]),
        ("gradient", ["engine.preset=cpu_zero0"]),
        ("gradient", ["engine.preset=cpu_zero3", "log.interval=1000"]),
        ("loss", ["engine.preset=cpu_zero1", "engine.precision=fp16"]),
    ],
)
def test_nan_stops_all_ranks_before_it_is_saved_and_is_named(kind, setting, tiny_recipe, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    for every in (1000, 1):  # learned late, and at once; the second continues what the first saved
        asked = command(tiny_recipe, folder, f"save.interval={every}", *setting, f"POISON={kind}")
        codes = run_ranks(asked, 2, printed, allow_fp16=True, entry=rank_checks.read_poison)
        assert codes == [6, 6], printed.read_text()[-3000:]
    said = re.findall(
        r"error: step (\d+): the .*rank (\d).* in micro-batch \d+ with records ([\d, ]+) of",
        printed.read_text(),
    )
    assert len(said) == 4  # both ranks, twice
    assert len(set(said)) == 1
    step, rank, records = said[0]
    assert int(step) > 1
    assert steps_saved(folder)[-1] == int(step) - 1
    read_by, examples = (folder / "poison.txt").read_text().split(maxsplit=1)
    if kind == "loss" or "cpu_zero0" in setting[0]:  # otherwise the norm is of all ranks
        assert (rank, list(map(int, records.split(", ")))) == (read_by, ast.literal_eval(examples))
        assert rank_checks.POISONED in ast.literal_eval(examples)


def test_a_step_is_read_one_step_later_or_at_once():
    check = FiniteCheck(torch.device("cpu"), skips_overflows=False)
    check.record(1, torch.tensor([0.5, float("inf"), 2.0]), 1.0)
    assert check.read(settle=False) == Report()
    check.record(2, torch.tensor([0.5, 0.25]), None)
    assert check.read(settle=False) == Report(1, 1, float("inf"), 1.0)
    assert check.read(settle=True) == Report(2, 0, 0.5, 0.0)
    assert check.read(settle=True) == Report()


def test_an_overflow_of_fp16_is_no_divergence_but_its_loss_is():
    check = FiniteCheck(torch.device("cpu"), skips_overflows=True)
    check.record(1, torch.tensor([0.5]), float("inf"))
    assert check.read(settle=True).is_finite
    check.record(2, torch.tensor([float("nan")]), 1.0)
    assert not check.read(settle=True).is_finite


def test_a_norm_that_is_not_finite_blames_the_largest_loss():
    reports = [Report(3, 1, 0.7, float("inf")), Report(3, 0, 9.0, float("inf"))]
    error = diverged(reports, lambda step, rank, micro_batch: [step, rank, micro_batch])
    assert "step 3: the gradients are not finite; the largest loss, 9, is rank 1's" in str(error)
    assert "micro-batch 1 with records 2, 1, 0 of" in str(error)


def test_a_rank_that_hangs_ends_with_its_stack_and_the_others_with_it(tiny_recipe, tmp_path):
    printed = tmp_path / "printed"
    started = time.monotonic()
    asked = command(tiny_recipe, tmp_path / "run", "engine.timeout_seconds=5")
    codes = run_ranks(asked, 2, printed, entry=rank_checks.hang_at_step_six)
    assert codes == [6, 6], printed.read_text()[-3000:]
    assert time.monotonic() - started < 60
    text = printed.read_text()
    assert re.search(rf"step 6 has not ended after 5 s .*rank 1 of 2 on {HOST}", text)
    assert "in sleep_for_good" in text
    assert re.search(rf"rank 0 of 2 on {HOST}", text)


def test_ranks_that_do_not_meet_are_told_where_they_waited(tiny_recipe, tmp_path):
    printed = tmp_path / "printed"
    asked = command(tiny_recipe, tmp_path / "run", "engine.join_seconds=3")
    assert run_ranks(asked, 2, printed, entry=rank_checks.miss_the_meeting) == [5, 0]
    assert f"rank 0 of 2 on {HOST} waited 3 s for rank 1" in printed.read_text()
    assert "Traceback" not in printed.read_text()


def test_117_a_killed_rank_ends_the_others_within_seconds(tiny_recipe, tmp_path):
    folder, printed = tmp_path / "run", tmp_path / "printed"
    ranks = start_ranks(command(tiny_recipe, folder, "optim.max_steps=400"), 2, printed)
    deadline = time.monotonic() + 120
    while not (folder / "log.jsonl").exists() or not read_log(folder / "log.jsonl"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(ranks[1].pid, signal.SIGKILL)
    killed = time.monotonic()
    assert wait_ranks(ranks) == [5, -signal.SIGKILL]
    assert time.monotonic() - killed < 10
    assert f"connection to another rank broke: rank 0 of 2 on {HOST}" in printed.read_text()
    assert "Traceback" not in printed.read_text()


def test_what_takes_five_times_as_long_as_before_expires_and_the_first_ones_may_take_long():
    expired = threading.Event()
    said = []

    def expire(sentence):
        said.append(sentence)
        expired.set()

    watchdog = Watchdog(1000.0, 4, expire, shortest=0.5)
    for number in range(4):
        assert watchdog.allowed("step") == 1000.0  # warm-up
        with watchdog.watching("step", number):
            time.sleep(0.01)
    assert watchdog.allowed("step") == 0.5  # five times 0.01 s is below the shortest
    with watchdog.watching("step", 4):
        time.sleep(0.3)
    assert 1.5 <= watchdog.allowed("step") < 4.0
    assert watchdog.allowed("save after step") == 1000.0  # of another kind nothing is known
    with watchdog.watching("save after step", 4):
        time.sleep(0.01)
    assert not said
    with watchdog.watching("save after step", 5):
        assert expired.wait(10)
    watchdog.close()
    assert said[0].startswith("save after step 5 has not ended after")


def test_what_is_not_watched_does_not_expire():
    said = []
    watchdog = Watchdog(0.2, 3, said.append)
    with watchdog.watching("step", 1):
        pass
    time.sleep(1.2)
    watchdog.close()
    assert not said


def test_time_in_which_the_process_was_suspended_does_not_count():
    program = (
        "import os, time\n"
        "from trainer.processes.watchdog import Watchdog\n"
        "watchdog = Watchdog(3.0, 3, lambda told: os._exit(6))\n"
        "with watchdog.watching('step', 1):\n"
        "    print(flush=True)\n"
        "    for _ in range(15): time.sleep(0.1)\n"
        "watchdog.close()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as watched:
        assert watched.stdout.readline()
        watched.send_signal(signal.SIGSTOP)
        time.sleep(5)
        watched.send_signal(signal.SIGCONT)
        assert watched.wait(20) == 0


def test_gloos_and_torchs_errors_become_ours_and_others_stay():
    lost = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"
    late = "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms"
    assert isinstance(connection_error(RuntimeError(lost), ALONE), LostRankError)
    assert isinstance(connection_error(RuntimeError(late), ALONE), HungError)
    nccl = torch.distributed.DistBackendError("NCCL error: remote process exited")
    assert isinstance(connection_error(nccl, ALONE), LostRankError)
    assert connection_error(RuntimeError("shapes cannot be multiplied"), ALONE) is None


def test_a_host_that_is_not_there_is_named_and_this_one_is_not():
    assert silent_hosts(["host-that-is-not.invalid", "127.0.0.1"]) == ["host-that-is-not.invalid"]
