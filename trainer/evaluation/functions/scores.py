"""Scores of a split's functions, equal for any number of ranks.

E examples, N functions of the split, dropped ones included.
"""

import numpy as np
import numpy.typing as npt
import torch

from data.text.tokenization import ExampleSet
from trainer.evaluation.scoring import Outputs, sum_of_ranks
from trainer.processes.distributed import Ranks


def score_examples(outputs: Outputs, num: int, ranks: Ranks) -> npt.NDArray[np.float64]:
    """P(vulnerable) of every example, equal on all ranks; all ranks call this.

    Args:
        outputs: This rank's batches with their logits (S, C).
        num: Examples of the split.
        ranks: This process among all.

    Raises:
        DivergedError: A logit is not finite.
    """
    scores_E = torch.zeros(num, dtype=torch.float64)
    for batch, logits_SC in outputs:
        scores_E[batch.example_S] = logits_SC.double().softmax(1)[:, 1].cpu()
    return sum_of_ranks(scores_E, ranks)  # one rank scores an example, it is 0 on the others


def of_functions(
    scores_E: npt.NDArray[np.float64], examples: ExampleSet, prior: float, window_score: str
) -> npt.NDArray[np.float64]:
    """Scores of functions (N,) from the scores of their examples.

    A function cut into windows has their highest or mean score (eval.window_score). A dropped
    function has the prior, so that every function of the split has a score.
    """
    scores_N = np.full(examples.num_records, -1.0)
    if window_score == "max":
        np.maximum.at(scores_N, examples.record_E, scores_E)
    else:
        sums_N = np.bincount(examples.record_E, scores_E * examples.share_E, len(scores_N))
        scores_N[examples.record_E] = sums_N[examples.record_E]
    scores_N[scores_N < 0] = prior
    return scores_N


def population(examples: ExampleSet, compat: bool) -> npt.NDArray[np.int64]:
    """The functions that are measured: all, or with replication.compat_population the kept ones."""
    return np.unique(examples.record_E) if compat else np.arange(examples.num_records)
