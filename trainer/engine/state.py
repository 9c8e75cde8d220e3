"""Trained weights, the optimizer's state and counters, out of an engine and back into one.

Everything is gathered to full fp32 tensors: a weight under its name, what the optimizer keeps for
it under KEY/name. So a checkpoint does not know the world size or the
ZeRO stage it was written under. Data order, dropout and learning rate are pure functions of the
step, so they need no state.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from trainer.engine.moments import moment_shapes, named_moments, optimizer_of
from trainer.errors import DivergedError, ModelError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")

_IN_EVERY_VERSION = {"step", "best_step", "best_score"}  # the other counters may be new


@dataclass
class TrainState:
    """The counters of a run.

    Attributes:
        step: Optimizer steps begun, skipped ones included: the position in the data.
        skipped_steps: Steps without an update because gradients were not finite, as fp16's are
            while its scale is searched.
        best_step: Step of the best validation; None before the first.
        best_score: What eval.metric measured there, lower-is-better ones times -1; None where it is
            undefined.
        num_worse: Validations since then, which eval.patience counts.
        threshold: Of classes, chosen on that validation.
        decision: What else it chose, as `Decision.to_json` gives it.
        is_unscored: The validation after this step is still to come: a signal came in the middle.
    """

    step: int = 0
    skipped_steps: int = 0
    consecutive_skips: int = 0
    records_seen: float = 0.0
    tokens_seen: int = 0
    best_step: int | None = None
    best_score: float | None = None
    threshold: float = 0.5
    decision: dict[str, Any] = field(default_factory=dict)
    train_seconds: float = 0.0
    is_unscored: bool = False
    num_worse: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for trainer.json."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TrainState":
        """The counters that `to_json` gave; one that came later is 0 in an older version's.

        Raises:
            ModelError: Another version wrote it.
        """
        odd = values.keys() - {field.name for field in fields(cls)}
        odd |= _IN_EVERY_VERSION - values.keys()
        if odd:
            raise ModelError(
                f"the checkpoint is of another version: its counters differ in {sorted(odd)};"
                " continue it with the version that wrote it, or choose another run.output_dir"
            )
        return cls(**values)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the dropout of a step a function of (seed, step, rank), whatever ran before it."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def state_shapes(engine: "DeepSpeedEngine") -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of `gathered_state`, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in trained_parameters(engine):
        shapes[name] = tuple(getattr(parameter, "ds_shape", parameter.shape))
        kept = moment_shapes(engine, parameter)
        shapes |= {f"{key}/{name}": shape for key, shape in kept.items()}
    return shapes | {name: tuple(start.shape) for name, start in starts(engine)}


def gathered_state(engine: "DeepSpeedEngine", keep: bool) -> Iterator[tuple[str, Tensor]]:
    """Weights and moments of every trained parameter by name, whole and in fp32, one at a time.

    All ranks go through all of it. Only one that keeps them gets the tensors on the CPU.

    Raises:
        DivergedError: At the end, a value was not finite; such a state is never published.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    sharded = engine.zero_optimization_stage() > 0
    broken: list[str] = []
    with named_moments(engine):
        for name, parameter in trained_parameters(engine):
            master = safe_get_full_fp32_param(parameter) if sharded else parameter.data
            for key in ("", *moment_shapes(engine, parameter)):
                tensor = _moment(engine, parameter, key) if key else master
                full_name = f"{key}/{name}" if key else name
                if not torch.isfinite(tensor).all():
                    broken.append(full_name)
                yield full_name, tensor.detach().float().cpu() if keep else tensor
        for name, start in starts(engine):
            yield name, start.float().cpu() if keep else start
    if broken:
        raise DivergedError(f"not saved: {len(broken)} tensors are not finite, first {broken[0]}")


def optimizer_counters(engine: "DeepSpeedEngine") -> dict[str, Any]:
    """Updates as the optimizer counts them and the loss scaler's state, as plain values."""
    entries = optimizer_of(engine).state.values()
    steps = [float(entry["step"]) for entry in entries if "step" in entry]
    scaler = engine.optimizer.loss_scaler if engine.fp16_enabled() else None
    return {
        "adam_step": max(steps, default=0.0),
        "loss_scaler": {key: getattr(scaler, key) for key in _SCALER} if scaler else {},
    }


