"""When a supervised run is done, tried again or given up, and what an attempt leaves behind."""

import os
import signal
import subprocess
import sys
import uuid
from dataclasses import replace
from types import SimpleNamespace

import pytest
from launched import marked, wait_until

from launcher.supervise import main
from trainer.cluster import supervision
from trainer.cluster.cleanup import signal_hosts
from trainer.cluster.leftovers import signal_run
from trainer.cluster.supervision import (
    RUN_ID,
    Limits,
    Signals,
    SupervisedRun,
    answering,
    attempt,
    ending,
    is_over,
    launch_command,
    refuse,
    remote_hosts,
    saved_step,
    supervise,
    user_exports,
    verdict,
)
from trainer.config.recipe import load_run_config
from trainer.errors import ConfigError, MachineError
from trainer.processes.hostfile import Node
from trainer.processes.outcome import FOLDER, Outcome, read_outcomes, write_outcome
from trainer.processes.signals import STOP_SIGNALS
from trainer.run_folder.checkpoint import write_checkpoint

NODES = [Node("node0", 2, 1), Node("node1", 1, 2)]
LOST = Outcome(1, "node0", 5, "LostRankError", "the connection broke")


@pytest.fixture
def signals():
    numbers = STOP_SIGNALS
    before = {number: signal.getsignal(number) for number in numbers}
    yield Signals()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def job(tiny_recipe, tmp_path):
    """A run on this machine whose train.py a test writes."""
    config = load_run_config(tiny_recipe, [f"run.output_dir={tmp_path / 'run'}"])
    return SupervisedRun(config, [Node("localhost", 2, 1)], "pdsh", "", tmp_path / "train.py")


@pytest.mark.parametrize(
    ("outcomes", "is_stopping", "code"),
    [
        ([], False, None),
        ([LOST], False, None),  # a lost rank is what supervision is for
        ([Outcome(1, "node1", 0, "", "")], False, None),  # only rank 0 knows that all is written
        ([Outcome(0, "node0", 0, "", ""), LOST], False, 0),
        ([Outcome(1, "node0", 75, "StoppedError", "saved")], False, 75),
        ([Outcome(0, "node0", 75, "AbandonedError", "saved")], False, None),
        ([Outcome(0, "node0", 75, "AbandonedError", "saved")], True, 75),
        ([LOST], True, 130),  # a signal, and nothing says that it saved
        ([Outcome(0, "node0", 6, "HungError", "step 3")], False, None),
        ([LOST, Outcome(0, "node0", 6, "DivergedError", "nan")], False, 6),
        ([Outcome(0, "node0", 2, "ConfigError", "lr")], False, 2),
        ([Outcome(0, "node0", 5, "MachineError", "versions differ")], False, 5),
        ([Outcome(0, "node0", 1, "IndexError", "a defect")], False, None),
    ],
)
def test_what_ranks_said_decides_never_an_exit_code(outcomes, is_stopping, code):
    assert verdict(outcomes, is_stopping=is_stopping) == code


def test_the_ending_names_the_host_of_a_rank_that_said_nothing():
    said = ending(
        [Outcome(0, "node0", 5, "LostRankError", "the connection broke"), LOST], NODES, None
    )
    assert said == (
        "no word from rank 2 on node1; rank 0 on node0, rank 1 on node0: the connection broke"
    )


def test_an_outcome_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for rank in (11, 2):
        monkeypatch.setenv("RANK", str(rank))
        write_outcome(6, "DivergedError", f"step {rank}")
    found = read_outcomes(tmp_path)
    assert [(one.rank, one.exit_code, one.message) for one in found] == [
        (2, 6, "step 2"), (11, 6, "step 11"),
    ]  # fmt: skip


def sleepers(mark, *environments):
    name, _, value = mark.partition("=")
    return [
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(100)"],
            env={name: value, **environment},
        )
        for environment in environments
    ]


def test_ending_a_run_ends_what_carries_its_mark_and_nothing_else():
    mark = f"FOCALTUNE_RUN_ID={uuid.uuid4().hex}"
    ours = sleepers(mark, {}, {"RANK": "0"})
    others = sleepers(mark + "0", {}) + sleepers(f"X{mark}", {})
    wait_until(lambda: len(marked(mark)) == 2, 10, "sleepers")
    found = signal_run(mark, "end", 10)
    assert set(found["signalled"]) == {one.pid for one in ours}
    assert found["left"] == []
    assert {one.wait(10) for one in ours} == {-signal.SIGKILL}
    assert [one.poll() for one in others] == [None, None]
    for one in others:
        one.kill()
        one.wait()


