"""Hostile outputs end in a verdict, leave nothing behind, and cannot give it themselves."""

import os
import secrets
import shutil
import subprocess
import time
from dataclasses import replace

import pytest
from sandboxed import needs_sandbox

from launcher.suite import main as suite
from trainer.evaluation.suites import sandbox
from trainer.evaluation.suites.programs import LANGUAGES
from trainer.evaluation.suites.sandbox import Limits, judged
from trainer.evaluation.suites.suite import Item
from trainer.evaluation.suites.suites import SUITES

TEST = "assert f(3) == [4]\nassert f(5) == [6]\n"
GOOD = "def f(n):\n    return [n + 1]\n"
SHORT = Limits(wall=3.0, cpu=1)


def run(program, limits=SHORT, **task):
    given = {"program": program, "setup": "", "test": TEST, "entry": "f", **task}
    return judged(given, limits)


def reported(body, limits=SHORT):
    """What a function says of its sandbox, in words: the test fails with it."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    found = run(f"def f(n):\n{indented}\n", limits, test="raise ValueError(repr(f(0)))")
    assert found.verdict == "fail"
    return found.detail.removeprefix("ValueError: ")


def processes_with(word):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as stream:
                found += [name] if word.encode() in stream.read() else []
        except OSError:
            continue
    return found


@needs_sandbox
def test_right_and_wrong_programs_are_told_apart():
    assert run(GOOD).verdict == "pass"
    assert run(GOOD.replace("1", "2")).verdict == "fail"
    assert run("def f(n)").detail.startswith("SyntaxError")
    assert run("x = 1").detail.startswith("KeyError")


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        pytest.param("while 1: pass", "timeout", id="121-loop"),
        pytest.param("import time\ntime.sleep(60)", "timeout", id="121-sleep"),
        pytest.param("def f(n):\n    while 1: pass", "timeout", id="121-loop-in-a-call"),
        pytest.param(
            "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile 1: pass",
            "timeout", id="121-loop-that-ignores-the-signal",
        ),
        pytest.param("import os\nwhile 1: os.fork()", "fail", id="122-fork-bomb"),
        pytest.param("x = bytearray(10**10)", "fail", id="123-memory"),
        pytest.param("import mmap\nx = mmap.mmap(-1, 3 << 30)", "fail", id="123-shared-memory"),
        pytest.param("import os\nos._exit(0)", "fail", id="129-os-exit"),
        pytest.param("raise SystemExit(0)", "fail", id="129-system-exit"),
        pytest.param("def f(n):\n    raise SystemExit(0)", "fail", id="129-exit-in-a-call"),
        pytest.param("import os\nos.kill(os.getpid(), 9)", "fail", id="129-killed"),
        pytest.param("import os\nos.kill(1, 9)", "fail", id="129-kills-the-first-process"),
        pytest.param("import os, signal\nos.kill(os.getppid(), 2)", "fail", id="129-interrupts"),
    ],
)  # fmt: skip
def test_a_program_that_does_not_end_well_gets_its_verdict_in_time(program, verdict):
    started = time.monotonic()
    found = run(program)
    assert found.verdict == verdict, found
    assert time.monotonic() - started < 10


@needs_sandbox
def test_122_processes_are_limited():
    said = reported(
        "import os, time\nnum = 0\ntry:\n    while num < 500:\n"
        "        if not os.fork(): time.sleep(9); os._exit(0)\n        num += 1\n"
        "except OSError: pass\nreturn num"
    )
    assert 5 < int(said) < SHORT.processes


@needs_sandbox
def test_124_a_file_and_the_disk_are_limited_and_nothing_else_can_be_written():
    fill = "import os\nnum = 0\ntry:\n    while num < 999:\n"
    one = (
        fill
        + "        f.write(b'0' * (1 << 20)); f.flush(); num += 1\nexcept OSError: pass\nreturn num"
    )
    assert int(reported(f"f = open('a', 'wb')\n{one}")) == SHORT.file_size >> 20
    many = (
        f"{fill}        open(f'{{num}}', 'wb').write(b'0' * (1 << 20)); num += 1\n"
        "except OSError: pass\nreturn num"
    )
    assert 20 < int(reported(many)) <= SHORT.disk >> 20
    said = reported(
        "import os\nfound = []\nfor top, folders, _ in os.walk('/'):\n"
        "    folders[:] = [f for f in folders if (top, f) != ('/', 'proc') and top != '/usr']\n"
        "    try:\n        open(os.path.join(top, 'x'), 'w')\n    except OSError: continue\n"
        "    found.append(top)\nreturn sorted(found)"
    )
    assert said == "['/box', '/box/work']"


@needs_sandbox
def test_125_files_of_the_machine_cannot_be_deleted(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("mine")
    said = reported(
        f"import os, shutil\nfor place in ({str(kept)!r}, '/usr/bin/env'):\n"
        "    try: os.remove(place)\n    except OSError as error: print(error)\n"
        "shutil.rmtree('/usr/bin', ignore_errors=True)\n"
        "return os.path.exists('/usr/bin/env')"
    )
    assert said == "True"
    assert kept.read_text() == "mine"
    assert os.path.exists("/usr/bin/env")


@needs_sandbox
def test_126_secrets_cannot_be_read(tmp_path, monkeypatch):
    secret = secrets.token_hex(8)
    (tmp_path / "key").write_text(secret)
    monkeypatch.setenv("API_KEY", secret)
    said = reported(
        f"import glob, os\nplaces = [{str(tmp_path / 'key')!r}, '/etc/passwd', '/etc/shadow',"
        " '/root', '/home', *glob.glob('/proc/*/environ'), *glob.glob('/proc/*/cmdline')]\n"
        "found = [str(dict(os.environ))]\nfor place in places:\n"
        "    try: found.append(open(place, 'rb').read())\n    except OSError: found.append(None)\n"
        "return (repr(found).count('API_KEY'), found[1:6], os.getuid(), len(places) > 6)",
        replace(SHORT, cpu=3),
    )
    assert secret not in said
    assert said == "(0, [None, None, None, None, None], 1000, True)"


@needs_sandbox
def test_127_there_is_no_network():
    said = reported(
        "import os, socket\nfound = [os.path.exists('/sys')]\n"
        "for place in (('1.1.1.1', 53), ('127.0.0.1', 22)):\n"
        "    try: socket.create_connection(place, 1); found.append('connected')\n"
        "    except OSError as error: found.append(error.errno)\nreturn found"
    )
    assert said == "[False, 101, 111]"  # unreachable; nobody listens on a loopback of its own


@needs_sandbox
def test_127_what_no_namespace_holds_is_refused():
    """Keys of the session that started it, a virtual machine's sockets, shared memory of no size.

    Each errno is EPERM; the last ones, which programs need, are not refused.
    """
    said = reported(
        "import ctypes, os, socket\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "arm = os.uname().machine == 'aarch64'\nfound = []\n"
        "def tried(call, *given):\n"
        "    ctypes.set_errno(0)\n    call(*given)\n    found.append(ctypes.get_errno())\n"
        "tried(libc.syscall, 219 if arm else 250, 0, -3, 0)\n"  # keyctl: the session's keyring
        "tried(libc.syscall, 217 if arm else 248, b'user', b'a', b'b', 1, -3)\n"  # add_key
        "tried(libc.syscall, 425, 1, ctypes.create_string_buffer(120))\n"  # io_uring: sockets, too
        "tried(libc.memfd_create, b'a', 0)\n"
        "tried(libc.shmget, 0, 1 << 12, 0o1600)\ntried(libc.msgget, 0, 0o1600)\n"
        "tried(libc.semget, 0, 1, 0o1600)\n"
        "tried(libc.socket, 40, 1, 0)\ntried(libc.socket, 38, 5, 0)\n"  # vsock, alg
        "tried(libc.syscall, 1 << 30 | 39)\n"  # another ABI's numbers
        "for family in (1, 2, 10, 16): tried(libc.socket, family, 2, 0)\nreturn found"
    )
    assert said == str([1] * 10 + [0] * 4)


@needs_sandbox
def test_128_output_is_thrown_away():
    flood = "import sys, os\nfor _ in range(2000):\n    os.write({}, b'A' * 65536)\n"
    for number in (1, 2):
        found = run(flood.format(number) + GOOD)
        assert (found.verdict, found.detail) == ("pass", "")


NONCE = "f" * 32
_FORGED = "\\n".join(["list 3", f"str {NONCE}", "str pass", "str ", ""])
FORGERIES = {
    "printed": f"print('{_FORGED}', flush=True)",
    "written": (
        "import os\nfor number in range(64):\n"
        f"    try: os.write(number, b'{_FORGED}')\n    except OSError: pass"
    ),
    "equal": (
        "class A:\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "def f(n): return A()"
    ),
    "list": "class A(list):\n    def __eq__(self, other): return True\ndef f(n): return A([9])",
    "builtins": (
        "import builtins\nbuiltins.AssertionError = Warning\n"
        "builtins.compile = builtins.exec = print\ndef f(n): return 0"
    ),
    "modules": (
        "import sys\nfor name in list(sys.modules): sys.modules[name] = None\n"
        "def f(n): return 0"
    ),
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(n): return 0",
    "frames": (
        "import sys\ndef f(n):\n    frame = sys._getframe()\n    while frame:\n"
        "        for name, value in list(frame.f_locals.items()):\n"
        "            if name in ('task', 'nonce', 'verdict'): return [n + 1]\n"
        "        frame = frame.f_back\n    return 0"
    ),
    "parent's files": (
        "import os\ndef f(n):\n    for name in range(16):\n"
        "        for how in (os.O_RDONLY, os.O_WRONLY):\n"
        "            try: os.open(f'/proc/1/fd/{name}', how); return [n + 1]\n"
        "            except OSError: pass\n    return 0"
    ),
    "parent's memory": (
        "def f(n):\n    for name in ('mem', 'maps', 'environ', 'auxv', 'stack'):\n"
        "        try: open(f'/proc/1/{name}', 'rb').read(1); return [n + 1]\n"
        "        except OSError: pass\n    return 0"
    ),
    "ptrace": (
        "import ctypes\nlibc = ctypes.CDLL(None)\ndef f(n):\n"
        "    if libc.ptrace(16, 1, 0, 0) == 0: return [n + 1]\n"
        "    pidfd = libc.syscall(434, 1, 0)\n"
        "    if any(libc.syscall(438, pidfd, n, 0) >= 0 for n in range(8)): return [n + 1]\n"
        "    if libc.process_vm_readv(1, None, 0, None, 0, 0) > 0: return [n + 1]\n    return 0"
    ),
    "open files": (  # whatever is open, other than three times nothing and two pipes
        "import os\ndef f(n):\n    names = {os.readlink(f'/proc/self/fd/{m}') for m in range(3)}\n"
        "    return 0 if names == {'/dev/null'} else [n + 1]"
    ),
}  # fmt: skip


@needs_sandbox
@pytest.mark.parametrize("name", FORGERIES, ids=[f"130-{n.replace(' ', '-')}" for n in FORGERIES])
def test_a_verdict_cannot_be_forged(name, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda _: NONCE)  # even one who knows it
    assert run(GOOD).verdict == "pass"
    found = run(FORGERIES[name], replace(SHORT, cpu=3))
    assert found.verdict == "fail", found


@needs_sandbox
def test_130_an_output_cannot_end_a_loop_of_the_tests():
    test = "for found, right in zip(map(f, [3]), [[4]]):\n    assert found == right"
    assert run(GOOD, test=test).verdict == "pass"
    found = run("def f(n): raise StopIteration", test=test)
    assert (found.verdict, found.detail[:27]) == ("fail", "RuntimeError: StopIteration")


@needs_sandbox
def test_129_an_end_is_none_of_the_exceptions_that_tests_wait_for():
    test = "try: f(1)\nexcept: pass\nelse: raise AssertionError"
    assert run("def f(n): raise ValueError", test=test).verdict == "pass"
    found = run("import os\ndef f(n): os._exit(0)", test=test)
    assert (found.verdict, found.detail) == ("fail", "it ended with 0")


@needs_sandbox
def test_values_come_back_as_they_were():
    values = [
        None, True, 7, 0.1, float("inf"), -0.0, 1j, "ü\n\ud800\\n", b"\0\xff",
        [1, (2, [])], (1,), {1, (2,)}, frozenset({3}), {"a": [1], (1, 2): None}, range(3, 9, 2),
    ]  # fmt: skip
    test = (
        f"for value in {values!r}:\n"
        "    assert f(value) == value and type(f(value)) is type(value), value\n"
        "assert list(g(3)) == [0, 1, 2]\nassert f(n=-16**9999) == -16**9999\n"
    ).replace("inf,", "float('inf'),")
    program = "def f(n): return n"
    setup = "g = lambda n: f((m for m in range(n)))"
    found = run(program, test=test, setup=setup)
    assert (found.verdict, found.detail) == ("pass", "")
    assert run("def f(n): return (n,)", test=test, setup=setup).verdict == "fail"
    assert (
        run("def f(n): raise KeyError(n)", test="try: f(1)\nexcept KeyError: pass").verdict
        == "pass"
    )


@needs_sandbox
def test_131_a_daemon_that_is_left_behind_is_gone():
    word = f"daemon-{secrets.token_hex(8)}"
    daemon = f"import os, time\nos.setsid()\nos.fork()\ntime.sleep(60)  # {word}"
    start = f"import subprocess\nsubprocess.Popen(['/usr/bin/python3', '-c', {daemon!r}])\n"
    assert run(f"{start}import time\ntime.sleep(0.3)\n{GOOD}").verdict == "pass"
    assert run(f"{start}import time\ntime.sleep(60)\n{GOOD}").verdict == "timeout"
    deadline = time.monotonic() + 5
    while processes_with(word) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_with(word) == []


def refused(monkeypatch, tmp_path, capsys):
    """The exit code and message of a suite of programs; no output may have run."""
    sandbox.check_sandbox.cache_clear()
    sandbox._wrapper.cache_clear()
    marker = tmp_path / "ran"
    row = {"task_id": "HumanEval/0", "prompt": "", "canonical_solution": "", "test": TEST}
    (tmp_path / "d.jsonl").write_text(str({**row, "entry_point": "f"}).replace("'", '"'))
    (tmp_path / "o.json").write_text(f'[["open(\\"{marker}\\", \\"w\\")"]]')
    words = ["--data", f"{tmp_path}/d.jsonl", "--generations", f"{tmp_path}/o.json"]
    try:
        return suite(["humaneval", *words]), capsys.readouterr().err
    finally:
        assert not marker.exists()
        sandbox.check_sandbox.cache_clear()
        sandbox._wrapper.cache_clear()


def test_132_without_bubblewrap_nothing_runs(tmp_path, monkeypatch, capsys):
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **o: None if name == "bwrap" else which(name, **o)
    )
    code, said = refused(monkeypatch, tmp_path, capsys)
    assert code == 7
    assert "install bubblewrap" in said


@needs_sandbox
def test_132_where_bubblewrap_does_not_work_nothing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sandbox, "_PYTHONS", ("/usr/bin/env",))
    code, said = refused(monkeypatch, tmp_path, capsys)
    assert code == 7
    assert "no sandbox: " in said


@needs_sandbox
def test_133_a_fault_of_the_machine_is_an_error_and_no_failure_of_the_output(monkeypatch):
    command = list(sandbox._wrapper(SHORT.disk))
    command[command.index("--tmpfs") + 1] = "/proc/1/box"
    monkeypatch.setattr(sandbox, "_wrapper", lambda _: command)
    found = run(GOOD)
    assert found.verdict == "error"
    assert "bwrap" in found.detail
    summary = SUITES["humaneval"].summary([(Item("0", {}, 0), [found])])
    assert summary == {"measures": {}, "counts": {"error": 1}, "left_out": 1}


@needs_sandbox
def test_it_runs_without_privileges():
    said = reported(
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "lines = [line.split() for line in open('/proc/self/status')]\n"
        "lines = {words[0]: words[1] for words in lines if len(words) == 2}\n"
        "return [lines[key] for key in ('CapEff:', 'CapBnd:', 'NoNewPrivs:')]"
        " + [libc.unshare(0x10000000), libc.mount(b'none', b'/box', b'tmpfs', 0, None)]"
    )
    assert said == str(["0" * 16, "0" * 16, "1", -1, -1])


@needs_sandbox
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_missing_compiler_is_not_measured(language, monkeypatch):
    monkeypatch.setattr("trainer.evaluation.suites.programs.seen", lambda _: False)
    found = LANGUAGES[language].judge(
        Item("0", {"prompt": "", "test": "", "entry_point": "f"}, 0), [""]
    )
    expected = "fail" if language == "python" else "not measured"
    assert [one.verdict for one in found] == [expected]


def test_a_process_of_this_machine_is_seen_by_the_search():
    with subprocess.Popen(["sleep", "9.0625"]) as process:
        deadline = time.monotonic() + 5  # a process that has just begun shows no arguments yet
        while not processes_with("9.0625") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert processes_with("9.0625") == [str(process.pid)]
        process.kill()
