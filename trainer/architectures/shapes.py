"""The sizes of a model and what follows from them, whatever its type."""

from collections.abc import Mapping
from dataclasses import dataclass, field

NUM_CLASSES = 2


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block.

    Attributes:
        path: Name of the module within a block, e.g. "attn.c_attn".
        reads: Layers of a block with the same `reads` share their input tensor.
    """

    path: str
    inputs: int
    outputs: int
    has_bias: bool
    reads: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def num_weights(self) -> int:
        """Elements of the weight."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        num_layers, hidden, inner, num_heads, head_size, kv_size: kv_size is that of all key heads.
        vocabulary, positions: Rows of the embeddings; positions is 0 where they are rotary.
        linears: Of one block.
        dropout: Of residuals, active in training.
        attention_dropout: Of probabilities.
        activation_copies: Tensors of size `inner` that the activation keeps for its backward pass.
        mask_bytes: Of the causal masks kept as buffers, a byte for every pair of positions.
        auto_modules: Layers of target_modules auto, by method; LoRA adapts every linear layer.
        has_fp32_norms: Norms keep an fp32 copy of their input, as Llama's do.
        repeats_keys: Keys of grouped heads are copied for every query head before whole-row
            attention.
        head: "classes", which is new and trained; or of a language model "tied", its embedding, or
            "vocabulary", a frozen layer of its own.
    """

    num_layers: int
    hidden: int
    inner: int
    num_heads: int
    head_size: int
    kv_size: int
    vocabulary: int
    positions: int
    linears: tuple[Linear, ...]
    num_norm_weights: int
    activation_copies: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mask_bytes: int = 0
    auto_modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_fp32_norms: bool = False
    repeats_keys: bool = False
    num_unlisted_parameters: int = 0
    head: str = "classes"

    @property
    def num_linear_weights(self) -> int:
        """Weights of all blocks' linear layers: what quantisation packs."""
        return self.num_layers * sum(linear.num_weights for linear in self.linears)

    @property
    def num_other_parameters(self) -> int:
        """Embeddings, norms, biases and the head."""
        embeddings = (self.vocabulary + self.positions) * self.hidden
        biases = sum(linear.outputs for linear in self.linears if linear.has_bias)
        norms = (2 * self.num_layers + 1) * self.num_norm_weights
        blocks = norms + self.num_layers * biases
        return embeddings + blocks + self.num_unlisted_parameters + self.num_head_parameters

    @property
    def num_head_parameters(self) -> int:
        """Parameters of the output layer, where it is not the embedding."""
        rows = {"classes": NUM_CLASSES, "tied": 0, "vocabulary": self.vocabulary}
        return rows[self.head] * self.hidden

    @property
    def num_new_parameters(self) -> int:
        """The classification head, which every method trains."""
        return self.num_head_parameters if self.head == "classes" else 0

    @property
    def num_parameters(self) -> int:
        """All of the model."""
        return self.num_linear_weights + self.num_other_parameters
