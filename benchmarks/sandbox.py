"""What a sandbox costs: one program after the other, and 164 problems with 20 programs each.

    .venv/bin/python -m benchmarks.sandbox --data FOLDER

FOLDER holds HumanEvalPack's Python. The programs are its canonical solutions, made different by a
comment, because equal ones run once.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from trainer.evaluation.suites.items import suite_items
from trainer.evaluation.suites.running import ITEMS, judged_items
from trainer.evaluation.suites.sandbox import Limits, check_sandbox, judged
from trainer.evaluation.suites.suites import SUITES

SAMPLES, REPEATS = 20, 50
MOST_MS, MOST_SECONDS = 60.0, 90.0


def main() -> None:
    """Measure, print, and compare with the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    check_sandbox()

    task = {"setup": "", "entry": "f", "test": "assert f(1) == 2", "program": "f = (1).__add__"}
    python = ["/usr/bin/python3", "-I", "-S", "-c", "pass"]
    bare, inside = [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run(python, check=True)
        bare.append(1000 * (time.perf_counter() - started))
        found = judged(task, Limits())
        assert found.verdict == "pass", found
        inside.append(1000 * found.seconds)
    alone, own = statistics.median(bare), statistics.median(inside)
    print(f"an interpreter {alone:.0f} ms, a program in a sandbox {own:.0f} ms (medians)")
    print(f"overhead {own - alone:.0f} ms; goal at most {MOST_MS:.0f}")

    suite = SUITES["humanevalpack-synthesize-python"]
    items = suite_items(suite, data)
    solved = {item.id: item.row["prompt"] + item.row["canonical_solution"] for item in items}
    outputs = {name: [f"{one}\n# {n}\n" for n in range(SAMPLES)] for name, one in solved.items()}
    with tempfile.TemporaryDirectory() as folder:
        started, before = time.perf_counter(), os.times()
        results = judged_items(suite, items, outputs, Path(folder, ITEMS))
        seconds, after = time.perf_counter() - started, os.times()
    used = sum(after[:4]) - sum(before[:4])
    verdicts = [one.verdict for _, judgements in results for one in judgements]
    passed, cores = verdicts.count("pass"), len(os.sched_getaffinity(0))
    each = 1000 * used / len(verdicts)
    print(
        f"{passed} of {len(verdicts)} programs pass in {seconds:.0f} s on {cores} cores,", end=" "
    )
    print(f"{used:.0f} s of CPU time, {each:.0f} ms each; goal at most {MOST_SECONDS:.0f} s on 2")


if __name__ == "__main__":
    main()
