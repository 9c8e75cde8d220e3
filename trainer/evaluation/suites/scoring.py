"""Measures of a suite with their intervals; pass@k.

Shapes: N items, R resamples, K values of k.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trainer.evaluation.bootstrap import drawn_values
from trainer.evaluation.resampling import USUAL_DRAWS, FloatArray, Multiplicities
from trainer.evaluation.suites.suite import Result

_KS = (1, 10, 100)


def pass_at_k(num: int, num_passed: int, k: int) -> float:
    """Chance that one of k outputs drawn without replacement passes (Chen et al. 2021, eq. 1)."""
    assert 0 <= num_passed <= num
    assert k <= num
    if num - num_passed < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(num - num_passed + 1, num + 1)))


def with_intervals(
    measured: Callable[[Multiplicities], Mapping[str, FloatArray]], num: int
) -> dict[str, dict[str, Any]]:
    """Every measure over all items, and its percentile interval over items drawn one by one.

    Args:
        measured: From multiplicities (R, N) to R values of each measure.
        num: N, at least 1.
    """
    drawn = drawn_values(
        lambda weights_RN: {("", name): v for name, v in measured(weights_RN).items()},
        np.arange(num),
        USUAL_DRAWS,
    ).intervals("")
    whole = measured(np.ones((1, num), np.float32))
    return {
        name: {"value": float(value_R.item()), "interval": drawn.get(name)}
        for name, value_R in whole.items()
    }


def program_summary(results: Sequence[Result]) -> dict[str, Any]:
    """pass@k in percent, the mean over items, for each k that every item has outputs for.

    Items with an output that could not be judged, by error or for lack of a compiler, are left
    out and counted: they are no failures of the model.
    """
    counts = Counter(judged.verdict for _, outputs in results for judged in outputs)
    sound = [
        [judged.verdict == "pass" for judged in outputs]
        for _, outputs in results
        if not {"error", "not measured"} & {judged.verdict for judged in outputs}
    ]
    left_out = len(results) - len(sound)
    measures: dict[str, Any] = {}
    if sound:
        ks = [k for k in _KS if k <= min(map(len, sound))]
        values_KN = np.array([[pass_at_k(len(p), sum(p), k) for p in sound] for k in ks])

        def measured(weights_RN: Multiplicities) -> dict[str, FloatArray]:
            means_RK = weights_RN @ values_KN.T / weights_RN.sum(axis=1)[:, None]
            return {f"pass@{k}": 100 * means_RK[:, n] for n, k in enumerate(ks)}

        measures = with_intervals(measured, len(sound))
    return {"measures": measures, "counts": dict(sorted(counts.items())), "left_out": left_out}
