"""Which linear layers a tuning method adapts, and how many parameters that trains.

Arithmetic on the sizes of a block, shared by the planner and the methods.
"""

from collections.abc import Iterable
from typing import Literal

from trainer.architectures.shapes import AUTO, LAST, Linear, ModelShape
from trainer.config.methods import BOTTLENECKS, HEAD, adapter_size
from trainer.config.sections import TuningSection

Place = Literal["input", "output", "beside"]


def is_named(path: str, name: str) -> bool:
    """Whether a path ends in a name, by whole parts."""
    return path == name or path.endswith(f".{name}")


def is_feed_forward(linear: Linear) -> bool:
    """Whether IA3 scales the layer's input: it does for the layer behind the activation."""
    return LAST in linear.roles


def auto_modules(shape: ModelShape, method: str) -> list[str] | None:
    """Names of the layers that target_modules auto adapts; LoRA's depend on the rank.

    None where a role that the method needs is not known, or a name is the end of another layer's.
    """
    wanted = AUTO[method]
    chosen = [one for one in shape.linears if one.roles & wanted]
    known = {role for one in chosen for role in one.roles}
    names = sorted({one.path for one in chosen})
    others = (one.path for one in shape.linears if one not in chosen)
    is_clear = not any(is_named(path, name) for path in others for name in names)
    return names if wanted <= known and is_clear else None


def place_of(method: str, inputs: int, outputs: int, hidden: int) -> Place:
    """Where a bottleneck adapter goes: on the side of its layer that is as wide as the model.

    Houlsby et al. 2019 and Pfeiffer et al. 2021 put adapters between layers, on what a layer gives
    back to the residual, and, in LLM-Adapters, on what the feed-forward reads. He et al. 2022 put
    them beside a layer.

    Raises:
        ValueError: Neither side is.
    """
    if method == "parallel":
        return "beside"
    if outputs == hidden:
        return "output"
    if inputs == hidden:
        return "input"
    raise ValueError(f"neither its {inputs} inputs nor its {outputs} outputs are {hidden} wide")


def adapted_layers(shape: ModelShape, tuning: TuningSection) -> list[Linear]:
    """The layers of the blocks that get adapters."""
    names: Iterable[str] | None = tuning.target_modules
    if tuning.method in ("full", "ptuning"):
        return []
    if names == "auto":
        names = auto_modules(shape, tuning.method) or [] if tuning.method in AUTO else None
    if names is None:
        wide = (one for one in shape.linears if min(one.inputs, one.outputs) >= tuning.lora_r)
        return [one for one in wide if one.reads is not None]
    names = list(names)
    return [one for one in shape.linears if any(is_named(one.path, name) for name in names)]


def num_adapter_parameters(shape: ModelShape, tuning: TuningSection) -> int:
    """Parameters that a method trains besides the head and tuning.modules_to_save."""
    if tuning.method == "full":
        return shape.num_parameters - shape.num_new_parameters
    if tuning.method == "ptuning":
        hidden = shape.hidden
        return adapter_size(tuning) * hidden + 3 * (hidden * hidden + hidden)
    return sum(one.times * _of_layer(one, shape, tuning) for one in adapted_layers(shape, tuning))


def num_head_parameters(shape: ModelShape, tuning: TuningSection) -> int:
    """Trained parameters of a classifier's head, or of the adapter that target_modules gives it.

    A language model's head counts as part of the base.
    """
    if HEAD in tuning.target_modules:
        return tuning.lora_r * (shape.hidden + shape.num_classes)
    return shape.num_new_parameters


def _of_layer(layer: Linear, shape: ModelShape, tuning: TuningSection) -> int:
    if tuning.method == "ia3":
        return layer.inputs if is_feed_forward(layer) else layer.outputs
    if tuning.method in BOTTLENECKS:
        size = adapter_size(tuning)
        place = place_of(tuning.method, layer.inputs, layer.outputs, shape.hidden)
        first = layer.outputs if place == "output" else layer.inputs
        last = layer.inputs if place == "input" else layer.outputs
        return size * (first + last)
    magnitudes = layer.outputs if tuning.variant == "dora" else 0
    return tuning.lora_r * (layer.inputs + layer.outputs) + magnitudes
