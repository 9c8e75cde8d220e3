"""How well a language model predicts the targets of a split, equal for any number of ranks.

N records of the split, dropped ones included.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from data.text.tokenization import ExampleSet
from trainer.evaluation.resampling import FloatArray
from trainer.evaluation.scoring import Outputs, sum_of_ranks
from trainer.processes.distributed import Ranks


@dataclass(frozen=True)
class TokenSums:
    """Sums over the targets of every record.

    Attributes:
        nll_N: Negative log-likelihood in nats.
        correct_N: Targets that are the model's first choice.
    """

    nll_N: FloatArray
    correct_N: FloatArray
    count_N: FloatArray

    @property
    def loss(self) -> float:
        """Mean over targets, in nats."""
        return float(self.nll_N.sum() / self.count_N.sum())

    @property
    def perplexity(self) -> float:
        """exp of the loss."""
        return perplexity(self.loss)

    @property
    def accuracy(self) -> float:
        """Share of targets that are the first choice."""
        return float(self.correct_N.sum() / self.count_N.sum())

    def at(self, records: npt.NDArray[np.int64]) -> "TokenSums":
        """The sums of some records."""
        return TokenSums(self.nll_N[records], self.correct_N[records], self.count_N[records])

    def by_file(self, files: Mapping[str, int]) -> dict[str, float]:
        """Loss of each file that has targets.

        Args:
            files: Name -> first record, ascending.
        """
        starts = list(files.values())
        nll, count = (np.add.reduceat(sums, starts) for sums in (self.nll_N, self.count_N))
        return {name: float(a / b) for name, a, b in zip(files, nll, count, strict=True) if b}


def score_tokens(outputs: Outputs, examples: ExampleSet, ranks: Ranks) -> TokenSums:
    """Sums of every record, equal on all ranks; all ranks call this.

    Args:
        outputs: This rank's batches with their scores (S, 3).

    Raises:
        DivergedError: A likelihood is not finite.
    """
    num = examples.num_records
    sums_2N = torch.zeros(2, num, dtype=torch.float64, device=ranks.device)
    for batch, scores_S3 in outputs:
        record_S = torch.from_numpy(examples.record_E[batch.example_S]).to(ranks.device)
        sums_2N[0].index_add_(0, record_S, scores_S3[:, 0].double())
        sums_2N[1].index_add_(0, record_S, (scores_S3[:, 1] > 0).double())
    nll_N, correct_N = sum_of_ranks(sums_2N, ranks)
    count_N: FloatArray = np.bincount(examples.record_E, examples.count_E, num).astype(np.float64)
    return TokenSums(nll_N, correct_N, count_N)


def perplexity(loss: float) -> float:
    """exp(loss), at most the largest float."""
    return math.exp(min(loss, 709.0))


def unigram_loss(learned: ExampleSet, scored: ExampleSet, vocab_size: int) -> float:
    """Mean loss, in nats, of a model that knows only how often each target occurs.

    Counts come from the learned split, with one added to each token (Laplace).
    """
    counts_V, scored_V = (target_counts(split, vocab_size) for split in (learned, scored))
    logs_V = np.log((counts_V + 1) / (counts_V.sum() + vocab_size))
    return float(-(scored_V * logs_V).sum() / scored_V.sum())


def target_counts(examples: ExampleSet, vocab_size: int) -> npt.NDArray[np.int64]:
    """How often each token is a target."""
    assert examples.supervised is not None
    counts = np.zeros(vocab_size, np.int64)
    block = 1 << 24  # tokens in memory at a time
    for first in range(0, len(examples.tokens), block):
        mask = np.array(examples.supervised[first : first + block])
        heads = examples.starts[(examples.starts >= first) & (examples.starts < first + len(mask))]
        mask[heads - first] = False
        counts += np.bincount(examples.tokens[first : first + block][mask], minlength=vocab_size)
    return counts
