"""Losses of a language model by hand: sums of records, files, and the unigram baseline."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from example_sets import language_set

from data.config import DataConfig
from trainer.errors import DivergedError
from trainer.evaluation.language.sums import TokenSums, perplexity
from trainer.evaluation.language.tokens import score_tokens, unigram_loss
from trainer.evaluation.measures import measured
from trainer.evaluation.scoring import outputs, split_batches
from trainer.processes.distributed import Ranks

# A first token is never a target, so the targets are 2 3 | 2 | 4 4, and none in the last example.
PIECES = [[1, 2, 3], [2, 1, 2], [4, 4, 4], [1, 1, 1]]
MASKS = [[0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0]]
ALONE = Ranks(0, 0, 1, torch.device("cpu"))


class PerToken(torch.nn.Module):
    """A likelihood for each token; token 4 is never the first choice."""

    def __init__(self, nll_V):
        super().__init__()
        self.nll_V = torch.tensor(nll_V, dtype=torch.float64)

    def forward(self, batch):
        assert not self.training
        margin_S = torch.where(batch.labels_S == 4, -1.0, 1.0)
        return torch.stack([self.nll_V[batch.labels_S], margin_S, margin_S], dim=1)


def scored(nll_V, *, packing=True):
    records = np.array([0, 2, 2, 3])  # record 1 was dropped, record 2 has two windows
    examples = replace(language_set(PIECES, MASKS), record_E=records, num_records=4)
    data = DataConfig.model_construct(seq_length=7, packing=packing, isolate=True)
    model = PerToken(nll_V)
    sums = score_tokens(outputs(model, split_batches(examples, data, 2, ALONE)), examples, ALONE)
    assert model.training
    return sums


@pytest.mark.parametrize("packing", [True, False])
def test_every_record_has_the_sums_of_its_targets(packing):
    sums = scored([9.0, 9.0, 0.5, 1.0, 3.0], packing=packing)
    assert sums.nll_N.tolist() == [1.5, 0.0, 6.5, 0.0]
    assert sums.correct_N.tolist() == [2, 0, 1, 0]
    assert sums.count_N.tolist() == [2, 0, 3, 0]
    assert measured("tokens", sums) == {
        "loss": pytest.approx(8 / 5),
        "perplexity": pytest.approx(math.exp(8 / 5)),
        "token_accuracy": 3 / 5,
    }


def test_a_likelihood_that_is_not_finite_ends_the_run():
    with pytest.raises(DivergedError, match="not finite"):
        scored([9.0, 9.0, 0.5, 1.0, math.inf])


def test_the_loss_of_a_file_is_that_of_its_records_and_a_file_without_targets_has_none():
    sums = TokenSums(np.array([1.0, 2.0, 6.0, 0.0]), np.zeros(4), np.array([1.0, 1.0, 2.0, 0.0]))
    assert sums.by_file({"a": 0, "b": 2, "c": 3}) == {"a": 1.5, "b": 3.0}


def test_the_unigram_loss_counts_the_targets_of_train_and_adds_one_to_each_token():
    learned = language_set(PIECES, MASKS)  # of tokens 2, 3 and 4: 2, 1 and 2
    tested = language_set([[1, 2, 0]], [[0, 1, 1]])
    assert unigram_loss(learned, tested, 5) == pytest.approx(-(math.log(0.3) + math.log(0.1)) / 2)


def test_the_perplexity_of_a_huge_loss_is_finite():
    assert perplexity(2.0) == pytest.approx(math.e**2)
    assert math.isfinite(perplexity(1e6))
