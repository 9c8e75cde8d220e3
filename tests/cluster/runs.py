"""Runs on the hosts, supervised or not, and what they leave."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.hosts import Hosts
from launched import wait_until

from trainer.metrics import read_log

REPOSITORY = Path(__file__).resolve().parents[2]
BOTH = ("node0 slots=2", "node1 slots=2")
STEPS = 30
SETTINGS = (
    f"optim.max_steps={STEPS}", "eval.interval=never", "save.interval=4", "log.tensorboard=false",
    "engine.preset=cpu_zero2", "engine.timeout_seconds=20",
)  # fmt: skip


class Run:
    """A command on node0 that trains on the hosts of a hostfile.

    Args:
        hosts: The machines.
        shared: Folder they share.
        name: Of the run folder in it, and of what is printed.
        hostfile: Lines.
        launcher: Words before train.py; {hostfile} is replaced.
        overrides: Of the recipe.
    """

    def __init__(
        self, hosts: Hosts, shared: Path, name: str, launcher: Sequence[str],
        hostfile: Sequence[str] = BOTH, overrides: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.hosts, self.folder = hosts, shared / name
        path = shared / f"{name}.hostfile"
        path.write_text("".join(f"{line}\n" for line in hostfile))
        self._command = [sys.executable, *(word.format(hostfile=path) for word in launcher)]
        self._command += [str(shared / "recipe.yaml"), f"run.output_dir={self.folder}", *SETTINGS]
        self._command += overrides
        self._printed = [shared / f"{name}.0.txt"]
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        """Give the command, for the first time or again."""
        self._printed.append(self._printed[0].with_suffix(f".{len(self._printed)}.txt"))
        self.process = self.hosts.start("node0", self._command, self._printed[-1])
        self.started = time.monotonic()
        return self.process

    @property
    def printed(self) -> str:
        """By the last command."""
        return self._printed[-1].read_text(errors="replace")

    @property
    def steps(self) -> int:
        """Training lines in the log."""
        log = self.folder / "log.jsonl"
        return len(read_log(log)) if log.exists() else 0

    def losses(self) -> list[float]:
        """Of every step."""
        return [row["loss"] for row in read_log(self.folder / "log.jsonl")]

    def wait_steps(self, count: int) -> None:
        """Until so many steps are logged."""
        self._wait(lambda: self.steps >= count, f"step {count}")

    def wait_said(self, text: str) -> None:
        """Until this was printed."""
        self._wait(lambda: text in self.printed, text)

    def signal(self, word: str, number: signal.Signals) -> None:
        """To the process on node0 with this word in its command line."""
        [process] = [p for p, said in self.hosts.processes("node0").items() if word in said]
        os.kill(process, number)

    def ended(self, seconds: float) -> int:
        """The exit code, in time and with nothing left on any host."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"still runs after {seconds} s: {self.printed[-3000:]}") from None
        wait_until(lambda: not self.hosts.left(), 5, f"nothing left of {self.hosts.left()}")
        return code

    def _wait(self, condition: object, what: str) -> None:
        def holds() -> bool:
            assert self.process.poll() is None, self.printed[-3000:]
            return condition()  # type: ignore[operator, no-any-return]

        wait_until(holds, 150, what)


def supervised(*options: str) -> list[str]:
    """Words before train.py."""
    script = str(REPOSITORY / "launcher" / "supervise.py")
    return [script, "--hostfile", "{hostfile}", *options, "--", "train.py"]


def by_deepspeed(*options: str) -> list[str]:
    """Words before the recipe, train.py included."""
    train = str(REPOSITORY / "launcher" / "train.py")
    return ["-m", "deepspeed.launcher.runner", "--hostfile", "{hostfile}", *options, train]
