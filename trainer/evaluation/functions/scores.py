"""Scores of a split's functions, equal for any number of ranks.

E examples, N functions of the split, dropped ones included, C classes.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.batches.batch import Batch
from data.text.labels import Classes
from data.text.tokenization import ExampleSet
from trainer.evaluation.scoring import Outputs, sum_of_ranks
from trainer.losses.tasks import Task
from trainer.processes.distributed import Ranks


def score_examples(
    outputs: Outputs, num: int, classes: Classes, ranks: Ranks
) -> npt.NDArray[np.float64]:
    """Probabilities (E, C) of the classes of every example, equal on all ranks; all call this.

    Args:
        outputs: This rank's batches with their logits (S, C).
        num: Examples of the split.
        classes: One of them holds, or each by itself.
        ranks: This process among all.

    Raises:
        DivergedError: A logit is not finite.
    """
    scores_EC = torch.zeros((num, len(classes.names)), dtype=torch.float64)
    for batch, logits_SC in outputs:
        logits_SC = logits_SC.double()
        chances_SC = logits_SC.softmax(1) if classes.sets is None else logits_SC.sigmoid()
        scores_EC[batch.example_S] = chances_SC.cpu()
    return sum_of_ranks(scores_EC, ranks)  # one rank scores an example, it is 0 on the others


def tallied(outputs: Outputs, task: Task, sums_2: Tensor) -> Outputs:
    """The same outputs; adds the loss sum of each batch, and its functions, to `sums_2`.

    In float64: how functions share batches and ranks changes the last digit alone.
    """
    for batch, logits_SC in outputs:

        def forward(_: Batch, logits_SC: Tensor = logits_SC) -> Tensor:
            return logits_SC.double()

        loss = task.loss_sum(forward, batch)
        sums_2 += torch.tensor([float(loss.sum), batch.count], dtype=torch.float64)
        yield batch, logits_SC


def of_functions(
    scores_EC: npt.NDArray[np.float64],
    examples: ExampleSet,
    prior_C: npt.NDArray[np.float64],
    window_score: str,
) -> npt.NDArray[np.float64]:
    """Scores (N, C) of functions from the scores of their examples.

    A function cut into windows has their mean, or with "max" the scores of the window that is least
    of the first class (not vulnerable); where several classes can hold, the highest of each. A
    dropped function has the prior, so that every function of the split has scores.
    """
    record_E, scores_NC = examples.record_E, np.tile(prior_C, (examples.num_records, 1))
    if window_score == "mean":
        shares_EC = scores_EC * examples.share_E[:, None]
        sums_CN = [np.bincount(record_E, share_E, len(scores_NC)) for share_E in shares_EC.T]
        scores_NC[record_E] = np.stack(sums_CN, axis=1)[record_E]
    elif examples.members_KC is None:
        order = np.lexsort((scores_EC[:, 1:].sum(axis=1), record_E))
        scores_NC[record_E[order]] = scores_EC[order]  # the last of a function stays
    else:
        scores_NC[record_E] = 0.0
        np.maximum.at(scores_NC, record_E, scores_EC)
    return scores_NC


def text_digest(text: str) -> str:
    """16 hex digits by which two runs know that they scored the same text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def population(examples: ExampleSet, compat: bool) -> npt.NDArray[np.int64]:
    """The functions that are measured: all, or with replication.compat_population the kept ones."""
    return np.unique(examples.record_E) if compat else np.arange(examples.num_records)
