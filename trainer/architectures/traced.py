"""What a model's own code keeps for its backward pass, watched on the meta device.

Tensors there have sizes and no data, so a forward pass of a model of any size costs milliseconds.
Fused attention and dropout are replaced by what their kernels keep. Rows of two lengths show what
grows with the row: scores that are written out.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from trainer.architectures.derived import is_linear, stacked_parameters
from trainer.architectures.shapes import Attention, Kept, PerToken

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTHS = (256, 512)  # state-space models compute in chunks of up to 256 tokens
_OUTSIDE = -1  # of the blocks


@dataclass(frozen=True)
class _Storage:
    """Memory that is alive when the backward pass begins."""

    num_bytes: int
    block: int
    is_first: bool  # kept before the first linear layer was called
    is_mask: bool  # of dropout
    is_written: bool  # scores of attention for which a CPU has no fused kernel


@dataclass
class Trace:
    """A forward pass of one row.

    Attributes:
        storages: By address, in the order they are kept.
        reads: Path of a linear layer -> address of the tensor it reads; not of a layer that is
            called with anything else.
        attended: Addresses of what attention gives back.
        experts: Path of a module with stacked experts -> how many of them a token meets.
    """

    hidden: int = 0
    storages: dict[int, _Storage] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    attended: set[int] = field(default_factory=set)
    num_blocks: int = 0
    attention: Attention = field(default_factory=Attention)
    experts: dict[str, int] = field(default_factory=dict)


def traced(backbone: "PreTrainedModel", length: int) -> Trace:
    """Watch a forward pass of one row of so many tokens; what requires no gradient is frozen."""
    watch = _Watch(backbone)
    with watch.hooks(), watch, torch.enable_grad():
        watch.trace.hidden = run(backbone, sizes_of_ids(1, length)).shape[-1]
    return watch.trace


def sizes_of_ids(*sizes: int) -> Tensor:
    """Token ids that have sizes alone."""
    return torch.ones(sizes, dtype=torch.long, device="meta")


def run(backbone: "PreTrainedModel", input_ids: Tensor) -> Tensor:
    """The last hidden states of rows, on the device of their ids."""
    takes = inspect.signature(backbone.forward).parameters
    inputs: dict[str, Any] = {"input_ids": input_ids}
    if "attention_mask" in takes:  # without one some models look for padding among the ids
        inputs["attention_mask"] = torch.ones_like(input_ids)
    if "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = input_ids
    if "use_cache" in takes:
        inputs["use_cache"] = False
    states: Tensor = backbone(**inputs)[0]
    return states


def kept_by(short: Trace, long: Trace, num_layers: int) -> tuple[Kept, PerToken, PerToken]:
    """What is kept, and in bytes the dropout masks and the widest tensor of a block.

    Args:
        short, long: Of rows of `LENGTHS`.
        num_layers: Blocks, where the model does not say which modules are.
    """
    storages = list(long.storages.values())
    sizes: Sequence[float] = [one.num_bytes for one in short.storages.values()]
    if len(sizes) != len(storages):  # a loop over tokens, each of which keeps the same
        sizes = [one.num_bytes * LENGTHS[0] / LENGTHS[1] for one in storages]
    of_tokens = [_per_token(a, one.num_bytes) for a, one in zip(sizes, storages, strict=True)]
    pairs = list(zip(storages, of_tokens, strict=True))
    masks = _sum(size for one, size in pairs if one.is_mask)
    written = _sum(size for one, size in pairs if one.is_written)
    pairs = [(one, size) for one, size in pairs if not (one.is_mask or one.is_written)]
    inside = [(one, size) for one, size in pairs if one.block != _OUTSIDE or not long.num_blocks]
    blocks = dict.fromkeys((one.block for one, _ in inside), 0.0)
    for one, size in inside:
        blocks[one.block] += size.at(LENGTHS[1])
    kept = Kept(
        blocks=_sum(size for _, size in inside),
        num_largest=sum(blocks.values()) / max(blocks.values()) if long.num_blocks else num_layers,
        once=_sum(size for one, size in pairs if (one, size) not in inside).each,
        first=sum(size.each for one, size in pairs if one.is_first),
        written=written,
    )
    widest = max((size for _, size in inside), key=lambda size: size.at(LENGTHS[1]))
    return kept, masks, widest


def _per_token(short: float, long: float) -> PerToken:
    """The a + b T of a token, where rows keep a T + b T^2; what does not grow is a table."""
    if short == long:
        return PerToken()
    growing = (long / LENGTHS[1] - short / LENGTHS[0]) / (LENGTHS[1] - LENGTHS[0])
    return PerToken(long / LENGTHS[1] - growing * LENGTHS[1], growing)


def _sum(sizes: "Iterator[PerToken]") -> PerToken:
    return sum(sizes, PerToken())


class _FusedAttention(torch.autograd.Function):
    """Keeps what flash and memory-efficient kernels keep.

    B rows, H heads, T tokens, D head size
    """

    @staticmethod
    def forward(
        ctx: Any, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, mask: Tensor | None
    ) -> Tensor:
        *rows, num_heads, length, _ = query_BHTD.shape
        out = query_BHTD.new_empty(*rows, length, num_heads, value_BHTD.shape[-1]).transpose(-2, -3)
        log_sums = query_BHTD.new_empty(query_BHTD.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query_BHTD, key_BHTD, value_BHTD, mask, out, log_sums)
        return out


class Replacing(TorchFunctionMode):
    """Runs functions of torch on tensors that have sizes alone, some of them by others."""

    def __init__(self, others: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._others = others

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the other function, or the one that is called."""
        kwargs = kwargs or {}
        if function in self._others:
            return self._others[function](*args, **kwargs)
        return _without_values(function, args, kwargs)


