"""Output layer and loss in one: equal to the printed formula in float64, and lean."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from loss_cases import BACKENDS, DEVICE, GAMMAS, exact_gradients, problem, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.kernels.chunks import plan_chunk
from trainer.kernels.linear_focal import LinearFocal
from trainer.losses.loss import IGNORE_INDEX, linear_focal_loss

SHAPES = [
    # tokens, hidden, vocabulary, rows of a chunk
    (1, 8, 2, None),
    (5, 16, 3, 2),
    (7, 8, 127, 3),
    (9, 32, 1000, 4),
    (4, 16, 8193, None),
    (3, 8, 20001, 2),
]
EVERY_BACKEND = [*BACKENDS, "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize(("tokens", "hidden_size", "vocab_size", "rows"), SHAPES)
@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained"])
def test_loss_and_gradients_equal_float64(
    backend, gamma, tokens, hidden_size, vocab_size, rows, is_trained
):
    hidden, weight, target = problem(tokens, hidden_size, vocab_size)
    row_weight = torch.linspace(0.5, 2.0, tokens, device=DEVICE)
    loss, exact_hidden, exact_weight = exact_gradients(
        hidden, weight, target, gamma, row_weight=row_weight
    )
    hidden.requires_grad_()
    weight.requires_grad_(is_trained)
    ours = LinearFocal(gamma, backend=backend, chunk_rows=rows).loss_sum(
        hidden, weight, None, target, row_weight
    )
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=2e-6)
    assert relative_error(hidden.grad, exact_hidden) < 5e-6
    if is_trained:
        assert relative_error(weight.grad, exact_weight) < 5e-6
    else:
        assert weight.grad is None


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained"])
def test_the_gradient_is_exact(gamma, is_trained):
    hidden, weight, target = problem(6, 4, 5, torch.float64)
    bias = torch.linspace(-1, 1, 5, dtype=torch.float64, device=DEVICE)
    row_weight = torch.linspace(0, 2, 6, dtype=torch.float64, device=DEVICE)
    inputs = [hidden.requires_grad_(), weight, bias]
    if is_trained:
        inputs = [tensor.requires_grad_() for tensor in inputs]
    loss = LinearFocal(gamma, chunk_rows=4)
    assert torch.autograd.gradcheck(
        lambda x, w, b: 1.7 * loss.loss_sum(x, w, b, target, row_weight), inputs
    )


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_gamma_0_is_cross_entropy_in_value_and_gradient(backend):
    hidden, weight, target = problem(33, 16, 301)
    target[:5] = IGNORE_INDEX
    pairs = []
    for compute in (
        lambda x, w: linear_focal_loss(x, w, target, 0.0, backend=backend).sum,
        lambda x, w: F.cross_entropy(x @ w.t(), target, reduction="sum"),
    ):
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = compute(x, w)
        pairs.append([loss.detach(), *torch.autograd.grad(loss, [x, w])])
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_ignored_tokens_add_nothing_whatever_they_hold(backend):
    hidden, weight, target = problem(12, 8, 50)
    keep = torch.tensor([0, 1, 4, 7, 11], device=DEVICE)
    ignored = torch.ones(12, dtype=torch.bool, device=DEVICE).index_fill(0, keep, False)
    row_weight = torch.linspace(0.5, 1.5, 12, device=DEVICE)
    loss, exact_hidden, exact_weight = exact_gradients(
        hidden[keep], weight, target[keep], 2.0, row_weight=row_weight[keep]
    )
    target = target.masked_fill(ignored, IGNORE_INDEX)
    hidden[ignored] = float("nan")
    hidden.requires_grad_()
    weight.requires_grad_()
    ours = linear_focal_loss(hidden, weight, target, 2.0, weights_T=row_weight, backend=backend)
    ours.sum.backward()
    assert ours.count.item() == 5
    assert ours.sum.item() == pytest.approx(loss.item(), rel=2e-6)
    assert relative_error(hidden.grad[keep], exact_hidden) < 5e-6
    assert not hidden.grad[ignored].any()
    assert relative_error(weight.grad, exact_weight) < 5e-6


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("num_tokens", [4, 0], ids=["all ignored", "no tokens"])
def test_without_labels_the_loss_is_zero_and_the_graph_connected(backend, num_tokens):
    hidden, weight, target = problem(num_tokens, 8, 11)
    hidden.requires_grad_()
    weight.requires_grad_()
    ignored = torch.full_like(target, IGNORE_INDEX)
    loss = linear_focal_loss(hidden, weight, ignored, 2.0, backend=backend)
    loss.sum.backward()
    assert (loss.sum.item(), loss.count.item()) == (0.0, 0.0)
    # A parameter without a gradient on one rank would leave ZeRO's reduction waiting on the others.
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_chunk_does_not_change_the_result(backend):
    hidden, weight, target = problem(50, 16, 101)
    results = []
    for rows in (1, 7, 16, 50, 64):
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = LinearFocal(2.0, backend=backend, chunk_rows=rows).loss_sum(
            x, w, None, target, torch.ones(50, device=DEVICE)
        )
        results.append([loss.detach(), *torch.autograd.grad(loss, [x, w])])
    for result in results[1:]:
        for ours, first in zip(result, results[0], strict=True):
            torch.testing.assert_close(ours, first, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_weights_reach_their_tokens(backend):
    hidden, weight, target = problem(6, 8, 20)
    weights = torch.tensor([0.5, 0.5, 0.0, 3.0, 3.0, 3.0], device=DEVICE)
    loss, exact_hidden, _ = exact_gradients(hidden, weight, target, 1.5, row_weight=weights)
    hidden.requires_grad_()
    ours = linear_focal_loss(hidden, weight, target, 1.5, weights_T=weights, backend=backend)
    ours.sum.backward()
    assert ours.sum.item() == pytest.approx(loss.item(), rel=2e-6)
    assert ours.count.item() == 6  # weights multiply the loss, not the count
    assert relative_error(hidden.grad, exact_hidden) < 5e-6


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_strided_inputs_and_a_bias(backend):
    hidden, weight, target = problem(10, 16, 40)
    bias = torch.linspace(-1, 1, 40, device=DEVICE)
    loss, exact_hidden, exact_weight = exact_gradients(hidden, weight, target, 2.0, bias=bias)
    leaf_x = hidden.t().contiguous().requires_grad_()
    leaf_w = torch.stack([weight, -weight], 1).requires_grad_()
    bias.requires_grad_()
    x, w = leaf_x.t(), leaf_w[:, 0]
    assert not x.is_contiguous()
    assert not w.is_contiguous()
    ours = linear_focal_loss(x, w, target, 2.0, bias_V=bias, backend=backend).sum
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=2e-6)
    assert relative_error(leaf_x.grad.t(), exact_hidden) < 5e-6
    assert relative_error(leaf_w.grad[:, 0], exact_weight) < 5e-6
    wide = bias.detach().double().requires_grad_()
    logits = hidden.double() @ weight.double().t() + wide
    log_p = logits.log_softmax(1).gather(1, target[:, None])
    exact_bias = torch.autograd.grad(((1 - log_p.exp()) ** 2 * -log_p).sum(), wide)[0]
    assert relative_error(bias.grad, exact_bias) < 5e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients_only_the_loss_is_computed(backend):
    hidden, weight, target = problem(8, 16, 40)
    loss = exact_gradients(hidden, weight, target, 2.0)[0]
    hidden.requires_grad_()
    with torch.no_grad(), Allocations() as seen:
        ours = linear_focal_loss(hidden, weight, target, 2.0, backend=backend).sum
    assert ours.item() == pytest.approx(loss.item(), rel=2e-6)
    assert not ours.requires_grad
    assert seen.products == 1  # the logits


@pytest.mark.parametrize("backend", BACKENDS)
def test_detached_modulator_is_the_gradient_without_it(backend):
    hidden, weight, target = problem(8, 16, 40)
    hidden.requires_grad_()
    ours = linear_focal_loss(hidden, weight, target, 2.0, detach_modulator=True, backend=backend)
    log_p = (hidden @ weight.t()).log_softmax(1).gather(1, target[:, None])
    by_hand = ((1 - log_p.detach().exp()) ** 2 * -log_p).sum()
    assert ours.sum.item() == pytest.approx(by_hand.item(), rel=2e-6)
    expected = torch.autograd.grad(by_hand, hidden)[0]
    assert relative_error(torch.autograd.grad(ours.sum, hidden)[0], expected.double()) < 5e-6


def test_there_is_no_second_derivative():
    hidden, weight, target = problem(3, 4, 7)
    hidden.requires_grad_()
    squared = linear_focal_loss(hidden, weight, target, 2.0).sum.square()
    (gradient,) = torch.autograd.grad(squared, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_accumulated_micro_batches_give_the_gradient_of_the_whole(backend):
    hidden, weight, target = problem(23, 16, 60)
    target[[0, 4, 20]] = IGNORE_INDEX
    gradients = []
    for parts in ([slice(0, 23)], [slice(0, 3), slice(3, 16), slice(16, 23)]):
        w = weight.clone().requires_grad_()
        for part in parts:
            loss = linear_focal_loss(hidden[part], w, target[part], 2.0, backend=backend)
            (loss.sum / 20).backward()  # the count of the whole step
        gradients.append(w.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight_scale", [1.0, 1e4], ids=["w 1", "w 1e4"])
def test_fp16_gradients_survive_the_scale_of_a_whole_step(backend, weight_scale):
    """8,192 tokens a step and a loss scale of 65536; a weight of 1e4 would leave fp16 by itself."""
    hidden, weight, target = problem(64, 64, 2000, torch.float16)
    row_weight = torch.full((64,), weight_scale, device=DEVICE)
    hidden, weight = hidden / 8, weight / 4
    _, exact_hidden, exact_weight = exact_gradients(hidden, weight, target, 2.0)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = linear_focal_loss(hidden, weight, target, 2.0, weights_T=row_weight, backend=backend)
    scale = 65536 / 8192
    (loss.sum * (scale / weight_scale)).backward()
    assert relative_error(hidden.grad, exact_hidden * scale) < 1e-3
    assert relative_error(weight.grad, exact_weight * scale) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_gradients_keep_their_precision(backend):
    hidden, weight, target = problem(64, 64, 2000, torch.bfloat16)
    _, exact_hidden, exact_weight = exact_gradients(hidden, weight, target, 2.0)
    hidden.requires_grad_()
    weight.requires_grad_()
    linear_focal_loss(hidden, weight, target, 2.0, backend=backend).sum.backward()
    # 2^-9 of each rounding; the interpreter truncates, and three roundings follow each other.
    limit = 3e-3 if backend == "torch" or DEVICE.type == "cuda" else 6e-3
    assert relative_error(hidden.grad, exact_hidden) < limit
    assert relative_error(weight.grad, exact_weight) < limit


class Operands(TorchDispatchMode):
    """Whether every operand of a matrix product is finite, also between its rows."""

    def __init__(self):
        super().__init__()
        self.are_finite = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            operands = args[-2:]
            whole = (t.new_empty(0).set_(t.untyped_storage()) for t in operands)
            self.are_finite.append(all(t.isfinite().all() for t in whole))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_product_reads_memory_that_nobody_wrote(dtype):
    """oneDNN's AMX GEMM lets what lies between the rows of an operand into the product (#5717)."""
    hidden, weight, target = problem(5, 64, 2000, dtype)
    hidden.requires_grad_()
    weight.requires_grad_()
    torch.use_deterministic_algorithms(True)  # fills unwritten memory with NaN
    try:
        with Operands() as seen:
            linear_focal_loss(hidden, weight, target, 2.0).sum.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(seen.are_finite) == 3
    assert all(seen.are_finite)


