"""Does the first result hold? The quickstart over seeds, CPU kernels and threads.

    .venv/bin/python benchmarks/quickstart.py --seeds 0 1 2 3 4 --kernels avx2 default --threads 1

Trains and evaluates as `make quickstart` does, each run in a folder of its own below --out, and
prints a row a run: ROC AUC on both test sets with its distance to word counts. Finished runs are
read again, so a stopped campaign continues.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("test", "test_imbalanced")


def run(folder: Path, seed: int, kernels: str, threads: int) -> None:
    """Train and evaluate; what they used is kept in cost.json."""
    chosen = {"ATEN_CPU_CAPABILITY": kernels, "OMP_NUM_THREADS": str(threads)}
    keys = [f"run.output_dir={folder}", f"run.seed={seed}", "log.progress=false"]
    commands = (
        ["launcher/train.py", "recipes/quickstart.yaml", *keys],
        ["launcher/evaluate.py", str(folder), "data/samples/test_imbalanced.jsonl.gz"],
    )
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in commands:
        subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=os.environ | chosen, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cost = {"seconds": time.monotonic() - began, "cpu_seconds": cpu}
    (folder / "cost.json").write_text(json.dumps(cost))


def cell(report: dict[str, Any]) -> str:
    """ROC AUC [interval], how far above word counts [interval], share called vulnerable."""
    model, against = report["predictors"]["model"], report["comparison"]
    low, high = model["intervals"]["roc_auc"]
    least, most = against["interval"]
    called = (model["metrics"]["tp"] + model["metrics"]["fp"]) / model["metrics"]["num"]
    return (
        f"{model['metrics']['roc_auc']:.3f} [{low:.3f}, {high:.3f}] |"
        f" {against['auc_difference']:+.3f} [{least:+.3f}, {most:+.3f}] | {called:.0%}"
    )


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "robust")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--kernels", nargs="+", default=["default", "avx2", "avx512"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    heads = [f"{test}: ROC AUC | above word counts | called vulnerable" for test in TESTS]
    print("| seed | kernels | threads |", " | ".join(heads), "| seconds | CPU seconds |")
    print("|" + "---|" * (3 + 3 * len(TESTS) + 2))
    for kernels, threads, seed in product(given.kernels, given.threads, given.seeds):
        folder = given.out / f"{kernels}-{threads}-{seed}"
        if not (folder / "cost.json").exists():
            run(folder, seed, kernels, threads)
        reports = [json.loads((folder / "report" / f"{test}.json").read_text()) for test in TESTS]
        cost = json.loads((folder / "cost.json").read_text())
        cells = " | ".join(cell(report) for report in reports)
        print(
            f"| {seed} | {kernels} | {threads} | {cells} | {cost['seconds']:.0f}"
            f" | {cost['cpu_seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