def restore_state(
    engine: "DeepSpeedEngine",
    tensors: Mapping[str, Tensor],
    counters: Mapping[str, Any],
    empty_step: Callable[[], None],
) -> None:
    """Overwrite an engine with a gathered state; called by all ranks.

    Args:
        engine: Fresh, over the same trained parameters.
        tensors: From gathered_state, under any world size and ZeRO stage.
        empty_step: One optimizer step on no data: it makes the optimizer create its lazy state,
            every value of which is overwritten here.

    Raises:
        ModelError: Other parameters or shapes.
    """
    empty_step()
    restore_weights(engine, tensors)
    with named_moments(engine, write=True):
        for name, parameter in trained_parameters(engine):
            shapes = moment_shapes(engine, parameter)
            assert shapes, f"{name} has no state after a step"
            for key, shape in shapes.items():
                # No state before the first update is zeros; a state of plain AdamW has no scales:
                # those of its values are found anew.
                value = tensors.get(f"{key}/{name}", torch.zeros(shape))
                _set_moment(engine, parameter, key, value)
    for entry in optimizer_of(engine).state.values():
        if torch.is_tensor(entry.get("step")):
            entry["step"] = torch.full_like(entry["step"], counters["adam_step"])
        elif "step" in entry:  # bitsandbytes counts in an int
            entry["step"] = int(counters["adam_step"])
    if engine.fp16_enabled():
        for key, value in counters["loss_scaler"].items():
            setattr(engine.optimizer.loss_scaler, key, value)


def restore_weights(engine: "DeepSpeedEngine", tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the trained weights, masters and the copies that compute, alone."""
    parameters, fixed = dict(trained_parameters(engine)), dict(starts(engine))
    _check_shapes(parameters | fixed, tensors)
    for name, start in fixed.items():
        start.copy_(tensors[name])
    for name, parameter in parameters.items():
        value = tensors[name]
        with torch.no_grad(), _writable(engine, parameter):
            parameter.data.copy_(value.to(parameter.dtype))
        if engine.zero_optimization_stage():
            _set_master(engine, parameter, value)


def trained_parameters(engine: "DeepSpeedEngine") -> list[tuple[str, nn.Parameter]]:
    """Name and parameter of everything that is trained."""
    return [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]


def starts(engine: "DeepSpeedEngine") -> list[tuple[str, Tensor]]:
    """What adapters began with, where a layer subtracts it (tuning/fused_lora.py).

    Another machine would decompose the base a little differently, so a checkpoint holds it.
    """
    named = engine.module.named_buffers()
    return [(name, one) for name, one in named if name.endswith((".start_A", ".start_B"))]


@contextmanager
def _writable(engine: "DeepSpeedEngine", parameter: nn.Parameter) -> Iterator[None]:
    """A whole parameter to write to; under ZeRO-3 rank 0's values are spread on leaving."""
    import deepspeed

    if engine.zero_optimization_stage() < 3:
        yield
        return
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield


def _moment(engine: "DeepSpeedEngine", parameter: nn.Parameter, key: str) -> Tensor:
    from deepspeed.utils import safe_get_full_optimizer_state

    if engine.zero_optimization_stage():
        return cast(Tensor, safe_get_full_optimizer_state(parameter, key))
    return cast(Tensor, optimizer_of(engine).state[parameter][key])


def _set_master(engine: "DeepSpeedEngine", parameter: nn.Parameter, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if engine.zero_optimization_stage() == 3:
        safe_set_local_fp32_param(parameter, _local_part(engine, value))
    else:
        safe_set_full_fp32_param(parameter, value.to(parameter.device))


def _set_moment(
    engine: "DeepSpeedEngine", parameter: nn.Parameter, key: str, value: Tensor
) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    stage = engine.zero_optimization_stage()
    if stage == 3:
        safe_set_local_optimizer_state(parameter, _local_part(engine, value), key)
    elif stage:
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
    else:
        engine.optimizer.state[parameter][key].copy_(value)


def _local_part(engine: "DeepSpeedEngine", value: Tensor) -> Tensor:
    """This rank's slice of a ZeRO-3 parameter: equal parts, the last one padded with zeros."""
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    part = -(-value.numel() // world_size)
    padded = torch.zeros(part * world_size, dtype=value.dtype)
    padded[: value.numel()] = value.flatten()
    return padded[rank * part : (rank + 1) * part].clone().to(engine.device)


def _check_shapes(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    saved = {name for name in tensors if "/" not in name}
    if saved != parameters.keys():
        odd = sorted(saved ^ parameters.keys())
        raise ModelError(
            f"the checkpoint trains other parameters: {len(odd)} differ, first {odd[0]};"
            " continue with the recipe it was made with"
        )
    for name, parameter in parameters.items():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if tuple(tensors[name].shape) != shape:
            raise ModelError(
                f"{name}: the checkpoint has shape {tuple(tensors[name].shape)}, the model {shape};"
                " was tuning.lora_r changed?"
            )
