"""The optimizer's state by name and in fp32, also where bitsandbytes keeps 8-bit codes.

A block of 256 elements shares a scale, its largest magnitude, and every element is the nearest of
256 values of a table times that scale. The table lacks -1, so the scale cannot be found in the
decoded values: it is kept beside each element. Where blocks lie as they did, the codes come back
exactly; where they do not (another world size or ZeRO stage), a block takes the largest scale of
its elements.
"""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_NUMBERED = (  # as bitsandbytes counts them; lion has the first alone
    (1, "exp_avg", "exp_avg_scale"),
    (2, "exp_avg_sq", "exp_avg_sq_scale"),
)
_BLOCK = 256
_Entry = MutableMapping[str, Any]


def optimizer_of(engine: "DeepSpeedEngine") -> torch.optim.Optimizer:
    """The optimizer inside ZeRO's wrapper."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def moment_shapes(engine: "DeepSpeedEngine", parameter: nn.Parameter) -> dict[str, tuple[int, ...]]:
    """What a checkpoint holds for a trained parameter besides its weight; empty before any update.

    Under ZeRO 1 to 3 the optimizer sees flat parts of all parameters, and updates elements: what it
    keeps has the parameter's shape. Under ZeRO 0 it sees the parameter, and may keep anything.
    """
    state = optimizer_of(engine).state
    whole = tuple(getattr(parameter, "ds_shape", parameter.shape))
    if engine.zero_optimization_stage():
        return dict.fromkeys(_names(engine, next(iter(state.values()), {})), whole)
    entry = state.get(parameter, {})
    return {
        name: tuple(entry[name].shape) if name in entry else whole for name in _names(engine, entry)
    }


def _names(engine: "DeepSpeedEngine", entry: _Entry) -> list[str]:
    """State of an entry; `step`, the same for all, is a counter (`optimizer_counters`)."""
    numbered = [(moment, scale) for n, moment, scale in _NUMBERED if f"state{n}" in entry]
    if not numbered:
        return [key for key, value in entry.items() if torch.is_tensor(value) and key != "step"]
    moments, scales = zip(*numbered, strict=True)
    optim_bits = getattr(getattr(optimizer_of(engine), "args", None), "optim_bits", 32)
    return [*moments, *scales] if optim_bits == 8 else [*moments]


@contextmanager
def named_moments(engine: "DeepSpeedEngine", *, write: bool = False) -> Iterator[None]:
    """Inside, every optimizer's state holds what `moment_shapes` names, in fp32.

    torch's optimizers do anyway. With `write`, the values at the end become the state. ZeRO is
    linked to the state in any case: it looks once, after the first step of the first group alone,
    and misses that of a second (matrices have weight decay, vectors none).
    """
    coded = [
        (entry, one)
        for entry in optimizer_of(engine).state.values()
        for one in _NUMBERED
        if f"state{one[0]}" in entry
    ]
    for entry, (number, moment, scale) in coded:
        entry[moment], entry[scale] = _decode(entry, number)
    _link(engine)
    yield
    for entry, (number, moment, scale) in coded:
        value, scales = entry.pop(moment), entry.pop(scale)
        if write:
            _encode(entry, number, value, scales)
    if coded:
        _link(engine)


def nearest_codes(value: Tensor, scale: Tensor, table: Tensor) -> Tensor:
    """Index of the table's value nearest to value / scale; 0 / 0 is 0. `table` rises."""
    ratio = torch.where(scale > 0, value / scale, torch.zeros_like(value))
    middles = (table[1:] + table[:-1]) / 2
    return torch.bucketize(ratio, middles).to(torch.uint8)


def _decode(entry: _Entry, number: int) -> tuple[Tensor, Tensor]:
    """A moment and the scale of each of its elements; moments of small tensors are fp32 already."""
    state: Tensor = entry[f"state{number}"]
    if state.dtype != torch.uint8:
        return state.clone(), torch.zeros_like(state)
    scale = entry[f"absmax{number}"].repeat_interleave(_BLOCK)[: state.numel()].view_as(state)
    return entry[f"qmap{number}"][state.long()] * scale, scale


def _encode(entry: _Entry, number: int, value: Tensor, scale: Tensor) -> None:
    state: Tensor = entry[f"state{number}"]
    if state.dtype != torch.uint8:
        state.copy_(value)
        return
    flat = torch.maximum(scale, value.abs()).flatten()
    padded = torch.zeros(entry[f"absmax{number}"].numel() * _BLOCK, device=flat.device)
    padded[: flat.numel()] = flat
    absmax = padded.view(-1, _BLOCK).amax(1)
    entry[f"absmax{number}"].copy_(absmax)
    of_element = absmax.repeat_interleave(_BLOCK)[: flat.numel()].view_as(value)
    state.copy_(nearest_codes(value, of_element, entry[f"qmap{number}"]))


def _link(engine: "DeepSpeedEngine") -> None:
    """Link ZeRO 1 and 2 to the tensors that the state now holds; stages 0 and 3 find them."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if engine.zero_optimization_stage() not in (1, 2) or not optimizer_of(engine).state:
        return
    zero = engine.optimizer
    for parameters, flat in zip(
        zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True
    ):
        lazy_init_hp_params_optimizer_state(parameters, flat, zero.optimizer.state)
