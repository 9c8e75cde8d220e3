"""Whether a step was finite, learned from the device without making it wait.

The losses and the gradient norm of a step are copied to the host behind its update and read one
step later, when the device has long passed them; they are read at once before anything is saved,
scored or logged. So nothing that NaN or infinity has touched leaves the process, and one step more
than needed is computed at most. In fp32 (ZeRO 1 and 2), in fp16 and under ZeRO-3 DeepSpeed reads
the norm itself and leaves the update out.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.errors import DivergedError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_MOST_NAMED = 20  # records of a micro-batch in a message

# A micro-batches of a step on a rank


@dataclass(frozen=True)
class Report:
    """What a rank knows of a step: a loss sum and the norm of the gradients.

    Attributes:
        step: From 1; 0 before the first.
        micro_batch: From 0: the first whose loss is not finite, else the one with the largest loss.
    """

    step: int = 0
    micro_batch: int = 0
    loss: float = 0.0
    norm: float = 0.0

    @property
    def is_finite(self) -> bool:
        """Whether loss and norm are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)

    def numbers(self) -> list[float]:
        """The report as numbers, for other ranks."""
        return list(map(float, astuple(self)))

    @staticmethod
    def of(numbers: Sequence[float]) -> "Report":
        """The report that another rank sent."""
        step, micro_batch, loss, norm = numbers
        return Report(int(step), int(micro_batch), loss, norm)


class FiniteCheck:
    """Reports on the steps of a rank, in their order.

    Args:
        skips_overflows: fp16's loss scale grows until gradients overflow and the update is left
            out: their norm says nothing, the loss does.
    """

    def __init__(self, device: torch.device, *, skips_overflows: bool) -> None:
        self._device = device
        self._skips_overflows = skips_overflows
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def record(self, step: int, losses_A: Tensor, norm: Tensor | float | None) -> None:
        """Start the copy of a step's numbers; nothing waits."""
        if norm is None or self._skips_overflows:
            norm = 0.0
        if not torch.is_tensor(norm):
            norm = torch.full((), norm, device=self._device)
        values = torch.cat([losses_A, norm.detach().to(losses_A.dtype).view(1)])
        if self._device.type == "cpu":
            self._pending.append((step, values, None))
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._pending.append((step, host, copied))

    def read(self, *, settle: bool) -> Report:
        """The first step that is not finite, else the last one read.

        Args:
            settle: Read every step, waiting for the device; otherwise all but the newest.
        """
        report = Report()
        while report.is_finite and len(self._pending) > (0 if settle else 1):
            step, values, copied = self._pending.popleft()
            if copied is not None:
                copied.synchronize()
            report = _report(step, values.tolist())
        return report


def local_norm(engine: "DeepSpeedEngine") -> Tensor | None:
    """Norm of this rank's own gradients where DeepSpeed keeps none: without ZeRO.

    By the arithmetic of ZeRO: fp64 sums, rounded to fp32 for each group of the optimizer.
    """
    if engine.zero_optimization_stage():
        return None
    groups = []
    for group in engine.optimizer.param_groups:
        found = (p.grad for p in group["params"] if p.grad is not None)
        norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in found]
        if norms:
            groups.append(torch.stack(norms).square().sum().float().sqrt())
    return torch.linalg.vector_norm(torch.stack(groups)) if groups else torch.zeros(())


def clip_alone(engine: "DeepSpeedEngine", norm: Tensor, most: float) -> None:
    """Clip the gradients of the only rank without ZeRO so that every weight becomes ZeRO's.

    DeepSpeed clips there by another formula, which differs in the last digit, and its optimizer
    leaves out what has no gradient in a step; ZeRO updates it by a gradient of zero.
    """
    factor = 1.0 / torch.clamp((norm + 1e-6) / most, min=1.0) if most else None
    for group in engine.optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif factor is not None:
                parameter.grad.mul_(factor)


def clip_before_update(
    optimizer: torch.optim.Optimizer, engine: "DeepSpeedEngine", most: float
) -> None:
    """Clip what the optimizer under ZeRO 1 or 2 gets, by DeepSpeed's arithmetic to the last bit.

    DeepSpeed's own clipping asks on the host whether the norm is a number, once for every group,
    and waits for the device to know. FiniteCheck asks later.
    """

    def clip(updated: torch.optim.Optimizer, *_: object) -> None:
        norm = engine.optimizer._global_grad_norm
        scale = torch.clamp((norm + 1e-6) / most, min=1.0)
        for group in updated.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(1.0 / scale)

    optimizer.register_step_pre_hook(clip)


def diverged(
    reports: Sequence[Report], records_of: Callable[[int, int, int], Sequence[int]]
) -> DivergedError:
    """The error that names step, rank and rows, equal on all ranks.

    Args:
        reports: Of every rank, one of them not finite.
        records_of: (step from 0, rank, micro-batch) -> records of the training split.
    """
    step = min(report.step for report in reports if not report.is_finite)
    at_step = {rank: report for rank, report in enumerate(reports) if report.step == step}
    lossy = {rank: r for rank, r in at_step.items() if not math.isfinite(r.loss)}
    local = {rank: r for rank, r in at_step.items() if not r.is_finite}
    if lossy:
        rank, found = min(lossy.items())
        what = f"the loss of rank {rank} is {found.loss}"
    else:  # the norm is of all ranks, but without ZeRO
        rank, found = max(local.items(), key=lambda item: item[1].loss)
        what = f"the gradients are not finite; the largest loss, {found.loss:.4g}, is rank {rank}'s"
    records = records_of(step - 1, rank, found.micro_batch)
    named = ", ".join(map(str, records[:_MOST_NAMED]))
    more = f" and {len(records) - _MOST_NAMED} more" if len(records) > _MOST_NAMED else ""
    return DivergedError(
        f"step {step}: {what}, in micro-batch {found.micro_batch + 1} with records {named}{more} of"
        " the training split, counted from 0. Nothing was saved since; the last checkpoint is"
        " intact: look at these records, lower optim.lr, or add optim.warmup_steps"
    )


def _report(step: int, values: Sequence[float]) -> Report:
    *losses, norm = values
    broken = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
    worst = broken[0] if broken else max(range(len(losses)), key=losses.__getitem__)
    return Report(step, worst, losses[worst], norm)
