"""Restarts a run after a lost rank, node or link until it is done.

    OUTPUT_DIR.supervised/RUN_ID/
        recipe.yaml     resolved; the launcher passes on nothing but its path
        environment     variables that the launcher exports to the nodes
        1/, 2/, ...     a folder for each attempt: hostfile, and rank-N.json, how each rank ended

A run is done when rank 0 has written so for this attempt; exit codes of launchers are not reliable.
Processes that an attempt leaves carry the run's id in their environment. They are killed on every
host that answers before the next attempt, which has a new port and continues from the newest
checkpoint that verifies.
"""

import math
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from trainer.cluster.cleanup import signal_hosts
from trainer.cluster.remote import SSH_OPTIONS
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError, MachineError
from trainer.processes.hostfile import Node
from trainer.processes.network import can_bind
from trainer.processes.outcome import FOLDER, Outcome, read_outcomes
from trainer.processes.signals import receive_stops
from trainer.run_folder.checkpoint import newest_checkpoint
from trainer.run_folder.folder import CHECKPOINTS, write_whole, write_yaml

RUN_ID = "FOCALTUNE_RUN_ID"
DONE, STOPPED, NOT_SAVED = 0, 75, 130
SAVE_SECONDS = 25.0  # for the step and the save after a signal; launchers kill after 30
_GRACE = 8.0  # seconds for the other ranks, once one has ended
_END_SECONDS = 10.0
_TICK = 0.3
_SAFE = re.compile(r"[\w@%+=:,./-]+")  # DeepSpeed's launchers hand words to a shell
_FIRST_PORT, _NUM_PORTS = 20_000, 12_000  # below the range kernels hand out
_ALONE = "AbandonedError"
# The same command would fail again.
_HOPELESS_CODES = frozenset({2, 3, 4})
_HOPELESS_ERRORS = frozenset({"MachineError", "MemoryExceededError", "DivergedError"})


@dataclass(frozen=True)
class SupervisedRun:
    """The run, and how to start it: launcher/train.py below DeepSpeed's "pdsh" or "openmpi"."""

    config: RunConfig
    nodes: Sequence[Node]
    launcher: str
    launcher_args: str
    script: Path
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def folder(self) -> Path:
        """Beside the run folder, where all nodes see it."""
        output = self.config.output_dir
        return output.with_name(f"{output.name}.supervised") / self.run_id

    @property
    def mark(self) -> str:
        """NAME=VALUE in the environment of every process of the run."""
        return f"{RUN_ID}={self.run_id}"


@dataclass(frozen=True)
class Limits:
    """When to give up.

    Attributes:
        max_restarts: In a row without a new checkpoint.
        wait_seconds: How long to wait for hosts that do not answer after an attempt.
        without_dead: Continue at once with the hosts that answer.
    """

    max_restarts: int
    wait_seconds: float
    without_dead: bool

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.max_restarts < 0 or not 0 <= self.wait_seconds < math.inf:
            raise ConfigError("--max-restarts and --wait must be 0 or above")


