"""Runs on virtual hosts, supervised or not, what is done to them and what they leave."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.virtual_hosts import REPOSITORY, VirtualHosts
from launched import wait_until

from trainer.run_folder.metrics import read_log

BOTH = ("node0 slots=1", "node1 slots=1")
STEPS = 30
SETTINGS = (
    f"optim.max_steps={STEPS}", "eval.interval=never", "save.interval=4", "log.trackers=[]",
    "engine.preset=cpu_zero2", "engine.timeout_seconds=20",
)  # fmt: skip


class Run:
    """A command on node0 that trains on the hosts of a hostfile.

    Args:
        hosts: The machines.
        recipe: In their shared folder.
        name: Of the run folder beside it, and of what is printed.
        launcher: Words before the recipe; {hostfile} is replaced.
        hostfile: Its lines.
    """

    def __init__(
        self,
        hosts: VirtualHosts,
        recipe: Path,
        name: str,
        launcher: Sequence[str],
        hostfile: Sequence[str] = BOTH,
    ) -> None:
        self.hosts, self.folder = hosts, recipe.parent / name
        path = self.folder.with_suffix(".hostfile")
        path.write_text("".join(f"{line}\n" for line in hostfile))
        self._command = [sys.executable, *(word.format(hostfile=path) for word in launcher)]
        self._command += [str(recipe), f"run.output_dir={self.folder}", *SETTINGS]
        self._printed: list[Path] = []
        self.start()

    def start(self) -> None:
        """Give the command, for the first time or again."""
        self._printed.append(self.folder.with_suffix(f".{len(self._printed)}.txt"))
        with self._printed[-1].open("w") as output:
            self.process = self.hosts.start("node0", self._command, output)

    @property
    def printed(self) -> str:
        """By the last command."""
        return self._printed[-1].read_text(errors="replace")

    def losses(self) -> list[float]:
        """Of every step in the log."""
        log = self.folder / "log.jsonl"
        return [row["loss"] for row in read_log(log)] if log.exists() else []

    def wait_steps(self, count: int) -> None:
        """Until so many steps are logged."""
        self._wait(lambda: len(self.losses()) >= count, f"step {count}")

    def wait_said(self, text: str) -> float:
        """Seconds until this was printed."""
        return self._wait(lambda: text in self.printed, text)

    def ended(self, seconds: float) -> int:
        """The exit code, in time and with nothing left on any host."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.hosts.stop(self.process)
            raise AssertionError(f"still runs after {seconds} s: {self.printed[-3000:]}") from None
        wait_until(lambda: not self._left(), 5, f"an end of {self._left()}")
        return code

    def _left(self) -> list[str]:
        up = [host for host in self.hosts.names if self.hosts.process_ids(host)]
        return [command for host in up for command in self.hosts.processes(host)]

    def _wait(self, condition: Callable[[], bool], what: str) -> float:
        def holds() -> bool:
            if condition():
                return True
            assert self.process.poll() is None, self.printed[-3000:]
            return False

        return wait_until(holds, 150, f"{what} in {self.printed[-1000:]}")


def end_process(
    hosts: VirtualHosts, host: str, *marks: str, number: signal.Signals = signal.SIGKILL
) -> None:
    """Signal the one process of a host with all marks in its command line or environment."""
    found = [p for p in hosts.process_ids(host) if all(mark in _facts(p) for mark in marks)]
    assert len(found) == 1, f"{marks}: {found}"
    os.kill(found[0], number)


def kill_rank(hosts: VirtualHosts, host: str, rank: int) -> None:
    """SIGKILL to a rank of the one run there is."""
    end_process(hosts, host, f"\0RANK={rank}\0", "train.py")


def supervised(*options: str) -> list[str]:
    """Words before the recipe."""
    script = str(REPOSITORY / "launcher" / "supervise.py")
    return [script, "--hostfile", "{hostfile}", *options, "--", "train.py"]


def by_deepspeed(*options: str) -> list[str]:
    """Words before the recipe."""
    train = str(REPOSITORY / "launcher" / "train.py")
    return ["-m", "deepspeed.launcher.runner", "--hostfile", "{hostfile}", *options, train]


def _facts(process: int) -> str:
    """Command line and environment, every entry between NULs."""
    facts = ""
    with contextlib.suppress(OSError):
        for name in ("cmdline", "environ"):
            facts += "\0" + (Path("/proc") / str(process) / name).read_bytes().decode(
                errors="replace"
            )
    return facts
