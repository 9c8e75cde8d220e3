"""What was measured of every record of a split; without torch.

N records of the split, dropped ones included.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.evaluation.resampling import FloatArray, Multiplicities


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

    def resampled(self, weights_RN: Multiplicities) -> "TokenSums":
        """The sums of R resamples, from multiplicities."""
        sums = (self.nll_N, self.correct_N, self.count_N)
        return TokenSums(*(weights_RN @ sums_N for sums_N in sums))

    def by_file(self, files: Mapping[str, int]) -> dict[str, float]:
        """Loss of each file that has targets.

        Args:
            files: Name -> first record, ascending.
        """
        starts = list(files.values())
        nll, count = (np.add.reduceat(sums, starts) for sums in (self.nll_N, self.count_N))
        return {name: float(a / b) for name, a, b in zip(files, nll, count, strict=True) if b}


def perplexity(loss: float) -> float:
    """exp(loss), at most the largest float."""
    return math.exp(min(loss, 709.0))
