"""How well a language model predicts the targets of a split, equal for any number of ranks.

N records of the split, dropped ones included.
"""

import hashlib
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from data.text.tokenization import ExampleSet
from trainer.evaluation.language.sums import TokenSums
from trainer.evaluation.resampling import FloatArray
from trainer.evaluation.scoring import Outputs, sum_of_ranks
from trainer.processes.distributed import Ranks


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


def token_digests(examples: ExampleSet) -> list[str]:
    """16 hex digits of each record by which two runs know that they scored the same tokens."""
    first_N = np.searchsorted(examples.record_E, np.arange(examples.num_records + 1))
    starts_N = examples.starts[first_N]
    return [
        hashlib.sha256(examples.tokens[begin:end].astype(np.int32).tobytes()).hexdigest()[:16]
        for begin, end in pairwise(starts_N.tolist())
    ]


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
