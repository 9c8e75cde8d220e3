"""CPU seconds of the commands' start: to the end of the first step, an evaluation, cached data.

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/start_up.py --repeats 3

A busy machine stretches CPU seconds too, so `import torch` in a process of its own is measured
beside every repeat: figures compare by their multiple of it.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is benchmarks/, make it the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.tables import print_table

ROOT = Path(__file__).resolve().parents[1]
SHORT = ("optim.warmup_steps=0", "log.interval=1", "eval.interval=never")
FIRST_STEP = "step 1/"
GOALS = {"first step, classification": 5.0, "first step, SFT": 5.5, "evaluate": 5.0,
         "prepare, cached": 1.2}  # fmt: skip


def cpu_seconds(command: Sequence[str], until: str = "") -> float:
    """User and system time of a Python process, to its end or until it prints a line."""
    process = subprocess.Popen(  # the lines of a run are on stderr
        [sys.executable, "-u", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if until and until in line:
            seconds = _so_far(process.pid)
            process.send_signal(signal.SIGKILL)
            process.stdout.read()
            process.wait()
            return seconds
    _, status, used = os.wait4(process.pid, 0)
    if status or until:
        raise ValueError(f"{' '.join(command)} ended with status {status}")
    return used.ru_utime + used.ru_stime


def _so_far(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # its own and its children's, user and system
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(folder: Path) -> dict[str, float]:
    """One round of all commands; the data are cached."""
    keys = [f"data.cache_dir={folder / 'cache'}", *SHORT]
    quickstart, sft = "recipes/quickstart.yaml", "recipes/instruction_sample.yaml"
    found = {"import torch": cpu_seconds(["-c", "import torch"])}
    for name, recipe in (("classification", quickstart), ("SFT", sft)):
        where = f"run.output_dir={Path(tempfile.mkdtemp(dir=folder)) / 'run'}"
        command = ["launcher/train.py", recipe, where, *keys]
        found[f"first step, {name}"] = cpu_seconds(command, FIRST_STEP)
    run = folder / "finished"
    if not run.exists():
        short = [f"run.output_dir={run}", "optim.epochs=null", "optim.max_steps=1"]
        cpu_seconds(["launcher/train.py", quickstart, *short, *keys])
    other = "data/samples/test_imbalanced.jsonl.gz"
    found["evaluate"] = cpu_seconds(["launcher/evaluate.py", str(run), other])
    found["prepare, cached"] = cpu_seconds(["launcher/prepare.py", quickstart, keys[0]])
    return found


def main(arguments: list[str]) -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder))  # fills the cache
        rounds = [measure(Path(folder)) for _ in range(given.repeats)]
    unit = statistics.median(one["import torch"] for one in rounds)
    rows = []
    for name in rounds[0]:
        seconds = statistics.median(one[name] for one in rounds)
        goal = f"<= {GOALS[name]}" if name in GOALS else ""
        rows.append([name, f"{seconds:.2f}", f"{seconds / unit:.2f}", goal])
    print_table(["until", "CPU s", "x import torch", "goal, CPU s"], rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
