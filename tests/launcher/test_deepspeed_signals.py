"""`deepspeed` on one node tells its ranks nothing when it dies; they notice, save and end."""

import os
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from launched import free_port, marked, wait_until
from psutil import Process

from trainer.processes.launchers import is_abandoned, is_launcher, nearest_launchers
from trainer.run_folder.metrics import read_log

REPOSITORY = Path(__file__).resolve().parents[2]


def start(recipe, folder, mark, printed):
    command = [
        sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2",
        "--master_port", str(free_port()), str(REPOSITORY / "launcher" / "train.py"), str(recipe),
        f"run.output_dir={folder}", "optim.max_steps=1000000", "eval.interval=never",
        "save.interval=1000000",
    ]  # fmt: skip
    name, _, value = mark.partition("=")
    with printed.open("wb") as output:
        return subprocess.Popen(
            command, env=os.environ | {"OMP_NUM_THREADS": "1", name: value},
            stdout=output, stderr=output,
        )  # fmt: skip


def test_ranks_save_and_end_when_the_launcher_is_terminated_or_killed(tiny_recipe, tmp_path):
    folder, mark = tmp_path / "run", f"FOCALTUNE_TEST={uuid.uuid4().hex}"
    for attempt, number in enumerate((signal.SIGTERM, signal.SIGKILL)):
        printed = tmp_path / f"printed-{attempt}"
        runner = start(tiny_recipe, folder, mark, printed)
        log = folder / "log.jsonl"
        before = len(read_log(log)) if log.exists() else 0
        if number is signal.SIGTERM:
            wait_until(lambda: log.exists() and len(read_log(log)) > before + 2, 120, "steps")  # noqa: B023
            os.kill(runner.pid, number)  # it passes nothing on
        else:
            wait_until(lambda: "focaltune:" in printed.read_text(), 120, "a model that loads")  # noqa: B023
            [launch] = [p for p, said in marked(mark).items() if "launcher.launch" in said]
            os.kill(launch, number)  # and the runner then says that all is well
        assert wait_until(lambda: not marked(mark), 40, "an end of all ranks") < 25
        runner.wait()
        assert "the launcher is gone: stopped after step" in printed.read_text()
        steps = len(read_log(log))
        assert (folder / "checkpoints" / f"step-{steps:08d}" / "MANIFEST.json").exists()
        assert steps > before


def test_a_signal_that_reaches_all_processes_of_a_launch_saves(tiny_recipe, tmp_path):
    """Any that ends the launcher's processes; test_resume.py sends each to a rank."""
    folder, mark = tmp_path / "run", f"FOCALTUNE_TEST={uuid.uuid4().hex}"
    printed, log = tmp_path / "printed", tmp_path / "run" / "log.jsonl"
    runner = start(tiny_recipe, folder, mark, printed)
    wait_until(lambda: log.exists() and len(read_log(log)) > 2, 120, "steps")
    for process in marked(mark):  # as a terminal does that closes
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGHUP)
    assert wait_until(lambda: not marked(mark), 40, "an end of all ranks") < 25
    runner.wait()
    steps = len(read_log(log))
    assert (folder / "checkpoints" / f"step-{steps:08d}" / "MANIFEST.json").exists()
    assert f"stopped after step {steps}" in printed.read_text()


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("/opt/bin/deepspeed --num_gpus 2 train.py", True),
        ("/opt/bin/python /opt/bin/deepspeed train.py", True),
        ("python3.11 -u -X faulthandler -m deepspeed.launcher.launch train.py", True),
        ("python -m torch.distributed.run --nproc_per_node 2 train.py", True),
        ("mpirun -np 2 python train.py", True),
        ("python launcher/supervise.py --hostfile h -- train.py r", True),
        ("python launcher/sweep.py r", True),
        ("python elsewhere/sweep.py r", False),
        ("bash start_deepspeed.sh", False),
        ("bash -c launcher/train.py run.output_dir=runs/deepspeed", False),
        ("python train.py runs/torchrun", False),
        ("python -c deepspeed deepspeed", False),
        ("python", False),
        ("", False),
    ],
)
def test_a_launcher_is_known_by_its_program_alone(command, is_one):
    assert is_launcher(command.split(), REPOSITORY) is is_one


def test_a_launcher_is_missed_when_it_ends(tmp_path):
    program = tmp_path / "deepspeed"
    program.write_text("import time; time.sleep(60)")
    sleeper = subprocess.Popen([sys.executable, str(program)])
    try:
        wait_until(lambda: nearest_launchers([Process(sleeper.pid)]), 10, "a command line")
        found = nearest_launchers([Process(sleeper.pid)])
        assert found[0].pid == sleeper.pid
        assert not is_abandoned(found)
        sleeper.kill()
        wait_until(lambda: is_abandoned(found), 10, "the end to be seen")  # as a zombie, too
    finally:
        sleeper.kill()
        sleeper.wait()
    assert is_abandoned(found)


def test_a_shell_is_no_launcher():
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert nearest_launchers([Process(sleeper.pid)]) == []
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.parametrize("reads", [True, False])
def test_output_that_nobody_reads_counts_as_a_launcher_that_is_gone(reads):
    program = (
        "import os, sys; from trainer.processes.launchers import is_abandoned;"
        "sys.stdin.read(1); os.write(int(sys.argv[1]), b'%d' % is_abandoned([]))"
    )
    answer, told = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(told)], cwd=REPOSITORY, pass_fds=[told],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    os.close(told)
    if not reads:
        child.stdout.close()
    child.stdin.write(b"x")
    child.stdin.close()
    assert os.read(answer, 1) == (b"0" if reads else b"1")
    os.close(answer)
    if reads:
        child.stdout.close()
    child.wait()