class _Watch(Replacing):
    """Notes what is kept, by which block, and what linear layers read."""

    def __init__(self, backbone: "PreTrainedModel") -> None:
        super().__init__({scaled_dot_product_attention: self._attend, dropout: self._drop})
        self.backbone, self.trace = backbone, Trace()
        tensors = [*backbone.parameters(), *backbone.buffers()]
        self._weights = {_address(tensor) for tensor in tensors}
        self._alive: list[Tensor] = []  # an address is a tensor's own as long as it is
        self._masks: set[int] = set()
        self._block, self._depth = _OUTSIDE, 0
        self._is_written = False

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch the backbone's modules and what its operations keep."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        table, added = self.backbone.get_input_embeddings().weight, []
        experts = {name.rpartition(".")[0] for name in stacked_parameters(self.backbone)}
        for path, module in self.backbone.named_modules():
            if getattr(module, "weight", None) is table:  # encoder and decoder share one
                added.append(module.register_forward_hook(_trained))
            if is_linear(module):
                hook = self._reading(path)
                added.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            if path in experts:
                hook = self._choosing(path)
                added.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            if isinstance(module, GradientCheckpointingLayer):
                added.append(module.register_forward_pre_hook(self._enter))
                added.append(module.register_forward_hook(self._leave))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield
        finally:
            for hook in added:
                hook.remove()

    def _keep(self, tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address not in self._weights and address not in self.trace.storages:
            self._alive.append(tensor)
            self.trace.storages[address] = _Storage(
                tensor.untyped_storage().nbytes(),
                self._block,
                not self.trace.reads,
                address in self._masks,
                self._is_written,
            )
        return tensor

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        given = dict(zip(("attn_mask", "dropout_p"), args, strict=False)) | kwargs
        heads, key_heads = query.shape[-3], key.shape[-3]
        if heads != key_heads and not given.get("enable_gqa"):  # no fused kernel takes this
            written: Tensor = scaled_dot_product_attention(query, key, value, *args, **kwargs)
            return written
        is_dropped, mask = bool(given.get("dropout_p")), given.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            mask = mask.to(query.dtype)
        out: Tensor = _FusedAttention.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
        self._alive.append(out)
        self.trace.attended.add(_address(out))
        length, before = query.shape[-2], self.trace.attention
        copies = heads // key_heads - 1 if key_heads > 1 else 0  # one is viewed as many
        self.trace.attention = Attention(
            before.heads + heads,
            before.outputs + out.numel() // length,
            before.copied + copies * (key.numel() + value.numel()) // length,
            before.has_dropout or is_dropped,
            before.cached + (key.numel() + value.numel()) // length,
        )
        if is_dropped or query.shape[-1] != value.shape[-1]:  # what a CPU keeps more
            self._is_written = True
            scaled_dot_product_attention(query, key, value, *args, **kwargs)
            self._is_written = False
        return out

    def _drop(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not (p and training):
            return x
        mask = torch.empty_like(x)
        self._alive.append(mask)
        self._masks.add(_address(mask))
        return x * mask

    def _reading(self, path: str) -> Callable[..., None]:
        def seen(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
                self._alive.append(args[0])
                self.trace.reads[path] = _address(args[0])

        return seen

    def _choosing(self, path: str) -> Callable[..., None]:
        def seen(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
            chosen = [one.shape[-1] for one in given if not one.is_floating_point()]
            self.trace.experts[path] = chosen[0] if chosen else 1

        return seen

    def _enter(self, *_: Any) -> None:
        if not self._depth:
            self._block = self.trace.num_blocks
            self.trace.num_blocks += 1
        self._depth += 1

    def _leave(self, *_: Any) -> None:
        self._depth -= 1
        if not self._depth:
            self._block = _OUTSIDE


def _without_values(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Run a function of torch on tensors that have sizes alone."""
    if function is torch._grouped_mm:  # of stacked experts; it knows bf16 alone here
        return args[0] @ args[1][0]
    if function is Tensor.__bool__:  # of masks: nothing is padding, all is one record
        return True
    return function(*args, **kwargs)


def _trained(_: nn.Module, args: Any, embedded: Tensor) -> Tensor:
    return embedded if embedded.requires_grad else embedded.requires_grad_().clone()


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
