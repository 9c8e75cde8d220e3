"""What happens to two hosts of two ranks: how long it takes, what is said, what is left."""

import signal
import time

import pytest
from cluster.hosts import missing
from cluster.runs import BOTH, SETTINGS, STEPS, Run, by_deepspeed, supervised
from rank_pool import run_ranks

from trainer.metrics import read_log

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
ROUNDING = 5e-6


@pytest.fixture(scope="module")
def uninterrupted(shared):
    """Losses of a run of four ranks that nothing happens to, without launcher and hosts."""
    folder = shared / "whole"
    command = [str(shared / "recipe.yaml"), f"run.output_dir={folder}", *SETTINGS]
    assert run_ranks(command, 4, shared / "whole.txt") == [0] * 4
    losses = [row["loss"] for row in read_log(folder / "log.jsonl")]
    assert len(set(losses)) == STEPS  # a curve that stands still proves nothing
    return losses


def test_a_killed_rank_and_a_cut_link_are_gone_over_with_the_same_losses(
    hosts, shared, uninterrupted
):
    run = Run(hosts, shared, "faults", supervised())
    run.wait_steps(6)
    hosts.kill_rank("node1", 3)
    run.wait_said("attempt 2 on")
    assert "no word from rank 3 on node1" in run.printed
    run.wait_said("continues after step")
    steps = run.steps
    run.wait_steps(max(10, steps + 2))
    hosts.cut("node1")
    cut = time.monotonic()
    run.wait_said("waits for node1")
    assert time.monotonic() - cut < 60
    assert "node1 does not answer: the host is down or the link to it is cut" in run.printed
    hosts.restore("node1")
    assert run.ended(120) == 0, run.printed[-3000:]
    assert "attempt 3 on node0 x 2, node1 x 2" in run.printed
    assert "device     cpu x 4" in run.printed
    assert "supervise: done" in run.printed
    assert run.losses() == uninterrupted


def test_a_node_without_power_is_left_out_and_the_curve_stays(hosts, shared, uninterrupted):
    run = Run(hosts, shared, "power", supervised("--continue-without-dead"))
    run.wait_steps(6)
    hosts.power_off("node1")
    off = time.monotonic()
    run.wait_said("goes on without node1")
    assert time.monotonic() - off < 60
    code = run.ended(120)
    hosts.boot("node1")
    assert code == 0, run.printed[-3000:]
    assert "attempt 2 on node0 x 2, from step" in run.printed
    assert "written by 4 ranks, continued by 2" in run.printed
    assert run.losses() == pytest.approx(uninterrupted, rel=ROUNDING)


def test_sigterm_under_openmpi_saves_within_25_seconds_and_the_same_command_continues(
    hosts, shared, uninterrupted
):
    ours = ("--launcher", "openmpi", "--launcher_args=--allow-run-as-root --bind-to none")
    run = Run(hosts, shared, "stopped", supervised(*ours))
    run.wait_steps(6)
    signalled = time.monotonic()
    run.signal("supervise.py", signal.SIGTERM)
    assert run.ended(40) == 75, run.printed[-3000:]
    assert time.monotonic() - signalled < 25
    assert "SIGTERM: the ranks are asked to save" in run.printed
    assert "stopped and saved: SIGTERM: stopped after step" in run.printed
    assert run.steps < STEPS
    run.start()
    assert run.ended(120) == 0, run.printed[-3000:]
    assert "continues after step" in run.printed
    assert run.losses() == uninterrupted


def test_hosts_that_cannot_be_reached_are_all_named_before_anything_starts(hosts, shared):
    hosts.refuse_ssh("node1")
    lines = [*BOTH, "node2 slots=2", "no-such-node slots=2"]  # node2 has an address and no machine
    run = Run(hosts, shared, "unreached", supervised(), lines)
    code = run.ended(30)
    hosts.power_off("node1")
    hosts.boot("node1")
    assert code == 5
    assert "node1: no ssh server answers; start sshd there" in run.printed
    assert "node2: no " in run.printed  # way there, or answer: whichever the kernel is sooner with
    assert "no-such-node: the name is not known" in run.printed
    assert "node0:" not in run.printed
    assert not run.folder.exists()


def test_a_rank_that_is_killed_ends_an_unsupervised_run_on_both_hosts(hosts, shared):
    run = Run(hosts, shared, "alone", by_deepspeed())
    run.wait_steps(3)
    hosts.kill_rank("node1", 2)
    killed = time.monotonic()
    assert run.ended(40) != 0
    assert time.monotonic() - killed < 20
    assert "connection to another rank broke: rank 0 of 4 on node0; node1 answers" in run.printed
    assert "Traceback" not in run.printed
