"""Losses of many classes and of several at once, against torch in float64 and numbers by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from example_sets import example_set

from data.batches.batch import collate
from trainer.config.sections import LossSection
from trainer.losses.loss import multi_label_focal_loss
from trainer.losses.tasks import Classification

CPU = torch.device("cpu")
MEMBERS = np.array([[False, False, False], [True, False, True], [False, True, False]])


def problem(rows=7, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rows)
    logits = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    holds = torch.randint(0, 2, (rows, classes), generator=generator)
    return logits.to(dtype).requires_grad_(), holds


def printed_focal(logits, holds, gamma):
    """RetinaNet's formula: the mean over classes of (1 - p_t)^gamma (-log p_t)."""
    p_t = torch.where(holds.bool(), logits.sigmoid(), 1 - logits.sigmoid())
    return ((1 - p_t) ** gamma * -p_t.log()).mean(1)


def test_several_at_once_without_gamma_are_torchs_binary_cross_entropy():
    logits, holds = problem()
    pos_weight = torch.tensor([0.5, 1.0, 3.0, 7.0], dtype=torch.float64)
    for alpha, rtol in ((None, 1e-12), (pos_weight, 1e-12)):
        weights = None if alpha is None else torch.stack([torch.ones_like(alpha), alpha])
        loss = multi_label_focal_loss(logits, holds, 0.0, weights_2C=weights)
        theirs = F.binary_cross_entropy_with_logits(logits, holds.double(), pos_weight=alpha)
        torch.testing.assert_close(loss.sum / loss.count, theirs, rtol=rtol, atol=0)
        gradients = [torch.autograd.grad(one, logits)[0] for one in (loss.sum / 7, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-15)
    assert float(loss.count) == 7


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_sigmoid_focal_loss_and_its_gradient_are_the_printed_ones(gamma):
    logits, holds = problem()
    row_weights = torch.linspace(0.5, 2.0, 7, dtype=torch.float64)
    ours = multi_label_focal_loss(logits, holds, gamma, weights_S=row_weights).sum
    theirs = (printed_focal(logits, holds, gamma) * row_weights).sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(one, logits)[0] for one in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_logits_of_16_bits_are_computed_in_fp32_and_no_function_costs_nothing():
    logits, holds = problem(dtype=torch.bfloat16)
    logits = logits.detach()
    logits = logits.detach()
    ours = multi_label_focal_loss(logits, holds, 2.0)
    assert ours.sum.dtype == torch.float32
    exact = printed_focal(logits.double(), holds, 2.0).sum()
    assert float(ours.sum) == pytest.approx(float(exact), rel=1e-5)
    none = multi_label_focal_loss(logits[:0], holds[:0], 2.0)
    assert (float(none.sum), float(none.count)) == (0.0, 0.0)


def test_alpha_weighs_each_of_many_classes_by_hand():
    # one function of each class, all logits 0: p = 1/3, (2/3)^2 ln 3 = 0.488272
    examples = example_set([[1], [2], [3]], labels=[0, 1, 2])
    task = Classification(LossSection(gamma=2.0, alpha=[0.25, 1.0, 3.0]), CPU, False, examples)
    batch = collate(examples, [np.array([0, 1, 2])])
    loss = task.loss_sum(lambda _: torch.zeros(3, 3), batch)
    assert float(loss.sum) == pytest.approx(0.488272 * (0.25 + 1 + 3), rel=1e-5)
    assert float(loss.count) == 3


def several(labels):
    examples = example_set([[n + 1] for n in range(len(labels))], labels=labels)
    return examples.__class__(**{**vars(examples), "members_KC": MEMBERS})


def test_alpha_and_balance_of_several_at_once_by_hand():
    # 8 functions: the classes 0 and 2 hold in 2, class 1 in 4
    examples = several([0, 0, 1, 1, 2, 2, 2, 2])
    none = Classification(LossSection(), CPU, False, examples).weights_2C
    assert none.tolist() == [[1, 1, 1], [1, 1, 1]]
    alpha = Classification(LossSection(alpha=[1.0, 2.0, 5.0]), CPU, False, examples).weights_2C
    assert alpha.tolist() == [[1, 1, 1], [1, 2, 5]]
    balanced = Classification(LossSection(class_weights="balanced"), CPU, False, examples)
    # 8 / (2 x 6), 8 / (2 x 4), 8 / (2 x 2)
    expected = [[2 / 3, 1, 2 / 3], [2, 1, 2]]
    assert balanced.weights_2C.numpy() == pytest.approx(np.array(expected), rel=1e-6)
    batch = collate(examples, [np.arange(8)])
    # all logits 0: every answer costs ln 2, and balanced weights average 1
    loss = balanced.loss_sum(lambda _: torch.zeros(8, 3), batch)
    assert float(loss.sum / loss.count) == pytest.approx(np.log(2), rel=1e-6)
