"""Output layer and focal loss in one: the logits of all tokens are never in memory.

The loss is sum over t of w_t FL(l_t), l the nll of the logits Z = X W' + b. With c_t = w_t dFL/dl
(kernels/focal.py) and U = dl/dZ = P - Y (kernels/rows.py),

    dX = diag(c) U W        dW = U' diag(c) X        db = U' c

A chunk of rows of Z becomes U, U W and, for a trained W, its part of dW, all in the forward pass;
what is saved is U W (T x D), c (T) and dW (V x D, fp32). The backward pass multiplies them by the
upstream gradient. A frozen head so costs two GEMMs and is not needed in the backward pass.

c is applied after the GEMM, to the rows of U W and of X, never to the 16-bit U: in fp16, small
probabilities times 1 / (number of tokens) would be zeros. In dW, c X is divided by the largest w
before it is rounded to 16 bit, so neither large nor small weights leave fp16's range.

A cap k makes the logits k tanh(Z / k) (Gemma 2, section 2), so U gets the factor 1 - tanh^2.

T tokens, M tokens of a chunk, D hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.kernels.chunks import device_chunk
from trainer.kernels.focal import focal_value_and_slope
from trainer.kernels.rows import nll_and_gradient

RowKernel = Callable[[Tensor, Tensor, Tensor | None], Tensor]

_ALIGN = 64  # columns: rows of the logits then start where vector loads and tensor cores want them
_CPU_COLUMNS = 4096  # of a 16-bit weight that a CPU converts to fp32 at a time


@dataclass(frozen=True)
class LinearFocal:
    """How the loss is computed.

    Attributes:
        gamma: >= 0; 0 is cross-entropy.
        detach_modulator: Leave the modulator's gradient out.
        backend: torch on any device, or triton on a GPU.
        cap: Of the logits: cap x tanh(logits / cap); None: there is none.
        chunk_rows: Rows of logits at once; None: planned for the device.
        logits_dtype: None: fp32 (float64 for float64), which focal loss needs: with bf16 logits its
            slope is off by 4% at gamma 2. Another one is for the benchmarks, triton alone.
    """

    gamma: float
    detach_modulator: bool = False
    backend: str = "torch"
    cap: float | None = None
    chunk_rows: int | None = None
    logits_dtype: torch.dtype | None = None

    def loss_sum(
        self,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_T: Tensor,
        weight_T: Tensor,
    ) -> Tensor:
        """The sum over tokens, in fp32 (float64 for float64).

        Args:
            hidden_TD: In the dtype of weight_VD.
            weight_VD: Of the output layer; whether it requires a gradient decides the path.
            target_T: int64 in [0, V).
            weight_T: Of each token, fp32; 0 leaves a token out.
        """
        total: Tensor = _LinearFocalSum.apply(  # type: ignore[no-untyped-call]
            hidden_TD, weight_VD, bias_V, target_T, weight_T, self, torch.is_grad_enabled()
        )
        return total


def cap_logits(logits_MV: Tensor, cap: float) -> Tensor:
    """Write cap x tanh(logits / cap) over the logits; returns its slope, 1 - tanh^2."""
    tanh_MV = (logits_MV / cap).tanh_()
    torch.mul(tanh_MV, cap, out=logits_MV)
    return tanh_MV.square_().neg_().add_(1)


def row_kernel(backend: str) -> RowKernel:
    """nll_and_gradient of a backend."""
    if backend == "triton":
        from trainer.kernels.rows_triton import nll_and_gradient as on_gpu

        return on_gpu
    return nll_and_gradient


class _LinearFocalSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_T: Tensor,
        weight_T: Tensor,
        loss: LinearFocal,
        with_gradient: bool,
    ) -> Tensor:
        wanted = [with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        kernel = row_kernel(loss.backend)
        logits_MV, unit_MV = _buffers(hidden_TD, weight_VD, loss, any(wanted))
        peak = weight_T.amax().clamp_min(1e-30) if len(weight_T) else weight_T.new_ones(())
        share_T = weight_T / peak
        sums = _Sums.zeros(hidden_TD, weight_VD, bias_V, wanted, share_T)
        for start in range(0, len(hidden_TD), len(logits_MV)):
            chunk = slice(start, start + len(logits_MV))
            height = len(hidden_TD[chunk])  # the last one is shorter
            here_MV = logits_MV[:height]
            here_unit_MV = None if unit_MV is None else unit_MV[:height]
            # A token left out may hold anything, NaN too.
            hidden_MD = torch.where(share_T[chunk, None] > 0, hidden_TD[chunk], 0)
            _project(hidden_MD, weight_VD, bias_V, here_MV)
            slope_MV = None if loss.cap is None else cap_logits(here_MV, loss.cap)
            nll_M = kernel(here_MV, target_T[chunk], here_unit_MV)
            if slope_MV is not None and here_unit_MV is not None:
                here_unit_MV.mul_(slope_MV)
            value_M, slope_M = focal_value_and_slope(nll_M, loss.gamma, loss.detach_modulator)
            # where, not a product: a token left out adds 0 even where its nll is infinite.
            sums.loss += torch.where(share_T[chunk] > 0, value_M * share_T[chunk], 0.0).sum()
            if here_unit_MV is not None:
                slope_M = torch.where(share_T[chunk] > 0, slope_M * share_T[chunk], 0.0)
                sums.add(chunk, here_unit_MV, slope_M, hidden_MD, weight_VD)
        ctx.save_for_backward(sums.unit_TD, sums.slope_T, sums.weight_VD, sums.bias_V, peak)
        ctx.dtypes = weight_VD.dtype, None if bias_V is None else bias_V.dtype
        return sums.loss * peak

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        unit_TD, slope_T, weight_VD, bias_V, peak = ctx.saved_tensors
        scale = upstream * peak
        scaled = (
            _scaled(unit_TD, (slope_T * scale)[:, None], ctx.dtypes[0]),
            _scaled(weight_VD, scale, ctx.dtypes[0]),
            _scaled(bias_V, scale, ctx.dtypes[1]),
        )
        return *scaled, None, None, None, None


@dataclass
class _Sums:
    """Sums over the chunks; None where no gradient is needed."""

    loss: Tensor
    slope_T: Tensor
    unit_TD: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    @classmethod
    def zeros(
        cls,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        wanted: Sequence[bool],
        share_T: Tensor,
    ) -> "_Sums":
        """Sums in the dtype of share_T; U W is written once, in the dtype of the hidden states."""
        return cls(
            share_T.new_zeros(()),
            torch.empty_like(share_T),
            torch.empty_like(hidden_TD) if wanted[0] else None,
            share_T.new_zeros(weight_VD.shape) if wanted[1] else None,
            share_T.new_zeros(bias_V.shape) if bias_V is not None and wanted[2] else None,
        )

    def add(
        self, chunk: slice, unit_MV: Tensor, slope_M: Tensor, hidden_MD: Tensor, weight_VD: Tensor
    ) -> None:
        """Add the gradients of a chunk."""
        self.slope_T[chunk] = slope_M
        if self.unit_TD is not None:
            torch.mm(unit_MV, weight_VD, out=self.unit_TD[chunk])
        if self.weight_VD is not None:
            scaled_MD = (hidden_MD * slope_M[:, None]).to(hidden_MD.dtype)
            _add_product(self.weight_VD, unit_MV.t(), scaled_MD)
        if self.bias_V is not None:
            self.bias_V += torch.mv(unit_MV.t(), slope_M.to(unit_MV.dtype))


def _buffers(
    hidden_TD: Tensor, weight_VD: Tensor, loss: LinearFocal, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Logits of a chunk and their gradient, which takes the place of logits of its dtype."""
    (num_tokens, hidden_size), vocab_size = hidden_TD.shape, len(weight_VD)
    dtype, device = hidden_TD.dtype, hidden_TD.device
    height = loss.chunk_rows or device_chunk(num_tokens, hidden_size, vocab_size, dtype, device)
    shape = (max(1, min(height, num_tokens)), -(-vocab_size // _ALIGN) * _ALIGN)
    logits_dtype = loss.logits_dtype or (dtype if dtype.itemsize >= 4 else torch.float32)
    logits_MV = _padded_rows(shape, vocab_size, logits_dtype, device)
    if not with_gradient:
        return logits_MV, None
    if logits_dtype == dtype:
        return logits_MV, logits_MV
    return logits_MV, _padded_rows(shape, vocab_size, dtype, device)


def _padded_rows(
    shape: tuple[int, int], num_columns: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """An unwritten matrix whose rows end in zeros that its view leaves out.

    oneDNN's bf16 GEMM with AMX reads a whole tile where a row ends within one, times zeros: a NaN
    that the memory held before becomes a NaN of the product.
    """
    whole = torch.empty(shape, dtype=dtype, device=device)
    whole[:, num_columns:].zero_()
    return whole[:, :num_columns]


def _project(
    hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, logits_MV: Tensor
) -> None:
    """X W' + b, accumulated and kept in the dtype of the logits."""
    if hidden_MD.dtype == logits_MV.dtype:
        torch.mm(hidden_MD, weight_VD.t(), out=logits_MV)
    elif hidden_MD.is_cuda:
        torch.mm(hidden_MD, weight_VD.t(), out_dtype=logits_MV.dtype, out=logits_MV)
    else:  # a CPU has no GEMM from 16 to 32 bit
        wide_MD = hidden_MD.to(logits_MV.dtype)
        for start in range(0, len(weight_VD), _CPU_COLUMNS):
            columns = slice(start, start + _CPU_COLUMNS)
            wide_weight = weight_VD[columns].to(logits_MV.dtype)
            torch.mm(wide_MD, wide_weight.t(), out=logits_MV[:, columns])
    if bias_V is not None:
        logits_MV += bias_V


def _scaled(sums: Tensor | None, scale: Tensor, dtype: torch.dtype) -> Tensor | None:
    """sums x scale, rounded to dtype once and without a wide copy."""
    if sums is None:
        return None
    return torch.mul(sums, scale, out=torch.empty_like(sums, dtype=dtype))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, accumulated in the dtype of the total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
