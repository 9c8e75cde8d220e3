"""Whether everything that is trained gets a gradient, learned from the first backward pass.

A layer that the forward pass never reaches would stay as it is without a word: one of a vision
tower, of a pooler that nobody reads, or whose weight is used without calling the layer. Hooks on
the trained parameters note which get a gradient, and its largest value, on the device. Both are
read once, after the first step that has gradients; then the hooks are gone, and later steps pay
nothing. A gradient of zero is one: random weights can be zero where trained ones are not.

P trained parameters
"""

import math
import re
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainer.architectures.derived import expert_pattern
from trainer.engine.state import trained_parameters
from trainer.errors import NoProgressError
from trainer.processes.distributed import all_reduce_sum

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_MOST_SILENT = 50  # steps in a row whose gradients say nothing
_MOST_NAMED = 8
_ADAPTERS = ("lora_", "ia3_", "adapter_")  # what PEFT and trainer/tuning/bottleneck.py add
_WRAPPERS = ("base_layer", "modules_to_save", "default")
_OUTER = re.compile(r"model\.base_model\.(model\.)?")  # PackedClassifier's, PEFT's and PlainModel's


class GradientCheck:
    """Looks at the gradients of the first step.

    Args:
        engine: Its trained parameters are watched from now on.
    """

    def __init__(self, engine: "DeepSpeedEngine") -> None:
        trained = trained_parameters(engine)
        self._targets = [_target(name, engine.module) for name, _ in trained]
        self._seen_2P = torch.zeros(2, len(trained), device=engine.device)  # largest value; 1
        self._num_silent = 0
        self._hooks = [
            parameter.register_hook(partial(self._keep, index))  # type: ignore[no-untyped-call]
            for index, (_, parameter) in enumerate(trained)
        ]

    @property
    def is_settled(self) -> bool:
        """Whether a step with gradients is behind."""
        return not self._hooks

    def unreached(self, *, was_skipped: bool) -> list[str]:
        """Targets without a gradient, once they are known; called by all ranks after each step.

        A step whose update was left out because gradients overflowed says nothing, nor does one
        without any gradient, whose records may all weigh 0.

        Raises:
            NoProgressError: No step of 50 says something.
        """
        if not self._hooks:
            return []
        largest, seen = all_reduce_sum(self._seen_2P).tolist()
        self._seen_2P.zero_()
        if was_skipped or not any(largest) or not all(map(math.isfinite, largest)):
            self._num_silent += 1
            if self._num_silent == _MOST_SILENT:
                raise NoProgressError(
                    f"{_MOST_SILENT} steps without a gradient: nothing is learned; the records may"
                    " all weigh 0 (loss.alpha, loss.group_weights)"
                )
            return []
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        pairs = zip(self._targets, seen, strict=True)
        return without_gradient(self._targets, {target for target, value in pairs if value})

    def _keep(self, index: int, gradient: Tensor) -> None:
        largest = torch.linalg.vector_norm(gradient.detach(), math.inf, dtype=torch.float32)
        self._seen_2P[0, index] = torch.maximum(self._seen_2P[0, index], largest)
        self._seen_2P[1, index] = 1.0


def without_gradient(targets: Iterable[str], reached: set[str]) -> list[str]:
    """The targets that are not reached; an expert is excused that shares its list with one that is.

    One parameter is enough for a target.
    """
    experts = {expert_pattern(target) for target in reached if expert_pattern(target) != target}
    missing = (target for target in dict.fromkeys(targets) if target not in reached)
    return [target for target in missing if expert_pattern(target) not in experts]


def unreached_message(missing: list[str]) -> str:
    """Names the targets, and what to do."""
    named = ", ".join(missing[:_MOST_NAMED])
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    return f"{len(missing)} modules get no gradient in the first step: {named}{more}"


def _target(name: str, model: nn.Module) -> str:
    """The layer that a trained parameter belongs to, as the base calls it."""
    parts = name.split(".")
    own = (number for number, part in enumerate(parts) if part.startswith(_ADAPTERS))
    parts = parts[: next(own, len(parts) - 1)]
    parameter = getattr(model.get_submodule(".".join(parts)), "parameter_name", None)
    kept = [part for part in parts if part not in _WRAPPERS]
    return _OUTER.sub("", ".".join([*kept, parameter] if parameter else kept), count=1)
