"""Scores of a whole split from a model in training, whatever the number of ranks.

N functions of the split, dropped ones included.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data.batches.batch import Batch
from data.batches.loader import evaluation_batches
from data.text.tokenization import ExampleSet
from trainer.config.sections import RunConfig
from trainer.errors import DivergedError
from trainer.processes.distributed import Ranks, all_reduce_sum


@dataclass(frozen=True)
class Validation:
    """The outcome of a validation.

    Attributes:
        score: What picks the best step, higher is better; None where it is undefined.
        threshold: Of classes, that goes with it.
    """

    score: float | None
    threshold: float = 0.5


def split_batches(examples: ExampleSet, config: RunConfig, ranks: Ranks) -> Iterator[Batch]:
    """A rank's batches of a split, laid out as the run's, on its device.

    Ranks have the same number of them; the last ones of some can be empty.
    """
    for batch in evaluation_batches(
        examples,
        seq_length=config.data.seq_length,
        packing=config.data.packing,
        micro_batch_size=config.optim.micro_batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        isolate=config.data.isolate,
    ):
        yield batch.to(ranks.device)


def score_functions(
    model: nn.Module, examples: ExampleSet, prior: float, config: RunConfig, ranks: Ranks
) -> npt.NDArray[np.float64]:
    """P(vulnerable) of every function, equal on all ranks; called by all ranks.

    A function cut into windows has the highest or the mean of their scores (eval.window_score); a
    dropped one has the prior, so that the population is the whole split.

    Args:
        model: Batch -> logits (S, C): an engine, or the model itself; left in training mode.
        examples: The split.
        prior: Share of positives in training.
        config: Row length, packing and micro-batch of the run.
        ranks: This process among all.

    Returns:
        float64 scores (N,).

    Raises:
        DivergedError: A logit is not finite.
    """
    scores_E = torch.zeros(len(examples), dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        for batch in split_batches(examples, config, ranks):
            logits_SC = model(batch).double()
            scores_E[batch.example_S] = logits_SC.softmax(1)[:, 1].cpu()
    model.train()
    # Every example was scored by one rank and is zero on the others.
    scores_E = all_reduce_sum(scores_E.to(ranks.device)).cpu()
    if not torch.isfinite(scores_E).all():
        raise DivergedError("the model's scores are not finite; lower optim.lr or check the base")
    return of_functions(scores_E.numpy(), examples, prior, config.eval.window_score)


def of_functions(
    scores_E: npt.NDArray[np.float64], examples: ExampleSet, prior: float, window_score: str
) -> npt.NDArray[np.float64]:
    """Scores of functions from those of their examples: "max" or "mean" over windows."""
    scores_N = np.full(examples.num_records, -1.0)
    if window_score == "max":
        np.maximum.at(scores_N, examples.record_E, scores_E)
    else:
        sums_N = np.bincount(examples.record_E, scores_E * examples.share_E, len(scores_N))
        scores_N[examples.record_E] = sums_N[examples.record_E]
    scores_N[scores_N < 0] = prior
    return scores_N


def population(examples: ExampleSet, compat: bool) -> npt.NDArray[np.int64]:
    """Functions in the metrics: all, or those kept with replication.compat_population."""
    return np.unique(examples.record_E) if compat else np.arange(examples.num_records)
