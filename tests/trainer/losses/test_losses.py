"""The focal loss against cross-entropy, float64, finite differences and hand-made values."""

import math

import pytest
import torch
import torch.nn.functional as F

from trainer.losses import loss as loss_module
from trainer.losses.loss import IGNORE_INDEX, focal_loss, linear_focal_loss

GAMMAS = [0.0, 0.1, 0.5, 0.999, 1.0, 1.5, 2.0, 2.7, 5.0]


def batch(rows=12, classes=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, classes, (rows,), generator=generator)
    return logits.to(dtype).requires_grad_(), targets


def naive_focal(logits, targets, gamma):
    """The formula as papers print it."""
    p = logits.softmax(1).gather(1, targets[:, None])[:, 0]
    return ((1 - p) ** gamma * -p.log()).sum()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("classes", [2, 5])
def test_the_gradient_is_exact(gamma, classes):
    logits, targets = batch(classes=classes)
    alpha = torch.linspace(0.2, 1.1, classes, dtype=torch.float64)
    weights = torch.linspace(0.5, 2.0, len(targets), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: focal_loss(z, targets, gamma, alpha_C=alpha, weights_S=weights).sum, logits
    )


@pytest.mark.parametrize("gamma", GAMMAS)
def test_value_equals_the_printed_formula(gamma):
    logits, targets = batch(classes=4)
    assert focal_loss(logits, targets, gamma).sum.item() == pytest.approx(
        naive_focal(logits, targets, gamma).item(), rel=1e-12
    )


def test_gamma_0_is_cross_entropy_in_value_and_gradient():
    logits, targets = batch(classes=3)
    ours = focal_loss(logits, targets, 0.0)
    theirs = F.cross_entropy(logits, targets, reduction="sum")
    assert ours.sum.item() == pytest.approx(theirs.item(), rel=1e-13)
    (ours_gradient,) = torch.autograd.grad(ours.sum, logits)
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours_gradient, their_gradient, rtol=1e-12, atol=1e-15)


def test_one_row_by_hand():
    # p = sigmoid(1): (1 - p)^2 (-ln p) = 0.2689414^2 * 0.3132617 = 0.0723295 * 0.3132617.
    loss = focal_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([1]), 2.0)
    assert loss.sum.item() == pytest.approx(0.0226581, rel=1e-5)
    assert loss.count.item() == 1


def test_ignored_rows_add_neither_loss_nor_count_even_when_infinite():
    logits = torch.tensor([[0.0, 1.0], [float("inf"), float("nan")]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([1, IGNORE_INDEX]), 2.0)
    assert loss.sum.item() == pytest.approx(0.0226581, rel=1e-5)
    assert loss.count.item() == 1


def test_45_no_rows_give_zero_and_a_connected_graph():
    logits = torch.zeros(0, 2, requires_grad=True)
    loss = focal_loss(logits, torch.zeros(0, dtype=torch.long), 2.0)
    assert loss.sum.item() == 0
    loss.sum.backward()
    assert logits.grad is not None


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("margin", [1e4, 200.0, 30.0, 0.0, -30.0, -200.0, -1e4])
def test_extreme_logits_stay_finite_and_accurate(gamma, margin):
    logits = torch.tensor([[0.0, margin]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([1]), gamma)
    (gradient,) = torch.autograd.grad(loss.sum, logits)
    assert torch.isfinite(gradient).all()
    # softplus(-margin) in float64 keeps what 1 - p loses in fp32.
    nll = math.log1p(math.exp(-margin)) if margin > -700 else -margin
    expected = (-math.expm1(-nll)) ** gamma * nll
    assert loss.sum.item() == pytest.approx(expected, rel=1e-5, abs=1e-37)


def test_a_confident_row_keeps_its_relative_accuracy_in_fp32():
    # 1 - p = 9.4e-14 is below fp32's resolution at 1: a subtraction would give 0.
    logits = torch.tensor([[0.0, 30.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([1]), 0.5)
    (gradient,) = torch.autograd.grad(loss.sum, logits)
    q = math.exp(-30) / (1 + math.exp(-30))
    nll = math.log1p(math.exp(-30))
    slope = q**0.5 * (1 + 0.5 * nll * (1 - q) / q)
    assert gradient[0, 0].item() == pytest.approx(slope * q, rel=1e-5)
    naive = torch.autograd.grad(naive_focal(logits, torch.tensor([1]), 0.5), logits)[0]
    assert not torch.isfinite(naive).all()  # what autograd through (1 - p) ** 0.5 gives


def test_detached_modulator_has_the_same_value_and_a_smaller_gradient():
    logits, targets = batch()
    whole, detached = (focal_loss(logits, targets, 2.0, detach_modulator=d) for d in (False, True))
    assert whole.sum.item() == detached.sum.item()
    p = logits.detach().softmax(1).gather(1, targets[:, None])[:, 0]
    by_hand = torch.autograd.grad(
        ((1 - p) ** 2 * F.cross_entropy(logits, targets, reduction="none")).sum(), logits
    )[0]
    ours = torch.autograd.grad(detached.sum, logits)[0]
    torch.testing.assert_close(ours, by_hand, rtol=1e-10, atol=1e-14)


def test_logits_of_16_bit_are_computed_in_fp32():
    logits, targets = batch(dtype=torch.bfloat16)
    assert focal_loss(logits, targets, 2.0).sum.dtype == torch.float32


def test_there_is_no_second_derivative():
    logits, targets = batch()
    squared = focal_loss(logits, targets, 2.0).sum.square()  # its gradient depends on the loss
    (gradient,) = torch.autograd.grad(squared, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("gamma", [-0.1, float("nan"), float("inf")])
def test_a_wrong_gamma_is_refused(gamma):
    with pytest.raises(ValueError, match="gamma"):
        focal_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), gamma)


@pytest.mark.parametrize(("backend", "num_whole"), [("reference", 1), ("torch", 0)])
def test_only_the_reference_forms_all_logits(backend, num_whole, monkeypatch):
    formed, all_logits = [], loss_module._all_logits
    monkeypatch.setattr(loss_module, "_all_logits", lambda *a: formed.append(1) or all_logits(*a))
    hidden, weight = torch.randn(6, 4), torch.randn(9, 4)
    targets = torch.arange(6)
    found = linear_focal_loss(hidden, weight, targets, 2.0, backend=backend)
    expected = focal_loss(hidden @ weight.T, targets, 2.0)
    assert found.sum.item() == pytest.approx(expected.sum.item(), rel=1e-5)
    assert len(formed) == num_whole
