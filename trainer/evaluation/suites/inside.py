"""The first process of a sandbox: it runs the tests and says what became of an output.

Nothing imports this file: sandbox.py hands its text to a bare interpreter inside of bubblewrap,
with the limits as an argument and the task on stdin, as literals. It writes its nonce with "ready",
then with a verdict, to stdout, the only channel out. The output under test runs in a child that was
forked before the task was read, and has neither stdin nor stdout: a Python function is called over
two pipes and answers with plain values, which are compared here, where it cannot reach.
"""

from __future__ import annotations

import builtins
import ctypes
import os
import resource
import struct
import sys
from itertools import islice

TYPE_CHECKING = False  # typing would take 5 ms of every sandbox
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import BufferedReader
    from typing import Any, NoReturn

LONGEST = 16 << 20  # bytes of one text, and items of an iterator that is read out
SECCOMP = 22  # PR_SET_SECCOMP
NOT_DUMPABLE = 4  # PR_SET_DUMPABLE: a child of the same user can neither trace nor open us

# Machine -> its audit number, that of socket, and those of calls that reach what no namespace holds
# or no limit counts: add_key, request_key, keyctl (keys of the session that started us), shmget,
# msgget, semget, io_uring_setup (makes sockets), bpf, perf_event_open, userfaultfd, memfd_create.
# From the tables of linux/audit.h and asm/unistd.h.
CALLS = {
    "x86_64": (0xC000003E, 41, (248, 249, 250, 29, 68, 64, 425, 321, 298, 323, 319)),
    "aarch64": (0xC00000B7, 198, (217, 218, 219, 194, 186, 190, 425, 280, 241, 282, 279)),
}
ENDS_A_LOOP = ("StopIteration", "StopAsyncIteration")  # of the tests, silently
SIGXCPU = -24  # as an exit code


class Opaque:
    """A value that is not plain: equal to nothing."""


KINDS: dict[str, type] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def encoded(value: Any) -> Iterator[str]:
    """A value as lines, which keep the difference between list, tuple, set and text.

    Ours and not a library's: json takes longer to import than the rest of a sandbox to start.
    """
    if value is None or isinstance(value, (bool, range)):
        yield f"plain {value!r}"
    elif isinstance(value, int):
        yield f"int {value:x}"
    elif isinstance(value, float):
        yield f"float {float(value).hex()}"
    elif isinstance(value, complex):
        yield f"complex {value.real.hex()} {value.imag.hex()}"
    elif isinstance(value, str):
        yield f"str {value.encode('unicode_escape').decode()}"
    elif isinstance(value, (bytes, bytearray)):
        yield f"bytes {value.hex()}"
    elif hasattr(value, "item") and not isinstance(value, type):
        yield from encoded(value.item())  # a number of numpy
    else:
        if isinstance(value, dict):
            kind, value = "dict", [part for pair in value.items() for part in pair]
        elif isinstance(value, type({}.keys())):
            kind = "set"
        elif hasattr(value, "__next__"):
            kind, value = "iter", list(islice(value, LONGEST))
        else:
            kind = next((kind for kind in KINDS if isinstance(value, KINDS[kind])), "")
        if not kind:
            yield "opaque "
            return
        yield f"{kind} {len(value)}"
        for part in value:
            yield from encoded(part)


def decoded(stream: BufferedReader) -> Any:
    """The value that `encoded` wrote; an end or anything else raises."""
    line = stream.readline(LONGEST)
    if not line.endswith(b"\n"):
        raise EOFError
    kind, _, rest = line[:-1].decode("ascii").partition(" ")
    if kind == "plain":
        if rest.startswith("range("):
            return range(*map(int, rest[6:-1].split(",")))
        return {"None": None, "True": True, "False": False}[rest]
    if kind == "int":
        return int(rest, 16)
    if kind == "float":
        return float.fromhex(rest)
    if kind == "complex":
        return complex(*map(float.fromhex, rest.split()))
    if kind == "str":
        return rest.encode("ascii").decode("unicode_escape")
    if kind == "bytes":
        return bytes.fromhex(rest)
    if kind == "opaque":
        return Opaque()
    parts = [decoded(stream) for _ in range(int(rest))]
    if kind == "dict":
        return dict(zip(parts[::2], parts[1::2], strict=True))
    return iter(parts) if kind == "iter" else KINDS[kind](parts)


def send(write: int, lines: Iterable[str]) -> None:
    """Write a whole value."""
    data = "".join(line + "\n" for line in lines).encode("ascii")
    while data:
        data = data[os.write(write, data) :]


def serve(read: int, write: int) -> NoReturn:
    """In the child: define the program's functions, then answer calls until nobody asks."""
    stream = os.fdopen(read, "rb")
    names: dict[str, Any] = {"__name__": "candidate"}
    while True:
        function, given, named = decoded(stream)
        try:
            if function is None:
                exec(compile(given, "output", "exec"), names)
                answer = None
            else:
                answer = names[function](*given, **named)
            said = list(encoded(["value", answer]))
        except BaseException as error:
            said = list(encoded([type(error).__name__, str(error)[:200]]))
        send(write, said)


