"""The sizes of a model and what follows from them, whatever its type."""

from collections.abc import Mapping
from dataclasses import dataclass

NUM_CLASSES = 2
WIDTHS = (2, 4)
"""Bytes of an activation."""
ATTENTION = "attention"
"""What a linear layer reads that follows attention."""

QUERY, KEY_VALUE, INNER, LAST = "query", "key_value", "inner", "last"
"""Roles of linear layers: what they make for attention; of the feed-forward, the layers before its
activation and the one behind it."""

# Roles of the layers of target_modules auto. ia3: Liu et al. 2022; the others: LLM-Adapters (Hu et
# al. 2023) and, for GPTBigCode, Astraios (Zhuo et al. 2024).
AUTO: Mapping[str, frozenset[str]] = {
    "ia3": frozenset({KEY_VALUE, LAST}),
    "adapter_h": frozenset({INNER, LAST}),
    "adapter_p": frozenset({LAST}),
    "parallel": frozenset({QUERY, KEY_VALUE}),
}


@dataclass(frozen=True)
class Linear:
    """A linear layer, which several blocks may have.

    Attributes:
        path: Name of the module within a block, e.g. "attn.c_attn".
        reads: Layers of a block with the same `reads` share their input tensor; ATTENTION is what
            attention gives back; None: the model's forward pass does not call the layer.
        times: Number of blocks that have it.
        is_kept: Another layer keeps the input anyway.
        roles: Empty where they are not known.
    """

    path: str
    inputs: int
    outputs: int
    has_bias: bool
    reads: str | None
    times: int
    is_kept: bool = False
    roles: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def num_weights(self) -> int:
        """Elements of the weights of all blocks."""
        return self.times * self.inputs * self.outputs


@dataclass(frozen=True)
class PerToken:
    """A number of a token in a row of T tokens: each + growing * T."""

    each: float = 0.0
    growing: float = 0.0

    def at(self, length: float) -> float:
        """In a row of so many tokens."""
        return self.each + self.growing * length

    def __add__(self, other: "PerToken") -> "PerToken":
        """Of both."""
        return PerToken(self.each + other.each, self.growing + other.growing)


@dataclass(frozen=True)
class Kept:
    """Bytes of a token that a model keeps for its backward pass, without what adapters add.

    Attributes:
        blocks: Of all blocks, with queries, keys, values and outputs of attention.
        num_largest: How many times the block that keeps most they are.
        once: Outside of the blocks.
        first: What is kept before the first linear layer; no gradient reaches it unless the inputs
            are trained.
        written: Of all blocks, where no fused kernel of a CPU takes their attention.
    """

    blocks: PerToken
    num_largest: float
    once: float = 0.0
    first: float = 0.0
    written: PerToken = PerToken()


@dataclass(frozen=True)
class Attention:
    """What fused attention keeps of a token, over all blocks.

    Attributes:
        heads: Query heads; each keeps the logarithm of a sum.
        copied: Elements of keys and values that are added where each query head gets a copy.
        cached: Elements of keys and values, what a cache keeps of a token that was read.
    """

    heads: int = 0
    outputs: int = 0
    copied: int = 0
    has_dropout: bool = False
    cached: int = 0


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model.

    Attributes:
        positions: Longest record that learned positions allow; 0 where none are learned.
        num_backbone_parameters: Everything but the head.
        num_head_parameters: Of the output layer, where it is not the embedding.
        num_classes: Of a classifier's head.
        head: "classes", which is new and trained; or of a language model "tied", its embedding, or
            "vocabulary", a frozen layer of its own.
        num_expert_weights: Weights of stacked experts that a token meets; no linear layer has them.
        widest: Elements of a token in the widest tensor of a block.
        kept: By bytes of an activation.
        num_dropped: Elements of a token that dropout masks, over all blocks.
        mask_bytes: Of buffers: causal masks, a byte for every pair of positions.
        doubt: Why memory is a rule of thumb or not known; empty where it is neither.
    """

    num_layers: int
    hidden: int
    vocabulary: int
    positions: int
    linears: tuple[Linear, ...]
    num_backbone_parameters: int
    widest: PerToken
    kept: Mapping[int, Kept]
    attention: Attention = Attention()
    num_dropped: PerToken = PerToken()
    mask_bytes: int = 0
    num_expert_weights: float = 0.0
    num_head_parameters: int = 0
    num_classes: int = NUM_CLASSES
    head: str = "classes"
    doubt: str = ""

    @property
    def is_known(self) -> bool:
        """Whether its parameters are counted."""
        return self.num_backbone_parameters > 0

    @property
    def num_linear_weights(self) -> int:
        """Weights of all blocks' linear layers: what quantisation packs."""
        return sum(linear.num_weights for linear in self.linears)

    @property
    def num_used_weights(self) -> float:
        """Weights of the blocks that a token is multiplied with."""
        called = (linear.num_weights for linear in self.linears if linear.reads is not None)
        return sum(called) + self.num_expert_weights

    @property
    def num_other_parameters(self) -> int:
        """Embeddings, norms, biases, stacked experts and the head."""
        return self.num_parameters - self.num_linear_weights

    @property
    def num_new_parameters(self) -> int:
        """The classification head, which every method trains."""
        return self.num_head_parameters if self.head == "classes" else 0

    @property
    def num_parameters(self) -> int:
        """All of the model."""
        return self.num_backbone_parameters + self.num_head_parameters