class Signals:
    """The first signal to this process; the ranks then save."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        receive_stops(self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)


def supervise(
    run: SupervisedRun, limits: Limits, signals: Signals, say: Callable[[str], None]
) -> int:
    """Run until it is done, stopped by a signal, or hopeless; the exit code.

    Raises:
        ConfigError: A path or variable that launchers cannot pass on.
        MachineError: Hosts do not answer; it names all of them.
    """
    refuse(run)
    run.folder.mkdir(parents=True)
    write_yaml(run.folder / "recipe.yaml", run.config.to_json())
    restarts, newest, number = 0, saved_step(run), 1
    while True:
        nodes = answering(run, limits, signals, number == 1, say)
        if signals.received:
            say(f"{signals.received.name}: stopped between two attempts, after step {newest}")
            return STOPPED if newest else NOT_SAVED
        where = ", ".join(f"{node.host} x {node.slots}" for node in nodes)
        say(f"attempt {number} on {where}, from step {newest}; run id {run.run_id}")
        started = time.monotonic()
        outcomes = attempt(run, number, nodes, signals, say)
        code = verdict(outcomes, is_stopping=signals.received is not None)
        if code == NOT_SAVED and (step := saved_step(run)):
            say(f"stopped; the ranks did not save, the newest checkpoint is of step {step}")
            return STOPPED
        if code is not None:
            say(ending(outcomes, nodes, code))
            return code
        seconds, before, newest = time.monotonic() - started, newest, saved_step(run)
        restarts = 0 if newest > before else restarts + 1
        say(f"attempt {number} ended after {seconds:.0f} s: {ending(outcomes, nodes, None)}")
        if restarts > limits.max_restarts:
            say(f"no new checkpoint since step {newest} in {restarts} attempts: given up")
            return next(
                (one.exit_code for one in outcomes if one.exit_code), MachineError.exit_code
            )
        number += 1


def verdict(outcomes: Sequence[Outcome], *, is_stopping: bool) -> int | None:
    """The exit code that ends the supervision; None to try again."""
    if any(one.rank == 0 and one.exit_code == DONE for one in outcomes):
        return DONE
    # Ranks whose launcher is gone have saved too, but no signal came.
    if any(one.exit_code == STOPPED and (is_stopping or one.error != _ALONE) for one in outcomes):
        return STOPPED
    if is_stopping:
        return NOT_SAVED
    for one in outcomes:
        if one.exit_code in _HOPELESS_CODES or one.error in _HOPELESS_ERRORS:
            return one.exit_code
    return None


def ending(outcomes: Sequence[Outcome], nodes: Sequence[Node], code: int | None) -> str:
    """How an attempt ended: the message of each rank, and the ranks without one."""
    if code in (DONE, STOPPED, NOT_SAVED):
        said = [one.message for one in outcomes if one.exit_code == code and one.message]
        return {DONE: "done", STOPPED: "stopped"}.get(code, "stopped; nothing saved") + (
            f": {said[0]}" if said else ""
        )
    by_message: dict[str, list[str]] = {}
    for one in outcomes:  # the rank itself has printed the whole message
        first_sentence = one.message.partition(". ")[0]
        by_message.setdefault(first_sentence, []).append(f"rank {one.rank} on {one.host}")
    hosts = [node.host for node in nodes for _ in range(node.slots)]
    heard = {one.rank for one in outcomes}
    silent = [f"{rank} on {host}" for rank, host in enumerate(hosts) if rank not in heard]
    parts = [f"{', '.join(who)}: {message}" for message, who in by_message.items()]
    return "; ".join(([f"no word from rank {', '.join(silent)}"] if silent else []) + parts)


def attempt(
    run: SupervisedRun,
    number: int,
    nodes: Sequence[Node],
    signals: Signals,
    say: Callable[[str], None],
) -> list[Outcome]:
    """Start the launcher, wait until it or the run has ended, leave nothing behind."""
    folder = run.folder / str(number)
    folder.mkdir()
    lines = "".join(f"{node.host} slots={node.slots}\n" for node in nodes)
    write_whole(folder / "hostfile", lines)
    port = _FIRST_PORT + secrets.randbelow(_NUM_PORTS)
    exported = {**user_exports(), RUN_ID: run.run_id, FOLDER: str(folder)}
    hosts = remote_hosts(nodes)
    if run.launcher == "openmpi" and hosts:  # the others set these themselves
        exported |= {"MASTER_ADDR": nodes[0].host, "MASTER_PORT": str(port)}
    write_whole(run.folder / "environment", "".join(f"{k}={v}\n" for k, v in exported.items()))
    launcher = subprocess.Popen(
        launch_command(run, nodes, folder / "hostfile", port),
        env=launch_environment(run, exported), stdin=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C is ours to pass on
    )  # fmt: skip
    deadline = None
    while launcher.poll() is None and (deadline is None or time.monotonic() < deadline):
        if signals.received:
            say(f"{signals.received.name}: the ranks save and end")
            signal_hosts(hosts, run.mark, "stop", SAVE_SECONDS)
            break
        if deadline is None and is_over(read_outcomes(folder)):
            deadline = time.monotonic() + _GRACE
        time.sleep(_TICK)
    for host, fault in signal_hosts(hosts, run.mark, "end", _END_SECONDS).items():
        say(f"{host}: processes may be left: {fault}")
    launcher.wait()
    return read_outcomes(folder)


def is_over(outcomes: Sequence[Outcome]) -> bool:
    """Whether a rank has failed or rank 0 has finished."""
    return any(one.exit_code or one.rank == 0 for one in outcomes)


def answering(
    run: SupervisedRun, limits: Limits, signals: Signals, is_first: bool, say: Callable[[str], None]
) -> list[Node]:
    """The nodes that answer and have no process of this run.

    Raises:
        MachineError: Some do not within the time allowed; it names each with the reason.
    """
    deadline = time.monotonic() + (0 if is_first or limits.without_dead else limits.wait_seconds)
    while True:
        faults = signal_hosts(remote_hosts(run.nodes), run.mark, "end", _END_SECONDS)
        if not faults or signals.received:
            return list(run.nodes)
        named = " | ".join(f"{host}: {fault}" for host, fault in faults.items())
        up = [node for node in run.nodes if node.host not in faults]
        if limits.without_dead and up:
            say(f"continues without {named}")
            return up
        if time.monotonic() >= deadline:
            raise MachineError(
                f"{named}. Or take it out of the hostfile; --continue-without-dead goes on with the"
                " others"
            )
        say(f"waits for {named}")
        time.sleep(min(5.0, max(0.0, deadline - time.monotonic())))


def launch_command(
    run: SupervisedRun, nodes: Sequence[Node], hostfile: Path, port: int
) -> list[str]:
    """The command line of DeepSpeed's launcher."""
    # DeepSpeed starts a single host on this machine, whatever its name is.
    here = ["--no_ssh", "--node_rank=0", "--master_addr=127.0.0.1"]
    return [
        sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile),
        "--launcher", run.launcher, f"--launcher_args={run.launcher_args}",
        f"--master_port={port}", *(["--force_multi"] if remote_hosts(nodes) else here),
        str(run.script), str(run.folder / "recipe.yaml"),
    ]  # fmt: skip