class Candidate:
    """The child, as the tests see it."""

    def __init__(self) -> None:
        """Fork before the task is known."""
        ask_read, self.ask = os.pipe()
        answer_read, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nowhere, number)
            for number in (nowhere, self.ask, answer_read):
                os.close(number)
            serve(ask_read, answer)
        os.close(ask_read)
        os.close(answer)
        self.answers = os.fdopen(answer_read, "rb")
        self.ended: tuple[str, str] | None = None  # the verdict, whatever a test catches

    def request(self, function: str | None, given: Any, named: Any = None) -> Any:
        """Ask and wait; raises what the candidate raised, and Ended where it is gone.

        function: None to define what the program `given` holds.
        """
        try:
            send(self.ask, encoded([function, given, named]))
            kind, answer = decoded(self.answers)
        except (BrokenPipeError, EOFError):
            self.ended = self.ending()
            raise Ended from None
        if kind == "value":
            return answer
        known = getattr(builtins, str(kind), None)
        if not (isinstance(known, type) and issubclass(known, Exception)) or kind in ENDS_A_LOOP:
            known = RuntimeError
        raise known(f"{kind}: {answer}")

    def ending(self) -> tuple[str, str]:
        """The verdict on a child that is gone, or that closed its pipe and still has to end."""
        self.answers.close()
        os.close(self.ask)
        _, status, used = os.wait4(self.pid, 0)
        most, _ = resource.getrlimit(resource.RLIMIT_CPU)
        code = os.waitstatus_to_exitcode(status)
        if code == SIGXCPU or used.ru_utime + used.ru_stime > most:  # one that ignored it
            return "timeout", f"above {most} s of CPU time"
        return "fail", f"it ended with {code}"


class Ended(BaseException):
    """The child is gone."""


def judged_function(candidate: Candidate, task: dict[str, Any]) -> tuple[str, str]:
    """Run the tests here; every call of the entry point goes to the child."""

    def entry(*given: Any, **named: Any) -> Any:
        return candidate.request(task["entry"], list(given), named)

    names: dict[str, Any] = {"__name__": "tests"}
    exec(compile(task["setup"], "setup", "exec"), names)  # what stands beside the entry point
    names[task["entry"]] = entry
    try:
        candidate.request(None, task["program"])
        exec(compile(task["test"], "tests", "exec"), names)
    except BaseException as error:
        return candidate.ended or ("fail", f"{type(error).__name__}: {error}")
    return candidate.ended or ("pass", "")


def judged_files(task: dict[str, Any]) -> tuple[str, str]:
    """Write and build a program, run it, and look for the mark at the end of its output."""
    import subprocess

    quiet: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stderr": subprocess.STDOUT,
        "close_fds": True,
    }
    for name, text in task["files"].items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w") as stream:
            stream.write(text)
    for command in task["build"]:
        with open("build.log", "wb") as log:
            if subprocess.run(command, stdout=log, **quiet).returncode:
                with open("build.log", errors="replace") as said:
                    return "fail", f"it does not build: {said.read(2000)}"
    with subprocess.Popen(task["run"], stdout=subprocess.PIPE, **quiet) as process:
        output = b""
        while part := process.stdout.read1(1 << 16):  # type: ignore[union-attr]
            output = (output + part)[-(1 << 16) :]
    if process.returncode == SIGXCPU:
        return "timeout", "CPU time"
    if process.returncode == 0 and output.rstrip().endswith(task["mark"].encode()):
        return "pass", ""
    return "fail", f"exit code {process.returncode}: {output[-500:].decode(errors='replace')}"


def refuse_calls() -> None:
    """A filter for us and all below: EPERM for CALLS and for sockets beyond Unix and IP.

    Where the machine is not among CALLS, it raises: there is no sandbox. Each step of the filter is
    code, jumps if true and if false, and a value (linux/filter.h, linux/seccomp.h).
    """
    audit, socket, numbers = CALLS[os.uname().machine]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    refused, allowed = (answer, 0, 0, 0x50001), (answer, 0, 0, 0x7FFF0000)
    steps = [(load, 0, 0, 4), (equal, 1, 0, audit), refused]
    steps += [(load, 0, 0, 0), (at_least, 0, 1, 1 << 30), refused]  # x32 has numbers of its own
    for number in numbers:
        steps += [(equal, 0, 1, number), refused]
    steps += [(equal, 0, 3, socket), (load, 0, 0, 16), (at_least, 0, 1, 17), refused, allowed]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    filters = struct.pack("HP", len(steps), ctypes.addressof(program))
    if ctypes.CDLL(None).prctl(SECCOMP, 2, filters, 0, 0):
        raise OSError("prctl of seccomp")


def main() -> NoReturn:
    """Limits and protection first, then the child, then the task."""
    for number, most in eval(sys.argv[1]).items():
        is_time = number == resource.RLIMIT_CPU  # at the soft limit SIGXCPU, then SIGKILL
        resource.setrlimit(number, (most, most + is_time))
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where memory runs out, this tree goes first
    if ctypes.CDLL(None).prctl(NOT_DUMPABLE, 0, 0, 0, 0):
        raise OSError("prctl")
    refuse_calls()
    candidate = Candidate()
    task = eval(sys.stdin.buffer.read().decode())  # from sandbox.py, which writes literals
    send(1, encoded([task["nonce"], "ready"]))
    verdict, detail = judged_files(task) if "files" in task else judged_function(candidate, task)
    send(1, encoded([task["nonce"], verdict, detail[:500]]))
    os._exit(0)


main()