class Allocations(TorchDispatchMode):
    """The largest result of any operation but a view, and the number of matrix products."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        if isinstance(result, torch.Tensor) and not function.is_view:
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained"])
def test_a_frozen_head_allocates_no_v_x_d_and_none_allocates_t_x_v(is_trained):
    tokens, hidden_size, vocab_size, rows = 64, 48, 512, 8
    hidden, weight, target = problem(tokens, hidden_size, vocab_size)
    hidden.requires_grad_()
    weight.requires_grad_(is_trained)
    with Allocations() as seen:
        loss = LinearFocal(2.0, chunk_rows=rows).loss_sum(
            hidden, weight, None, target, torch.ones(tokens, device=DEVICE)
        )
        loss.backward()
    assert seen.products == tokens // rows * (3 if is_trained else 2)
    assert seen.largest == (vocab_size * hidden_size if is_trained else rows * vocab_size)


PEAK = r"""
import re
import torch
from trainer.losses.loss import linear_focal_loss
torch.set_num_threads(1)
def peak():  # not getrusage, which begins with the peak of the parent
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
tokens, hidden_size, vocab_size = 2048, 64, 49152
hidden = torch.randn(tokens, hidden_size, requires_grad=True)
weight = torch.randn(vocab_size, hidden_size)
target = torch.randint(0, vocab_size, (tokens,))
linear_focal_loss(hidden[:2], weight, target[:2], 2.0).sum.backward()  # GEMM and autograd start
before = peak()
linear_focal_loss(hidden, weight, target, 2.0).sum.backward()
print((peak() - before) / 1024)
"""


def test_the_peak_memory_of_a_process_is_a_chunk_and_the_gradient():
    run = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    grown = float(run.stdout)
    chunk, gradient = 80 * 49152 * 4 / 2**20, 2048 * 64 * 4 / 2**20
    assert chunk / 2 < grown < chunk + 4 * gradient + 16  # MiB; all logits would be 384


@pytest.mark.parametrize(
    ("tokens", "hidden_size", "vocab_size", "dtype", "budget", "sms", "rows"),
    [
        # A whole wave: ceil(132 x 256 / 2048) = 17 x 128 rows; 8192 tokens then split evenly.
        (8192, 2048, 49152, torch.bfloat16, 640 << 20, 132, 2048),
        (8192, 6144, 49152, torch.bfloat16, 640 << 20, 132, 1408),  # two waves of 768, evenly
        (8192, 2048, 256000, torch.bfloat16, 640 << 20, 132, 384),  # less than a wave fits
        (8192, 2048, 10**6, torch.float32, 1, 132, 128),  # never below a tile
        (8192, 512, 49152, torch.float32, 16 << 20, 0, 80),  # 85 fit
        (8192, 512, 10**6, torch.float32, 1, 0, 16),
        (100, 512, 49152, torch.float32, 64 << 20, 0, 100),
        (81, 512, 49152, torch.float32, 16 << 20, 0, 48),  # two chunks: 41 rows, to 16
        (0, 512, 49152, torch.float32, 16 << 20, 0, 1),
    ],
)
def test_chunks_keep_the_budget_and_fill_whole_waves(
    tokens, hidden_size, vocab_size, dtype, budget, sms, rows
):
    assert plan_chunk(tokens, hidden_size, vocab_size, dtype, budget, sms) == rows


def test_mixed_dtypes_are_refused():
    hidden, weight, target = problem(3, 4, 7)
    with pytest.raises(ValueError, match="convert one"):
        linear_focal_loss(hidden, weight.bfloat16(), target, 2.0)
