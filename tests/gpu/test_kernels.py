"""The kernels on a real GPU: races, rounding, sizes beyond 2^31, and no wait for the device."""

import pytest
import torch
from loss_cases import exact_gradients, problem, relative_error

from trainer.kernels import rows
from trainer.losses.loss import linear_focal_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def gradients(backend, dtype, **options):
    hidden, weight, target = problem(300, 256, 5003, dtype)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = linear_focal_loss(hidden, weight, target, 2.0, backend=backend, **options).sum
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_equals_torch_and_float64(dtype):
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no bf16 on this GPU")
    exact = exact_gradients(*problem(300, 256, 5003, dtype), 2.0)
    # TF32 is off by default; 16-bit gradients are rounded twice.
    limit = 1e-5 if dtype == torch.float32 else 3e-3
    for backend in ("triton", "torch"):
        loss, *found = gradients(backend, dtype)
        assert loss.item() == pytest.approx(exact[0].item(), rel=1e-5)
        for ours, wide in zip(found, exact[1:], strict=True):
            assert relative_error(ours, wide) < limit


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_has_no_race(dtype):
    """The interpreter runs one thread after the other and could not show one."""
    from trainer.kernels.rows_triton import nll_and_gradient

    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(2000, 50257, device="cuda", generator=generator).to(dtype)
    target = torch.randint(50257, (2000,), device="cuda", generator=generator)
    apart = torch.empty_like(logits)
    nll = nll_and_gradient(logits.clone(), target, apart)
    for _ in range(20):
        work = logits.clone()
        assert torch.equal(nll_and_gradient(work, target, work), nll)
        assert torch.equal(work, apart)


def test_rows_beyond_2_31_elements():
    from trainer.kernels.rows_triton import nll_and_gradient

    height, width = 16500, 131072
    assert height * width > 2**31
    if torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("needs 6 GiB")
    logits = torch.zeros(height, width, device="cuda", dtype=torch.bfloat16)
    logits[-1] = torch.linspace(-4, 4, width, device="cuda").bfloat16()
    target = torch.full((height,), width - 1, device="cuda")
    last = logits[-1:].double()
    nll = nll_and_gradient(logits, target, logits)
    exact = last.clone()
    exact_nll = rows.nll_and_gradient(exact, target[-1:], exact)
    assert nll[-1].item() == pytest.approx(exact_nll.item(), rel=1e-5)
    assert (logits[-1].double() - exact).abs().max() < 2**-9


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained"])
def test_nothing_waits_for_the_device(backend, is_trained):
    hidden, weight, target = problem(300, 256, 5003, torch.float16)
    target[::3] = -100
    hidden.requires_grad_()
    weight.requires_grad_(is_trained)

    def run():
        linear_focal_loss(hidden, weight, target, 2.0, backend=backend).sum.backward()

    run()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["mixed", "16 bit"])
def test_the_fused_lora_layer_equals_float64(dtype):
    from trainer.kernels.lora_linear import lora_linear

    torch.manual_seed(0)
    shapes = ((100, 64), (96, 64), (96,), (8, 64), (96, 8))
    x, weight, bias, a, b = (torch.randn(shape, device="cuda").half() for shape in shapes)
    results = []
    for wide in (False, True):
        base = [t.double() if wide else t for t in (x, weight, bias)]
        leaves = [base[0], *(t.double() if wide else t.to(dtype) for t in (a, b))]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        y = lora_linear(leaves[0], *base[1:], *leaves[1:], 0.5)
        results.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
    for ours, exact in zip(*results, strict=True):
        assert relative_error(ours, exact) < 3e-3
