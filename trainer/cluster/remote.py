"""Agents on the nodes of a hostfile: started over ssh, they answer a line for a line.

ssh gives its command to a shell on the node. That command is fixed (this Python, this repository);
everything else travels on standard input.
"""

import json
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from trainer.cluster.agent import MARK, command
from trainer.processes.network import at_once

# No questions, and a host that is silent for 15 s counts as gone.
SSH_OPTIONS = (
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=5",
    "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
)  # fmt: skip
_SAME_PATHS = "the clone and its Python must lie at the same paths on every node"
_REASONS = (  # words of ssh or the shell, what was found, what to do; the first match counts
    ("Could not resolve", "the name is not known", "correct the hostfile, DNS or /etc/hosts"),
    ("Host key verification failed", "its host key is new or changed", "ssh {host} once, by hand"),
    ("IDENTIFICATION HAS CHANGED", "its host key has changed", "ssh-keygen -R {host}, if meant"),
    ("Permission denied", "ssh asks for a password or key", "ssh-copy-id {host}"),
    ("Connection refused", "no ssh server answers", "start sshd there"),
    ("timed out", "no answer", "is it switched on, and is port 22 open?"),
    ("No route to host", "no route to it", "is it switched on and in this network?"),
    ("Connection reset", "ssh breaks off", "look at sshd's log there"),
    ("closed by", "ssh breaks off", "look at sshd's log there"),
    ("ModuleNotFoundError", "{line}", "install constraints.txt there"),
    ("No such file", "{line}", _SAME_PATHS),
    ("not found", "{line}", _SAME_PATHS),
    ("can't open file", "{line}", _SAME_PATHS),
)


class NodeError(Exception):
    """A node does not answer; found and remedy are for the table."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


class RemoteNode:
    """An agent on a node.

    Args:
        host: A name that read_hostfile accepted.
        deadline: When the agent is ended, on time.monotonic's clock.
    """

    def __init__(self, host: str, deadline: float, *, over_ssh: bool = True) -> None:
        self.host = host
        arguments = ssh_command(host, command()) if over_ssh else command()
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed below
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._timer = threading.Timer(max(0.1, deadline - time.monotonic()), self._process.kill)
        self._timer.daemon = True
        self._timer.start()

    def ask(self, action: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The agent's answer.

        Raises:
            NodeError: No answer, or the answer is an error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": action, **values}) + "\n")
            self._process.stdin.flush()
        except OSError:  # it has ended: its last output is read below
            pass
        for line in self._process.stdout:
            if line.startswith(MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                if "error" in answer:
                    raise NodeError(f"{action}: {answer['error']}", "")
                return answer
        raise self._reason()

    def close(self) -> None:
        """End the agent; it ends by itself when its requests end."""
        self._timer.cancel()
        with self._errors, suppress(OSError), self._process:
            try:
                self._process.communicate(timeout=1)
            except (subprocess.TimeoutExpired, OSError, ValueError):
                self._process.kill()

    def _reason(self) -> NodeError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read()
        if code == -9:
            return NodeError("no answer in time", "is it overloaded, or is a file system hanging?")
        return explained(self.host, said, code)


def ssh_command(host: str, arguments: Sequence[str]) -> list[str]:
    """Run a command on a host, quoted for its shell and without any word from the user."""
    return ["ssh", *SSH_OPTIONS, "--", host, shlex.join(arguments)]


def explained(host: str, said: str, code: int) -> NodeError:
    """The cause of ssh's message, and what to do."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for words, found, remedy in _REASONS:
        for line in reversed(lines):
            if words in line:
                return NodeError(found.format(line=line), remedy.format(host=host))
    last = lines[-1] if lines else f"ended with code {code}"
    return NodeError(last, f"try: ssh -o BatchMode=yes {host} true")


def ask_all(
    nodes: Sequence[RemoteNode], action: str, values: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any] | NodeError]:
    """Ask all nodes at once; host -> its answer or its error."""

    by_host = {node.host: node for node in nodes}

    def ask(host: str) -> dict[str, Any] | NodeError:
        try:
            return by_host[host].ask(action, values.get(host, {}))
        except NodeError as error:
            return error

    return at_once(ask, by_host)


def clock_offset(node: RemoteNode, rounds: int = 8) -> float:
    """Seconds a node's clock is ahead of this one, by the fastest of some round trips."""
    best = (float("inf"), 0.0)
    for _ in range(rounds):
        sent = time.time()
        there = node.ask("time", {})["time"]
        back = time.time()
        best = min(best, (back - sent, there - (sent + back) / 2))
    return best[1]
