"""Which linear layers of a backbone an adapter could train: one forward pass, run and watched.

The pass runs the model's own code on a twin whose tensors have no data (torch's meta device), so it
costs milliseconds whatever the size. Code that asks for values cannot run there; then the model
itself runs, on 64 tokens.

B rows, T tokens per row
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.architectures.derived import expert_pattern, forward_fault, is_conv1d, is_linear
from trainer.architectures.traced import Replacing, run, sizes_of_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHAPE_BT = (2, 32)
_FIRST_ID = 4  # pad, begin and end are below it in most vocabularies
_ROUNDING = 0.01  # of bf16, through two ways to compute a product

Called = dict[str, list[Tensor | None]]
"""Path of a layer -> its outputs; None for a call that a layer with an adapter does not know."""


def idle_layers(backbone: "PreTrainedModel", source: str = "") -> dict[str, str]:
    """Path of every linear layer that an adapter could not train -> why.

    A layer can be trained if each call takes one tensor and gives one, and a gradient comes back
    from the last hidden states. One of several experts that no token chose can be, too.

    Raises:
        ModelError: The backbone does not run on token ids and a mask.
    """
    called, read = _watched(backbone, source)
    layers = {name: module for name, module in backbone.named_modules() if is_linear(module)}
    siblings = {expert_pattern(name) for name in called if name != expert_pattern(name)}
    why = {}
    for name, layer in layers.items():
        if name not in called:
            if expert_pattern(name) not in siblings:
                why[name] = "not called"
        elif None in called[name]:
            why[name] = "takes or gives several tensors"
        elif name not in read:
            why[name] = "not part of the last hidden states"
        elif not _is_product(layer):
            why[name] = f"{type(layer).__name__} computes more than a product"
    return why


def _is_product(layer: Any) -> bool:
    """Whether a layer computes x W' + b and no more: a merged adapter becomes a part of W.

    Kinds that PEFT knows do. One with a forward of the model's own is tried on numbers.
    """
    is_quantised = type(layer).__module__.startswith("bitsandbytes")
    if type(layer).forward is nn.Linear.forward or is_conv1d(layer) or is_quantised:
        return True
    weight = layer.weight
    x = torch.arange(weight.shape[1], device=weight.device).cos().to(weight.dtype)
    with torch.no_grad():
        expected = nn.functional.linear(x, weight, layer.bias)
        difference = (layer(x) - expected).float().norm()
    return weight.is_meta or bool(difference <= _ROUNDING * expected.float().norm())


def _watched(backbone: "PreTrainedModel", source: str) -> tuple[Called, set[str]]:
    """The layers that a pass calls, and those that the last hidden states depend on."""
    with suppress(Exception), Replacing({}):
        return _pass(_twin(backbone), sizes_of_ids(*_SHAPE_BT))
    try:
        with _plain_attention(backbone):
            return _pass(backbone, _token_ids(backbone))
    except Exception as error:
        raise forward_fault(source, backbone.config.model_type, error) from error


def _twin(backbone: "PreTrainedModel") -> "PreTrainedModel":
    config = deepcopy(backbone.config)  # transformers writes into it
    with torch.device("meta"):  # bf16: the products of stacked experts know no other dtype there
        twin: PreTrainedModel = type(backbone)._from_config(
            config, attn_implementation="eager", dtype=torch.bfloat16
        )
    return twin.eval()


def _pass(model: "PreTrainedModel", input_ids: Tensor) -> tuple[Called, set[str]]:
    called: Called = {}

    def watch(name: str) -> Callable[..., None]:
        def seen(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
            is_one = len(args) == 1 and torch.is_tensor(args[0]) and not kwargs
            called.setdefault(name, []).append(out if is_one and torch.is_tensor(out) else None)

        return seen

    hooks = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in model.named_modules()
        if is_linear(module)
    ]
    try:
        with torch.enable_grad():
            last = run(model, input_ids)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = [
        (name, tensor)
        for name, tensors in called.items()
        for tensor in tensors
        if tensor is not None and tensor.requires_grad
    ]
    if not outputs:
        return called, set()
    gradients = torch.autograd.grad(last.sum(), [t for _, t in outputs], allow_unused=True)
    pairs = zip(outputs, gradients, strict=True)
    return called, {name for (name, _), gradient in pairs if gradient is not None}


def _token_ids(backbone: "PreTrainedModel") -> Tensor:
    """Of two rows."""
    rows, width = _SHAPE_BT
    vocabulary = backbone.config.get_text_config().vocab_size
    ids = (torch.arange(rows * width) % max(1, vocabulary - _FIRST_ID) + _FIRST_ID) % vocabulary
    given: Tensor = ids.view(_SHAPE_BT).to(backbone.device)
    return given


@contextmanager
def _plain_attention(backbone: "PreTrainedModel") -> Iterator[None]:
    """The run's own back end may need a GPU, or the boundaries of packed records."""
    chosen = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        backbone.set_attn_implementation(chosen)
