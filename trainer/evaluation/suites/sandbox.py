"""Programs that a model wrote run here: in bubblewrap, or not at all.

Each output has a sandbox of its own: an unprivileged user in new user, mount, pid, network, ipc,
uts and cgroup namespaces, no capabilities, no further user namespaces, a read-only /usr, one
writable folder in memory (sized), an empty environment, and limits on CPU time, memory, processes,
files and wall clock, after which the whole tree is killed. When its first process ends, the kernel
kills all others.

The verdict is that of the sandbox's first process (`inside.py`), which runs the tests and answers
with a nonce that only it and this process know. A Python output is another process: it gets
arguments and gives values. It has none of the channel's file descriptors, never sees the nonce or
the tests, and cannot trace, kill or open the first process, which is not dumpable and is pid 1. So
exit codes, printed lines, patched builtins, atexit, and a child left behind change nothing.

A filter of system calls refuses the few that reach past namespaces or limits: keys of the session
that started it, sockets of a virtual machine, System V memory. It is no defence of the kernel:
whatever breaks the kernel's isolation breaks this, too.

What hostile code can still do. A program of another language is built together with its tests into
one process. It passes where its end prints a random mark. A program made to search its own code or
memory for that mark forges a pass, and so does one that changes what its tests compare with: the
JSON.stringify of JavaScript, a macro of C++ or Rust, a class of Java. Python cannot. Memory is
bounded for each process, not for their sum, and not in empty files; where the machine's memory runs
out, this tree is the first to go. /usr can be read.
"""

import functools
import os
import resource
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from trainer.errors import SandboxError
from trainer.evaluation.suites.suite import Judged, Verdict

_INSIDE = Path(__file__).with_name("inside.py")
_PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")  # nothing else of the machine is seen
_NOBODY = "65534"
_REMEDY = (
    "programs run in a sandbox or not at all: install bubblewrap 0.8 or later and python3 in"
    " /usr/bin, on a kernel that allows user namespaces (docs/suites.md)"
)


@dataclass(frozen=True)
class Limits:
    """What one output may use; bytes and seconds, each process but for wall clock and disk.

    Attributes:
        address: Of memory that is mapped, also shared; None where a runtime reserves far more.
    """

    wall: float = 10.0
    cpu: int = 10
    memory: int = 1 << 30
    address: int | None = 2 << 30
    processes: int = 32
    files: int = 64
    file_size: int = 16 << 20
    disk: int = 32 << 20

    def of_processes(self) -> dict[int, int]:
        """Resource -> limit, for setrlimit."""
        limits = {
            resource.RLIMIT_CPU: self.cpu,
            resource.RLIMIT_DATA: self.memory,
            resource.RLIMIT_NPROC: self.processes,
            resource.RLIMIT_NOFILE: self.files,
            resource.RLIMIT_FSIZE: self.file_size,
            resource.RLIMIT_CORE: 0,
        }
        return limits | ({resource.RLIMIT_AS: self.address} if self.address else {})


def judged(task: Mapping[str, Any], limits: Limits) -> Judged:
    """Run one output in a sandbox of its own.

    Args:
        task: For inside.py: program, setup, test and entry; or files, build, run and mark.
    """
    nonce = secrets.token_hex(16)
    started = time.monotonic()
    with subprocess.Popen(
        [*_wrapper(limits.disk), repr(limits.of_processes())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={}, start_new_session=True,
    ) as process:  # fmt: skip
        is_over = False
        text = ascii({**task, "nonce": nonce}).encode("ascii")
        try:
            said, faults = process.communicate(text, limits.wall)
        except subprocess.TimeoutExpired:
            is_over = True
            os.killpg(process.pid, signal.SIGKILL)  # bubblewrap; the kernel kills all below
            said, faults = process.communicate()
    seconds = time.monotonic() - started
    texts = [line[4:].decode("unicode_escape") for line in said.splitlines() if line[:4] == b"str "]
    if texts[:2] != [nonce, "ready"]:
        why = faults.decode("utf-8", "replace").strip() or "it did not start in time"
        return Judged("error", seconds, why[-500:])
    if len(texts) == 5 and texts[2] == nonce:
        return Judged(cast(Verdict, texts[3]), seconds, texts[4])
    if is_over:
        return Judged("timeout", seconds, f"above {limits.wall:g} s")
    return Judged("fail", seconds, "its sandbox ended")


@functools.cache
def check_sandbox() -> None:
    """Run three programs with known verdicts.

    Raises:
        SandboxError: There is no sandbox here, or one that gives another verdict.
    """
    task = {"setup": "", "entry": "f", "test": "assert f(1) == [2]"}
    for body, verdict in (("return [n + 1]", "pass"), ("return n", "fail"), ("exit(0)", "fail")):
        found = judged({**task, "program": f"def f(n):\n    {body}"}, Limits(wall=30.0))
        if found.verdict != verdict:
            raise SandboxError(f"no sandbox: {found.detail or found.verdict}; {_REMEDY}")


def seen(program: str) -> bool:
    """Whether a program is there inside of the sandbox."""
    return shutil.which(program, path="/usr/bin:/bin") is not None


@functools.cache
def _wrapper(disk: int) -> list[str]:
    """The command up to the text of inside.py; its argument, the limits, follows."""
    bubblewrap = shutil.which("bwrap")
    python = next(filter(os.path.exists, _PYTHONS), None)
    drop = []
    if os.geteuid() == 0:  # root escapes the limit on processes, and would own the machine's files
        drop = ["setpriv", "--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups"]
        drop += ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        drop[0] = shutil.which("setpriv") or ""
    if bubblewrap is None or python is None or "" in drop:
        needed = {"bwrap": bubblewrap, "python3": python, "setpriv": not drop or drop[0]}
        missing = ", ".join(name for name, path in needed.items() if not path)
        raise SandboxError(f"{missing} is missing; {_REMEDY}")
    links = [
        word
        for name in ("bin", "lib", "lib32", "lib64", "sbin")
        if os.path.islink(f"/{name}")
        for word in ("--symlink", f"usr/{name}", f"/{name}")
    ]
    kept = ["/etc/alternatives", "/etc/ld.so.cache", *map(str, Path("/etc").glob("java-*"))]
    opened = [word for path in kept for word in ("--ro-bind-try", path, path)]
    return [
        *drop, bubblewrap, "--unshare-all", "--unshare-user", "--disable-userns",
        "--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL",
        "--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--clearenv",
        "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/box",
        "--setenv", "LANG", "C.UTF-8",
        "--ro-bind", "/usr", "/usr", *links, *opened, "--proc", "/proc", "--dev", "/dev",
        "--size", str(disk), "--tmpfs", "/box", "--symlink", "box", "/tmp",
        "--dir", "/box/work", "--chdir", "/box/work",
        "--remount-ro", "/dev", "--remount-ro", "/",
        "--", python, "-I", "-S", "-B", "-c", _INSIDE.read_text(encoding="utf-8"),
    ]  # fmt: skip