def test_ranks_get_the_signal_to_save_and_their_launcher_does_not():
    mark = f"FOCALTUNE_RUN_ID={uuid.uuid4().hex}"
    launcher, rank = sleepers(mark, {}, {"RANK": "0"})
    wait_until(lambda: len(marked(mark)) == 2, 10, "sleepers")
    assert signal_run(mark, "stop", 10) == {"signalled": [rank.pid], "left": []}
    assert (rank.wait(10), launcher.poll()) == (-signal.SIGTERM, None)
    launcher.kill()
    launcher.wait()


def test_a_rank_on_this_machine_gets_one_signal_though_ssh_comes_here_too(tmp_path, monkeypatch):
    (tmp_path / "ssh").write_text('#!/bin/sh\nfor last in "$@"; do :; done\nexec sh -c "$last"\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = (
        "import signal, sys, time\n"
        "received = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: received.append(1))\n"
        "print(flush=True)\n"
        "while not received: time.sleep(0.1)\n"
        "time.sleep(2)\n"  # it saves
        "sys.exit(len(received))"
    )
    name, value = "FOCALTUNE_RUN_ID", uuid.uuid4().hex
    rank = subprocess.Popen(
        [sys.executable, "-c", program],
        env={name: value, "RANK": "0"}, stdout=subprocess.PIPE,
    )  # fmt: skip
    with rank:
        assert rank.stdout.readline()  # the handler is set
        assert signal_hosts(["localhost"], f"{name}={value}", "stop", 10) == {}
        assert rank.wait(10) == 1


@pytest.mark.parametrize(
    ("steps", "num_attempts", "newest"),
    [
        ([0, 0, 0], 2, 0),  # one restart without a checkpoint is allowed
        ([4, 4, 4], 2, 4),  # what was there before counts for nothing
        ([0, 4, 4, 8, 8, 8], 5, 8),  # a new one allows a restart again
        ([8, 4, 4], 2, 4),  # the newest was damaged
    ],
)
def test_restarts_are_counted_since_the_last_new_checkpoint(
    steps, num_attempts, newest, job, signals, monkeypatch
):
    attempts, said, saved = [], [], iter(steps)
    monkeypatch.setattr(supervision, "saved_step", lambda job: next(saved))
    monkeypatch.setattr(
        supervision, "attempt", lambda job, number, *_: attempts.append(number) or [LOST]
    )
    assert supervise(job, Limits(1, 0, False), signals, said.append) == LOST.exit_code
    assert attempts == list(range(1, num_attempts + 1))
    assert said[-1] == f"no new checkpoint since step {newest} in 2 attempts: given up"