def launch_environment(run: SupervisedRun, exported: Mapping[str, str]) -> dict[str, str]:
    """The launcher's environment: ssh asks no question, and notices a host that is gone."""
    options = shlex.join(SSH_OPTIONS)
    given = os.environ.get("PDSH_SSH_ARGS_APPEND", "")
    return {
        **os.environ,
        **exported,
        "DS_ENV_FILE": str(run.folder / "environment"),
        "PDSH_SSH_ARGS_APPEND": f"{given} {options}".strip(),
        "OMPI_MCA_plm_rsh_args": options,  # Open MPI 4
        "PRTE_MCA_plm_ssh_args": options,  # Open MPI 5
    }


def user_exports() -> dict[str, str]:
    """NAME=value lines of .deepspeed_env, which DeepSpeed would read instead of our file."""
    found = {}
    for folder in (Path.home(), Path.cwd()):
        path = folder / ".deepspeed_env"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            name, equals, value = line.strip().partition("=")
            if equals and not name.startswith("#"):
                found[name] = value
    return found


def remote_hosts(nodes: Sequence[Node]) -> list[str]:
    """Hosts to reach by ssh; with several hosts, launchers use it for this machine too."""
    return [] if len(nodes) == 1 and can_bind(nodes[0].host, 0) else [node.host for node in nodes]


def saved_step(run: SupervisedRun) -> int:
    """Step of the newest checkpoint that verifies; 0 without one."""
    found, _ = newest_checkpoint(run.config.output_dir / CHECKPOINTS)
    return found.step if found is not None else 0


def refuse(run: SupervisedRun) -> None:
    """Refuse a run that cannot be supervised.

    Raises:
        ConfigError: run.resume=never, or a path or variable that a shell on the nodes would change.
    """
    if run.config.run.resume == "never":
        raise ConfigError("run.resume=never: a supervised run continues; take run.resume=auto")
    paths = (run.folder, run.script, Path.cwd(), Path(sys.executable))
    words = {str(path): f"{path}: launchers give this path" for path in paths}
    for name, value in user_exports().items():
        words[f"{name}={value}"] = f".deepspeed_env: {name}={value}: launchers give this"
    for word, where in words.items():
        if not _SAFE.fullmatch(word):
            raise ConfigError(
                f"{where} to a shell on the nodes; letters, digits and _@%+=:,./- are safe"
            )
