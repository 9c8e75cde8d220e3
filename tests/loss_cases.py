"""What the tests of the losses compare with: the formula as printed, in float64, by autograd."""

import os

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Without a GPU, test_triton.py runs the tests again under TRITON_INTERPRET=1.
TRITON_RUNS = DEVICE.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["torch", "triton"] if TRITON_RUNS else ["torch"]
GAMMAS = [0.0, 0.1, 0.5, 0.999, 1.0, 1.5, 2.0, 2.7, 5.0]


def naive_sum(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    gamma: float,
    bias: Tensor | None = None,
    row_weight: Tensor | None = None,
) -> Tensor:
    """Sum of w (1 - p)^gamma (-log p); every logit stands in memory."""
    logits = hidden @ weight.t() if bias is None else hidden @ weight.t() + bias
    log_p = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    loss = (1 - log_p.exp()) ** gamma * -log_p
    return (loss if row_weight is None else loss * row_weight).sum()


def problem(
    tokens: int, hidden_size: int, vocab_size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, output layer and targets, drawn in fp32 and rounded to dtype."""
    generator = torch.Generator().manual_seed(tokens + vocab_size)
    hidden = torch.randn(tokens, hidden_size, generator=generator)
    weight = torch.randn(vocab_size, hidden_size, generator=generator) * 0.5
    target = torch.randint(0, vocab_size, (tokens,), generator=generator)
    return hidden.to(DEVICE, dtype), weight.to(DEVICE, dtype), target.to(DEVICE)


def exact_gradients(
    hidden: Tensor, weight: Tensor, target: Tensor, gamma: float, **options: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, dX and dW of `naive_sum` in float64."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    wide = {name: None if t is None else t.detach().double() for name, t in options.items()}
    loss = naive_sum(hidden, weight, target, gamma, **wide)
    return loss.detach(), *torch.autograd.grad(loss, [hidden, weight])


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """Frobenius norm of the difference over that of the exact value."""
    return float((ours.double() - exact).norm() / exact.norm())
