"""What happens to two hosts: how long it takes, what is said, what is left."""

import re
import signal
import time

import pytest
from cluster.runs import (
    BOTH,
    SETTINGS,
    STEPS,
    Run,
    by_deepspeed,
    end_process,
    kill_rank,
    supervised,
)
from cluster.virtual_hosts import REPOSITORY
from rank_pool import run_ranks

from trainer.run_folder.metrics import read_log

ROUNDING = 5e-6


@pytest.fixture(scope="module")
def uninterrupted(shared_recipe):
    """Losses of a run of two ranks that nothing happens to, without launcher and hosts."""
    folder = shared_recipe.parent / "whole"
    command = [str(shared_recipe), f"run.output_dir={folder}", *SETTINGS]
    assert run_ranks(command, 2, folder.with_suffix(".txt")) == [0, 0]
    losses = [row["loss"] for row in read_log(folder / "log.jsonl")]
    assert len(set(losses)) == STEPS  # a curve that stands still proves nothing
    return losses


def test_a_killed_rank_and_a_cut_link_are_gone_over_with_the_same_losses(
    two_hosts, shared_recipe, uninterrupted
):
    run = Run(two_hosts, shared_recipe, "faults", supervised())
    run.wait_steps(6)
    kill_rank(two_hosts, "node1", 1)
    assert run.wait_said("attempt 2 on") < 40
    assert "no word from rank 1 on node1" in run.printed
    run.wait_said("continues after step")
    run.wait_steps(len(run.losses()) + 2)
    two_hosts.cut("node1")
    assert run.wait_said("waits for node1") < 60
    assert "node1 does not answer: the host is down or the link to it is cut" in run.printed
    two_hosts.mend("node1")
    assert run.ended(150) == 0, run.printed[-3000:]
    assert "attempt 3 on node0 x 1, node1 x 1" in run.printed
    assert "device     cpu x 2" in run.printed
    assert "supervise: done" in run.printed
    assert run.losses() == uninterrupted


def test_a_node_without_power_is_left_out_and_the_curve_stays(
    two_hosts, shared_recipe, uninterrupted
):
    run = Run(two_hosts, shared_recipe, "power", supervised("--continue-without-dead"))
    run.wait_steps(6)
    two_hosts.power_off("node1")
    assert run.wait_said("continues without node1") < 60
    code = run.ended(150)
    two_hosts.power_on("node1")
    assert code == 0, run.printed[-3000:]
    assert "attempt 2 on node0 x 1, from step" in run.printed
    assert "written by 2 ranks, continued by 1" in run.printed
    assert run.losses() == pytest.approx(uninterrupted, rel=ROUNDING)


def test_sigterm_under_openmpi_saves_within_25_seconds_and_the_same_command_continues(
    two_hosts, shared_recipe, uninterrupted
):
    ours = ("--launcher", "openmpi", "--launcher_args=--allow-run-as-root --bind-to none")
    run = Run(two_hosts, shared_recipe, "stopped", supervised(*ours))
    run.wait_steps(6)
    signalled = time.monotonic()
    end_process(two_hosts, "node0", "supervise.py", number=signal.SIGTERM)
    assert run.ended(40) == 75, run.printed[-3000:]
    assert time.monotonic() - signalled < 25
    assert "SIGTERM: the ranks save and end" in run.printed
    # Rank 0 tells it; the signal may have come to another rank a step before.
    assert re.search(
        r"supervise: stopped: [^:]+: stopped after step \d+ of 30 and saved", run.printed
    )
    assert len(run.losses()) < STEPS
    run.start()
    assert run.ended(150) == 0, run.printed[-3000:]
    assert "continues after step" in run.printed
    assert run.losses() == uninterrupted


def test_signals_save_on_both_hosts_and_end_with_75(two_hosts, shared_recipe):
    """One reaches a rank of one host, one the command alone, as when its terminal is lost."""
    run = Run(two_hosts, shared_recipe, "signalled", supervised())
    done = 0
    for number, host, marks in (
        (signal.SIGUSR2, "node1", ("\0RANK=1\0", "train.py")),
        (signal.SIGHUP, "node0", ("supervise.py",)),
    ):
        run.wait_steps(done + 3)
        signalled = time.monotonic()
        end_process(two_hosts, host, *marks, number=number)
        assert run.ended(40) == 75, run.printed[-3000:]
        assert time.monotonic() - signalled < 25
        stopped = re.search(r"stopped after step (\d+) of 30 and saved", run.printed)
        assert stopped is not None, run.printed[-3000:]
        done = int(stopped[1])
        assert done == len(run.losses()) < STEPS
        assert (run.folder / "checkpoints" / f"step-{done:08d}" / "MANIFEST.json").exists()
        if number is signal.SIGUSR2:
            run.start()
    assert "SIGHUP: the ranks save and end" in run.printed
    assert "continues after step" in run.printed


def test_a_node_with_another_version_ends_a_supervised_run_at_once(two_hosts, shared_recipe):
    site = next((REPOSITORY / ".venv").resolve().glob("lib/python3*/site-packages"))
    [facts] = site.glob("transformers-*.dist-info/METADATA")
    before = facts.read_text()
    for old, new in (("5", "6"), ("6", "5")):  # on node1's own disk, and back
        change = f"s/^Version: {old}/Version: {new}/"
        assert two_hosts.run("node1", ["sed", "-i", change, facts]).returncode == 0
        if new == "6":
            run = Run(two_hosts, shared_recipe, "version", supervised())
            code = run.ended(90)
    assert facts.read_text() == before  # this machine's
    assert code == 5, run.printed[-3000:]
    assert "transformers on node1: 6." in run.printed
    assert "attempt 2" not in run.printed


def test_hosts_that_cannot_be_reached_are_all_named_before_anything_starts(
    two_hosts, shared_recipe
):
    end_process(two_hosts, "node1", "sshd -D")
    lines = [*BOTH, "absent slots=1", "no-such-node slots=1"]
    run = Run(two_hosts, shared_recipe, "unreached", supervised(), lines)
    code = run.ended(30)
    two_hosts.power_off("node1")
    two_hosts.power_on("node1")
    assert code == 5
    assert "node1: no ssh server answers; start sshd there" in run.printed
    assert "absent: no " in run.printed  # way there, or answer: whichever the kernel says sooner
    assert "no-such-node: the name is not known" in run.printed
    assert "node0:" not in run.printed
    assert not run.folder.exists()


def test_a_rank_that_is_killed_ends_an_unsupervised_run_on_both_hosts(two_hosts, shared_recipe):
    four = [line.replace("slots=1", "slots=2") for line in BOTH]
    run = Run(two_hosts, shared_recipe, "alone", by_deepspeed(), four)
    run.wait_steps(3)
    kill_rank(two_hosts, "node1", 2)
    killed = time.monotonic()
    assert run.ended(40) != 0
    assert time.monotonic() - killed < 20
    assert "connection to another rank broke: rank 0 of 4 on node0; node1 answers" in run.printed
    assert "Traceback" not in run.printed
