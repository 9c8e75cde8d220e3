"""Logits -> nll and its gradient, row by row: the GPU backend of kernels/rows.py, same formulas.

One program a row. A first pass keeps a running maximum m of the others and d, their sum of
exp(z - m), rescaled by exp(m - m') when the maximum rises to m' (Milakov & Gimelshein 2018); a
second writes q exp(z - m) / d over the logits, or rounded into a buffer of 16 bit. In place is
safe: a thread writes the elements it has read, and the reductions of the first pass come between
every thread's read of the target's logit and the first write.

The GEMMs around it stay in cuBLAS: on sm70 and sm75 Triton's dot uses no tensor cores.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e38)  # finite: -inf - -inf would be NaN where all others are -inf
BLOCK = 4096  # columns a program reads at once
NUM_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def nll_gradient_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    logits_stride,
    gradient_ptr,
    gradient_stride,
    target_ptr,
    nll_ptr,
    num_columns,
    HAS_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row `program_id` of logits (M, V) in any float dtype; nll is fp32."""
    row = tl.program_id(0).to(tl.int64)  # rows x columns can exceed 2^31
    logits_ptr += row * logits_stride
    gradient_ptr += row * gradient_stride
    target = tl.load(target_ptr + row)
    target_logit = tl.load(logits_ptr + target).to(tl.float32)
    lanes = tl.arange(0, BLOCK)

    highest = tl.full((), LOWEST, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, num_columns, BLOCK):
        column = start + lanes
        logit = tl.load(logits_ptr + column, mask=column < num_columns, other=float("-inf"))
        logit = tl.where(column == target, float("-inf"), logit.to(tl.float32))
        raised = tl.maximum(highest, tl.max(logit, 0))
        # Subtract, then scale by log2(e): scaling logits of 1e4 first costs 4e-5 relative.
        total = total * tl.exp2((highest - raised) * LOG2E)
        total += tl.sum(tl.exp2((logit - raised) * LOG2E), 0)
        highest = raised

    sigma = (highest - target_logit) + tl.log(total)
    small = tl.exp2(-tl.abs(sigma) * LOG2E)  # in [0, 1]: exp(-|sigma|)
    one_more = 1.0 + small
    is_lost = one_more == 1.0  # Kahan's log1p: exact also where 1 + small rounds to 1
    ratio = small / tl.where(is_lost, 1.0, one_more - 1.0)
    log1p = tl.where(is_lost, small, tl.log(one_more) * ratio)
    tl.store(nll_ptr + row, tl.maximum(sigma, 0.0) + log1p)

    if HAS_GRADIENT:
        q = tl.where(sigma > 0, 1.0, small) / one_more
        scale = tl.where(total > 0, q / tl.where(total > 0, total, 1.0), 0.0)
        for start in range(0, num_columns, BLOCK):
            column = start + lanes
            inside = column < num_columns
            logit = tl.load(logits_ptr + column, mask=inside, other=float("-inf")).to(tl.float32)
            gradient = tl.exp2((logit - highest) * LOG2E) * scale
            gradient = tl.where(column == target, -q, gradient)
            tl.store(gradient_ptr + column, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)


def nll_and_gradient(
    logits_MV: Tensor,
    target_M: Tensor,
    gradient_MV: Tensor | None,
    block: int = BLOCK,
    num_warps: int = NUM_WARPS,
) -> Tensor:
    """The nll of every row (M,) in fp32; arguments as of kernels/rows.py.

    Args:
        logits_MV: fp32, bf16 or fp16, with contiguous rows.
        target_M: int64 in [0, V).
        gradient_MV: Takes dnll/dlogits; may be logits_MV itself. None: not computed, and the
            logits stay as they are.
        block: Columns a program reads at once, a power of 2.
    """
    height, width = logits_MV.shape
    into_MV = logits_MV if gradient_MV is None else gradient_MV
    assert logits_MV.stride(1) == into_MV.stride(1) == target_M.stride(0) == 1
    nll_M = torch.empty(height, dtype=torch.float32, device=logits_MV.device)
    launch: Callable[..., object] = nll_gradient_kernel[(height,)]
    launch(
        logits_MV,
        logits_MV.stride(0),
        into_MV,
        into_MV.stride(0),
        target_M,
        nll_M,
        width,
        HAS_GRADIENT=gradient_MV is not None,
        BLOCK=min(block, triton.next_power_of_2(width)),
        num_warps=num_warps,
    )
    return nll_M
