"""What a model does to its logits beside its output layer: Granite, Cohere and Gemma scale or cap.

Nothing is taken from names. The output layer's input is compared with the backbone's states; then
the layer is made to give known values, and the logits of the model's own forward show what becomes
of them. The constants are those of its config, so they are exact in any precision.

V columns of the logits that are looked at.
"""

import inspect
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.architectures.derived import backbone_of
from trainer.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Function = tuple[float, float | None]  # scale and cap

_LARGEST = 40.0  # of the known values: a cap bends them, whatever the model's own logits are
_MOST_COLUMNS = 256
_TOLERANCE = 2.0**-7  # a unit in the last place of bf16, relative to the largest value
_CLOSE = 1.02  # among equally good constants the simpler is taken


def output_function(model: "PreTrainedModel", input_ids_1T: Tensor) -> Function:
    """Scale and cap: the logits are cap x tanh(scale x (W h + b) / cap), without a cap the inside.

    Args:
        model: A causal language model, in evaluation mode.
        input_ids_1T: A short text, for one forward pass.

    Raises:
        ModelError: The logits are another function of the output layer.
    """
    head: Any = model.get_output_embeddings()
    seen: dict[str, Tensor] = {}
    known_V = torch.zeros(0)

    def keep_states(_: nn.Module, __: Any, output: Any) -> None:
        seen["states"] = output.last_hidden_state

    def give_known(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal known_V
        seen["read"] = inputs[0]
        known_V = torch.linspace(-_LARGEST, _LARGEST, output.shape[-1]).to(output)
        return known_V.expand_as(output)

    hooks = (
        backbone_of(model).register_forward_hook(keep_states),
        head.register_forward_hook(give_known),
    )
    try:
        logits_1TV = text_logits(model, input_ids_1T)
    finally:
        for hook in hooks:
            hook.remove()
    numbers, simple = _constants(model)
    given_V, shown_V = _some(known_V), _some(logits_1TV[0, -1])
    ratios = [one / other for one, other in product(numbers, numbers)]
    before: Function | None = (1.0, None)
    after = _best(shown_V, given_V, [(scale, None) for scale in simple])
    if "states" in seen:  # its own forward may pass the module by that the states come from
        states_V, read_V = _some(seen["states"][0, -1]), _some(seen["read"][0, -1])
        before = _best(read_V, states_V, [(scale, None) for scale in (*simple, *ratios)])
    if after is None:
        after = _best(shown_V, given_V, list(product(simple, numbers)))
    if before is None or after is None:
        raise ModelError(
            f"{model.config.model_type}: it changes its logits behind its output layer in a way"
            " that no loss here knows; take another base"
        )
    return before[0] * after[0], after[1]


def text_logits(model: "PreTrainedModel", input_ids_1T: Tensor) -> Tensor:
    """Logits (1, T, V) of the model's own forward pass of one text."""
    mask_1T = torch.ones_like(input_ids_1T)
    logits_1TV: Tensor = model(
        input_ids=input_ids_1T, attention_mask=mask_1T, **without_cache(model)
    ).logits
    return logits_1TV


def without_cache(model: nn.Module) -> dict[str, bool]:
    """A cache costs memory and is of no use here; not every model has one."""
    takes = inspect.signature(model.forward).parameters
    return {"use_cache": False} if "use_cache" in takes else {}


def _some(values: Tensor) -> Tensor:
    """Some of the values, from the first to the last, in float64 on the CPU."""
    places = torch.linspace(0, len(values) - 1, min(len(values), _MOST_COLUMNS)).long()
    return values.detach()[places.to(values.device)].double().cpu()


def _constants(model: "PreTrainedModel") -> tuple[list[float], list[float]]:
    """The numbers of the config; and 1, these numbers and their inverses."""
    settings: Any = model.config.get_text_config()
    numbers = [
        float(value)
        for value in settings.to_dict().values()
        if isinstance(value, int | float) and not isinstance(value, bool) and value
    ]
    simple = [1.0, *numbers, *(1 / number for number in numbers)]
    return list(dict.fromkeys(numbers)), list(dict.fromkeys(simple))


def _best(shown_V: Tensor, given_V: Tensor, functions: Sequence[Function]) -> Function | None:
    """The simplest scale and cap among those that make the given values the shown ones."""
    best, least = None, _TOLERANCE * float(shown_V.abs().max().clamp_min(1e-30))
    for scale, cap in functions:
        value_V = given_V * scale
        if cap is not None:
            value_V = cap * torch.tanh(value_V / cap)
        error = float((value_V - shown_V).abs().max())
        if error * _CLOSE < least or (best is None and error <= least):
            best, least = (scale, cap), error
    return best