@pytest.mark.parametrize(
    ("limits", "is_first", "down", "said", "slept"),
    [  # hosts that are down at each look
        (Limits(3, 12, False), False, ["node1", "node1", ""], ["waits for node1: off"] * 2, [5, 5]),
        (Limits(3, 8, False), False, ["node1"] * 3, ["waits for node1: off"] * 2, [5, 3]),
        (Limits(3, 12, False), True, ["node1"], [], []),  # a first start does not wait
        (Limits(3, 12, True), False, ["node1"], ["continues without node1: off"], []),
        (Limits(3, 12, True), False, ["node0 node1"], [], []),  # nobody is left
    ],
)
def test_hosts_that_do_not_answer_are_awaited_left_out_or_named(
    limits, is_first, down, said, slept, job, signals, monkeypatch
):
    now, looks, lines, sleeps = [100.0], iter(down), [], []

    def sleep(seconds):
        sleeps.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(supervision.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(supervision.time, "sleep", sleep)
    monkeypatch.setattr(
        supervision, "signal_hosts", lambda *_: dict.fromkeys(next(looks).split(), "off")
    )
    run = replace(job, nodes=NODES)
    if down[-1] == "" or (limits.without_dead and down == ["node1"]):
        expected = NODES if down[-1] == "" else NODES[:1]
        assert answering(run, limits, signals, is_first, lines.append) == expected
    else:
        with pytest.raises(MachineError, match=r"node1: off\. Or take it out of the hostfile"):
            answering(run, limits, signals, is_first, lines.append)
    assert (lines, sleeps) == (said, slept)
    assert next(looks, None) is None


@pytest.mark.parametrize(
    ("hosts", "by_ssh"),
    [
        (["localhost"], []),
        (["node9.invalid"], ["node9.invalid"]),
        (["localhost", "node9.invalid"], ["localhost", "node9.invalid"]),  # launchers do so, too
    ],
)
def test_the_launcher_goes_by_ssh_but_to_this_machine_alone(hosts, by_ssh, job, tmp_path):
    nodes = [Node(host, 2, line) for line, host in enumerate(hosts)]
    assert remote_hosts(nodes) == by_ssh
    command = launch_command(job, nodes, tmp_path / "hosts", 20123)
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner"]
    options = ["--hostfile", str(tmp_path / "hosts"), "--launcher", "pdsh", "--launcher_args="]
    here = ["--no_ssh", "--node_rank=0", "--master_addr=127.0.0.1"]
    where = ["--force_multi"] if by_ssh else here
    train = [str(job.script), str(job.folder / "recipe.yaml")]
    assert command == [*launcher, *options, "--master_port=20123", *where, *train]


def test_a_launcher_that_says_0_is_not_believed_and_given_up_and_leaves_nothing(
    job, signals, monkeypatch
):
    program = "import subprocess; subprocess.Popen(['sleep', '300'], start_new_session=True)"
    ports = []

    def launcher(job, nodes, hostfile, port):
        assert hostfile.read_text() == "localhost slots=2\n"
        ports.append(port)
        return [sys.executable, "-c", program]

    monkeypatch.setattr(supervision, "launch_command", launcher)
    said = []
    code = supervise(job, Limits(1, 0, False), signals, said.append)
    assert code == 5
    assert "no word from rank 0 on localhost, 1 on localhost" in said[1]
    assert said[-1] == "no new checkpoint since step 0 in 2 attempts: given up"
    assert len(set(ports)) == 2
    assert not marked(job.mark)


@pytest.mark.slow
def test_the_completion_marker_ends_it_whatever_the_launcher_says(
    job, signals, tmp_path, monkeypatch
):
    """By the real launcher; rank 1 fails, and hangs, after rank 0 has written all."""
    monkeypatch.setattr(supervision, "_GRACE", 1.0)
    monkeypatch.setattr(supervision.secrets, "randbelow", lambda count: 11_987)
    job.script.write_text(
        "import json, os, time\n"
        "assert os.environ['MASTER_PORT'] == '31987'\n"
        "rank = int(os.environ['RANK'])\n"
        "values = {'rank': rank, 'host': 'x', 'exit_code': 0, 'error': '', 'message': ''}\n"
        f"path = os.environ[{FOLDER!r}] + f'/rank-{{rank}}.json'\n"
        "rank or open(path, 'w').write(json.dumps(values))\n"
        "time.sleep(300 * rank)\n"
    )
    said = []
    assert supervise(job, Limits(3, 0, False), signals, said.append) == 0
    assert said[-1] == "done"
    assert len(said) == 2
    assert not marked(job.mark)


class FakeLauncher:
    """Stands for subprocess.Popen; ends after a number of looks at it."""

    def __init__(self, looks):
        self.looks, self.was_awaited = looks, False

    def __call__(self, command, **options):
        self.command, self.options = command, options
        return self

    def poll(self):
        self.looks -= 1
        return None if self.looks >= 0 else 0

    def wait(self):
        self.was_awaited = True


@pytest.fixture
def fake(job, monkeypatch):
    """A job on two hosts whose launcher, clock and signals are written down."""
    calls = SimpleNamespace(now=100.0, signalled=[], faults=[{}, {}], launcher=FakeLauncher(1))

    def sleep(seconds):
        calls.now += seconds

    def signal_hosts(*arguments):
        calls.signalled.append(arguments)
        return calls.faults.pop(0)

    def randbelow(count):
        assert count == 12_000
        return 5

    monkeypatch.setattr(supervision.time, "monotonic", lambda: calls.now)
    monkeypatch.setattr(supervision.time, "sleep", sleep)
    monkeypatch.setattr(supervision, "signal_hosts", signal_hosts)
    monkeypatch.setattr(supervision.secrets, "randbelow", randbelow)
    monkeypatch.setattr(
        supervision, "subprocess",
        SimpleNamespace(Popen=lambda *a, **o: calls.launcher(*a, **o), DEVNULL=subprocess.DEVNULL),
    )  # fmt: skip
    calls.job = replace(job, nodes=NODES)
    calls.job.folder.mkdir(parents=True)
    return calls


@pytest.mark.parametrize("launcher", ["openmpi", "pdsh"])
def test_a_launcher_gets_the_port_the_exports_and_a_session_of_its_own(
    launcher, fake, signals, monkeypatch
):
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-p 2222")
    job, said = replace(fake.job, launcher=launcher), []
    fake.faults = [{"node1": "off"}]
    assert attempt(job, 3, NODES, signals, said.append) == []
    assert fake.launcher.was_awaited
    assert fake.launcher.command == launch_command(job, NODES, job.folder / "3/hostfile", 20_005)
    assert (job.folder / "3/hostfile").read_text() == "node0 slots=2\nnode1 slots=1\n"
    exported = dict(
        line.split("=", 1) for line in (job.folder / "environment").read_text().splitlines()
    )
    master = {"MASTER_ADDR": "node0", "MASTER_PORT": "20005"} if launcher == "openmpi" else {}
    assert exported == {RUN_ID: job.run_id, FOLDER: str(job.folder / "3"), **master}
    environment = fake.launcher.options["env"]
    assert environment.items() >= exported.items()
    assert environment["DS_ENV_FILE"] == str(job.folder / "environment")
    ssh = environment["OMPI_MCA_plm_rsh_args"]
    assert "BatchMode=yes" in ssh
    assert environment["PRTE_MCA_plm_ssh_args"] == ssh
    assert environment["PDSH_SSH_ARGS_APPEND"] == f"-p 2222 {ssh}"
    assert fake.launcher.options["start_new_session"]
    assert fake.signalled == [(["node0", "node1"], job.mark, "end", 10.0)]
    assert said == ["node1: processes may be left: off"]


def test_on_this_machine_alone_nobody_sets_a_master(fake, job, signals):
    attempt(replace(fake.job, launcher="openmpi"), 1, job.nodes, signals, print)
    assert "MASTER" not in (fake.job.folder / "environment").read_text()


def test_a_signal_asks_the_ranks_to_save_once_and_then_ends_what_is_left(fake, signals):
    fake.launcher.looks, said = 9, []
    signals.received = signal.SIGTERM
    attempt(fake.job, 1, NODES, signals, said.append)
    hosts = ["node0", "node1"]
    assert [call[0] for call in fake.signalled] == [hosts, hosts]
    assert [call[2:] for call in fake.signalled] == [("stop", 25.0), ("end", 10.0)]
    assert said == ["SIGTERM: the ranks save and end"]


def test_the_other_ranks_have_eight_seconds_once_one_has_ended(fake, signals, monkeypatch):
    seen = iter([[], [LOST]])
    monkeypatch.setattr(supervision, "read_outcomes", lambda folder: next(seen, [LOST]))
    monkeypatch.setattr(supervision, "_TICK", 0.5)
    fake.launcher.looks = 1000
    assert attempt(fake.job, 1, NODES, signals, print) == [LOST]
    assert fake.now == 100 + 0.5 + 8  # the second look, after a tick, sees it


def test_a_run_is_over_when_a_rank_failed_or_rank_0_is_done():
    done = [Outcome(rank, "node0", 0, "", "") for rank in range(3)]
    assert not is_over([])
    assert not is_over(done[1:])
    assert is_over(done[:1])
    assert is_over([done[1], LOST])


@pytest.mark.parametrize(("step", "code"), [(0, 130), (7, 75)])
def test_a_stop_is_told_from_a_stop_with_nothing_saved(step, code, job, signals, monkeypatch):
    monkeypatch.setattr(supervision, "saved_step", lambda job: step)

    def stopped(*_):
        signals.received = signal.SIGTERM
        return [LOST]

    monkeypatch.setattr(supervision, "attempt", stopped)
    said = []
    assert supervise(job, Limits(3, 0, False), signals, said.append) == code
    assert said[-1] == (
        f"stopped; the ranks did not save, the newest checkpoint is of step {step}"
        if step
        else "stopped; nothing saved"
    )
    again = replace(job, run_id="again")  # the signal was received before the first attempt
    assert supervise(again, Limits(3, 0, False), signals, said.append) == code
    assert said[-1] == f"SIGTERM: stopped between two attempts, after step {step}"


@pytest.mark.parametrize(("codes", "expected"), [([0, 1], 1), ([], 5)])
def test_giving_up_ends_with_the_first_code_of_a_rank_that_failed(
    codes, expected, job, signals, monkeypatch
):
    clock = iter([100.0, 112.0])
    monkeypatch.setattr(supervision.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(supervision, "answering", lambda *_: NODES)
    outcomes = [Outcome(rank, "node0", code, "", "") for rank, code in enumerate(codes, 1)]
    monkeypatch.setattr(supervision, "attempt", lambda *_: outcomes)
    said = []
    assert supervise(job, Limits(0, 0, False), signals, said.append) == expected
    assert said[0].startswith("attempt 1 on node0 x 2, node1 x 1, from step 0; run id ")
    assert said[1].startswith("attempt 1 ended after 12 s: ")


def test_an_ending_repeats_the_first_message_of_its_code():
    saved = [
        LOST,
        Outcome(0, "node0", 75, "StoppedError", ""),
        Outcome(2, "node1", 75, "StoppedError", "saved step 4"),
        Outcome(3, "node1", 75, "StoppedError", "saved"),
    ]
    assert ending(saved, NODES, 75) == "stopped: saved step 4"
    assert ending([LOST], NODES, 130) == "stopped; nothing saved"
    assert ending([Outcome(0, "node0", 0, "", "")], NODES, 0) == "done"


def test_the_first_of_several_signals_counts(signals):
    assert signals.received is None
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert signals.received == signal.SIGUSR1


def test_the_step_to_go_on_from_is_that_of_the_newest_checkpoint(job):
    assert saved_step(job) == 0
    root = job.config.output_dir / "checkpoints"
    root.mkdir(parents=True)
    for step in (2, 4):
        write_checkpoint(root, step, {}, [], {}, {})
    assert saved_step(job) == 4


def test_exports_keep_the_users_and_leave_out_what_deepspeed_cannot_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text("# comment\n\nNCCL_SOCKET_IFNAME=eth1\nA=b=c\n")
    assert user_exports() == {"NCCL_SOCKET_IFNAME": "eth1", "A": "b=c"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.resume=never", "run.resume=never: a supervised run continues"),
        ("run.output_dir=/tmp/$(id)", r"/tmp/\$\(id\)\.supervised/\w+: launchers give this path"),
    ],
)
def test_what_could_not_continue_or_would_reach_a_shell_is_refused(
    override, message, tiny_recipe, tmp_path
):
    config = load_run_config(tiny_recipe, [override])
    with pytest.raises(ConfigError, match=message):
        refuse(SupervisedRun(config, NODES, "pdsh", "", tmp_path / "train.py"))


@pytest.mark.parametrize("line", ["A=x; id", "A=$(id)", "A=x y", "A;id=x"])
def test_a_variable_that_would_reach_a_shell_is_refused(line, job, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    refuse(job)
    (tmp_path / ".deepspeed_env").write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=r"\.deepspeed_env: A"):
        refuse(job)


@pytest.mark.parametrize(
    ("lines", "command", "said"),
    [
        ("localhost slots=2", ["evaluate.py", "x"], "cannot be supervised; give train.py RECIPE"),
        ("localhost slots=0", ["train.py", "x"], "slots=0"),
        (
            "localhost slots=1",
            ["train.py", "no-such-recipe.yaml"],
            "no-such-recipe.yaml is not a file",
        ),
    ],
)
def test_a_command_that_cannot_be_supervised_is_a_usage_error(
    lines, command, said, tmp_path, capsys
):
    (tmp_path / "hostfile").write_text(lines)
    assert main(["--hostfile", str(tmp_path / "hostfile"), "--", *command]) == 2
    assert said in capsys.readouterr().err
