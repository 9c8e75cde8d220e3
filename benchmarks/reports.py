"""CPU seconds of a detector's report: measures, intervals, slices, pairs, pictures and files.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.reports --functions 100000

Scores and labels are drawn; fitting the baselines is not in it.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from trainer.evaluation.decision import Decision
from trainer.evaluation.functions.baselines import LEARNED, Baseline, constant_baselines
from trainer.evaluation.functions.predictions import Prediction
from trainer.evaluation.functions.report import write_function_report
from trainer.evaluation.resampling import FloatArray


def main() -> None:
    """Write a report on drawn scores and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", type=int, default=100_000)
    num = parser.parse_args().functions
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, num)

    def scores(strength: float) -> FloatArray:
        noise = 0.2 * generator.standard_normal(num)
        return np.asarray(np.clip(0.25 + strength * labels + noise, 0, 1))

    rows = [
        Prediction(
            str(n), f"a.c:{n}", int(label), float(score), int(score >= 0.5), f"commit{n // 3}",
            f"CWE-{n % 30}", "read", 50 + n % 3000, project=f"project{n % 50}",
            language=("C", "Java")[n % 2], pair=f"pair{n // 3}" if n % 3 else "",
        )
        for n, (label, score) in enumerate(zip(labels, scores(0.3), strict=True))
    ]  # fmt: skip
    learned = {name: Baseline(scores(0.1), 0.5) for name in LEARNED}
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        baselines = {**learned, **constant_baselines(0.5, num)}
        write_function_report(Path(folder), "test", rows, Decision(), baselines, {})
        print(f"{num:,} functions: {time.process_time() - began:.1f} CPU s")


if __name__ == "__main__":
    main()
