"""What the linear layers of a block are for, by what a forward pass hands from one to the next.

Every linear layer's output, every output of attention and the embeddings are cut off from what
made them. A gradient then reaches only the last of these that a tensor was made of: its sources.

    query, key_value   sources of what attention gets
    last               its sources are layers that read the residual and nothing else is among them;
                       it gives back to the residual
    inner              the sources of such a layer
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from trainer.architectures.derived import is_linear, stacked_parameters, within_block
from trainer.architectures.shapes import INNER, KEY_VALUE, LAST, QUERY
from trainer.architectures.traced import Replacing, run, sizes_of_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTH = 8
_EMBEDDED, _ATTENTION = "the embeddings", "attention"
Sources = frozenset[str]


def roles_of(backbone: "PreTrainedModel") -> dict[str, frozenset[str]]:
    """Path within a block -> roles.

    Empty where a block has no fused attention, where a convolution mixes tokens, and where
    something else than linear layers makes what attention gets. Where experts are stacked no linear
    layer is the feed-forward.
    """
    if any(isinstance(module, nn.modules.conv._ConvNd) for module in backbone.modules()):
        return {}
    flow = _Flow(backbone)
    hooks = flow.hooks()
    try:
        with flow, torch.enable_grad():
            states = run(backbone, sizes_of_ids(1, _LENGTH))
    except RuntimeError:  # it needs values, or gives attention what needs no gradient
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    roles = flow.roles(states.shape[-1])
    if stacked_parameters(backbone):
        return {path: found - {INNER, LAST} for path, found in roles.items()}
    return roles


class _Flow(Replacing):
    """Notes the sources of what linear layers read and of what attention gets."""

    def __init__(self, backbone: "PreTrainedModel") -> None:
        super().__init__({scaled_dot_product_attention: self._attend})
        self.backbone = backbone
        self._cut: list[tuple[str, Tensor]] = []
        self._sources: dict[str, Sources] = {}  # by path, of what a layer reads
        self._widths: dict[str, int] = {}
        self._queries: Sources = frozenset()
        self._keys: Sources = frozenset()
        self._attends: list[bool] = []  # by block

    def hooks(self) -> list[Any]:
        """Cut the outputs of linear layers and embeddings off."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        table, added = self.backbone.get_input_embeddings().weight, []
        for name, module in self.backbone.named_modules():
            if is_linear(module):
                added.append(module.register_forward_hook(self._after(within_block(name))))
            if getattr(module, "weight", None) is table:
                added.append(
                    module.register_forward_hook(lambda _, args, out: self._cut_off(_EMBEDDED, out))
                )
            if isinstance(module, GradientCheckpointingLayer):
                added.append(
                    module.register_forward_pre_hook(lambda _, args: self._attends.append(False))
                )
        return added

    def roles(self, hidden: int) -> dict[str, frozenset[str]]:
        """Of the layers that were called; `hidden` is the width of the residual."""
        of_attention = self._queries | self._keys
        if not (self._attends and all(self._attends) and of_attention <= self._sources.keys()):
            return {}
        readers = {path for path, sources in self._sources.items() if _EMBEDDED in sources}
        lasts = {
            path: sources
            for path, sources in self._sources.items()
            if self._widths[path] == hidden
            and path not in of_attention
            and sources
            and sources <= readers - of_attention
        }
        layers = {
            QUERY: self._queries,
            KEY_VALUE: self._keys,
            INNER: frozenset().union(*lasts.values()),
            LAST: frozenset(lasts),
        }
        return {
            path: frozenset(role for role, paths in layers.items() if path in paths)
            for path in self._sources
        }

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        self._queries |= self._sources_of(query)
        self._keys |= self._sources_of(key) | self._sources_of(value)
        self._attends[-1:] = [True]
        return self._cut_off(_ATTENTION, query.new_empty(*query.shape[:-1], value.shape[-1]))

    def _after(self, path: str) -> Callable[..., Tensor]:
        def seen(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            if path not in self._sources and args:
                self._sources[path], self._widths[path] = self._sources_of(args[0]), out.shape[-1]
            return self._cut_off(path, out)

        return seen

    def _cut_off(self, path: str, tensor: Tensor) -> Tensor:
        leaf = tensor.detach().requires_grad_()
        self._cut.append((path, leaf))
        return leaf.clone()  # what follows may write into it

    def _sources_of(self, tensor: Tensor) -> Sources:
        if not tensor.requires_grad:
            return frozenset()
        leaves = [leaf for _, leaf in self._cut]
        gradients = torch.autograd.grad(tensor.sum(), leaves, allow_unused=True, retain_graph=True)
        pairs = zip(self._cut, gradients, strict=True)
        return frozenset(path for (path, _), gradient in pairs if gradient is not None)
