"""The row kernels against float64, and where the printed formula breaks."""

import pytest
import torch
import torch.nn.functional as F
from loss_cases import BACKENDS, DEVICE, GAMMAS, TRITON_RUNS

from trainer.kernels.focal import focal_from_nll, focal_value_and_slope
from trainer.kernels.linear_focal import row_kernel

VOCABULARIES = [2, 3, 127, 1000, 8193, 20001]
# Rounding of the gradient to its dtype, 2^-9 and 2^-12 of at most 1; Triton's interpreter truncates
# when it casts to bf16, which doubles it.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-12}


def exact_rows(logits, target):
    """nll and its gradient in float64, by autograd through torch's cross-entropy."""
    wide = logits.detach().double().requires_grad_()
    nll = F.cross_entropy(wide, target, reduction="none")
    return nll.detach(), torch.autograd.grad(nll.sum(), wide)[0]


def run(backend, logits, target, dtype=torch.float32):
    """nll and gradient of a backend; the gradient in place where dtypes agree."""
    work = logits.clone()
    gradient = work if dtype == work.dtype else torch.empty_like(work, dtype=dtype)
    nll = row_kernel(backend)(work, target, gradient)
    return nll, gradient


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_nll_and_gradient_equal_float64(backend, dtype, vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = (3 * torch.randn(3, vocab_size, generator=generator)).to(DEVICE)
    target = torch.randint(0, vocab_size, (3,), generator=generator).to(DEVICE)
    nll, gradient = run(backend, logits, target, dtype)
    exact_nll, exact_gradient = exact_rows(logits, target)
    torch.testing.assert_close(nll.double(), exact_nll, rtol=2e-6, atol=1e-9)
    assert (gradient.double() - exact_gradient).abs().max() <= ROUNDING[dtype]
    assert gradient.dtype == dtype
    assert exact_gradient.abs().max() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_gradient_the_nll_is_the_same(backend):
    logits = torch.randn(2, 300, device=DEVICE)
    target = torch.tensor([0, 299], device=DEVICE)
    nll = row_kernel(backend)(logits.clone(), target, None)
    assert torch.equal(nll, run(backend, logits, target)[0])


def extreme_logits(kind, vocab_size=517):
    target = torch.tensor([0, 3, vocab_size - 1, 200])
    logits = torch.zeros(4, vocab_size)
    if kind == "1e4 apart":
        logits = torch.randn(4, vocab_size, generator=torch.Generator().manual_seed(0)) * 1e4
    elif kind == "all equal":
        logits += 6e4
    elif kind == "target far above":
        logits[torch.arange(4), target] = 1e4
    elif kind == "target far below":
        logits[torch.arange(4), (target + 1) % vocab_size] = 1e4
    elif kind == "confident":
        logits[torch.arange(4), target] = torch.tensor([20.0, 40.0, 60.0, 80.0])
    elif kind == "columns of -inf":
        logits[:, 250:260] = float("-inf")
    elif kind == "all others -inf":
        logits[:] = float("-inf")
        logits[torch.arange(4), target] = 1.0
    return logits.to(DEVICE), target.to(DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 2.0])
@pytest.mark.parametrize(
    "kind",
    [
        "1e4 apart", "all equal", "target far above", "target far below", "confident",
        "columns of -inf", "all others -inf",
    ],
)  # fmt: skip
def test_extreme_rows_stay_finite_and_accurate(backend, gamma, kind):
    logits, target = extreme_logits(kind)
    nll, gradient = run(backend, logits, target)
    value, slope = focal_value_and_slope(nll, gamma)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(value).all()
    assert torch.isfinite(slope).all()
    # The margin in float64: cross_entropy itself loses a confident row's nll.
    others = logits.double().scatter(1, target[:, None], float("-inf"))
    sigma = others.logsumexp(1) - logits.double().gather(1, target[:, None])[:, 0]
    exact_nll, q = -F.logsigmoid(-sigma), sigma.sigmoid()
    # exp(sigma) in fp32 is off by |sigma| 2^-24 = 5e-6 at 88, where fp32 ends.
    torch.testing.assert_close(nll.double(), exact_nll, rtol=1e-5, atol=1e-37)
    exact_value = q**gamma * exact_nll
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-5, atol=1e-37)
    at_target = gradient.gather(1, target[:, None])[:, 0].double()
    torch.testing.assert_close(at_target, -q, rtol=1e-5, atol=1e-37)
    torch.testing.assert_close(gradient.double().sum(1), torch.zeros_like(q), rtol=0, atol=1e-5)


@pytest.mark.skipif(not TRITON_RUNS, reason="no GPU; test_triton.py interprets it")
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 6e4), (torch.bfloat16, 1e4)])
def test_triton_reads_the_logits_of_a_16_bit_gemm(dtype, largest):
    logits = torch.randn(4, 400, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    logits = (logits / logits.abs().max() * largest).to(dtype)
    target = torch.tensor([0, 3, 200, 399], device=DEVICE)
    nll, gradient = run("triton", logits, target, dtype)
    exact_nll, exact_gradient = exact_rows(logits, target)
    torch.testing.assert_close(nll.double(), exact_nll, rtol=1e-5, atol=1e-30)
    assert (gradient.double() - exact_gradient).abs().max() <= ROUNDING[dtype]


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_from_nll_has_the_exact_gradient(gamma):
    nll = torch.tensor([1e-9, 1e-3, 0.1, 0.7, 2.0, 9.0, 40.0], dtype=torch.float64)
    nll.requires_grad_()
    # Autograd through the formula is exact away from 0 and breaks at 0, where ours is tested.
    expected = torch.autograd.grad((-torch.expm1(-nll)).pow(gamma).mul(nll).sum(), nll)[0]
    ours = torch.autograd.grad(focal_from_nll(nll, gamma).sum(), nll)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=0)


def test_the_slope_ends_are_limits_where_autograd_gives_nan():
    nll = torch.tensor([0.0, 89.0, float("inf")], requires_grad=True)
    value, slope = focal_value_and_slope(nll.detach(), 0.5)
    assert value.tolist() == [0.0, 89.0, float("inf")]
    assert slope.tolist() == [0.0, 1.0, 1.0]
    naive = torch.autograd.grad((1 - torch.exp(-nll)).pow(0.5).mul(nll).sum(), nll)[0]
    assert torch.isnan(naive[0])
