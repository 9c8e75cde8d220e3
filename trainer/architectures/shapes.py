"""The sizes of a model, read from its config.json without building it.

Sources: the forward passes of transformers 5 for GPT-2, GPTBigCode (StarCoder) and the Llama family
(Llama, Mistral, Qwen2, Code Llama, DeepSeek-Coder). A test compares every count with the model on
the meta device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.errors import ModelError

NUM_CLASSES = 2
FAMILIES = {
    "gpt2": "gpt", "gpt_bigcode": "gpt", "llama": "llama", "mistral": "llama", "qwen2": "llama"
}  # fmt: skip


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block.

    Attributes:
        path: Name of the module within a block, e.g. "attn.c_attn".
        inputs, outputs: Features.
        has_bias: Whether there is one.
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
        family: "gpt" (GPT-2, GPTBigCode) or "llama".
        num_layers, hidden, inner, num_heads, head_size, kv_size: kv_size is that of all key heads.
        vocabulary, positions: Rows of the embeddings; positions is 0 where they are rotary.
        linears: Of one block.
        num_norm_weights: Elements of one norm.
        dropout: Of residuals, active in training.
        attention_dropout: Of probabilities.
        activation_copies: Tensors of size `inner` that the activation keeps for its backward pass.
        mask_bytes: Of the causal masks kept as buffers, a byte for every pair of positions.
        head: "classes", which is new and trained; or of a language model "tied", its embedding, or
            "vocabulary", a frozen layer of its own.
    """

    family: str
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
    dropout: float
    attention_dropout: float
    activation_copies: int
    mask_bytes: int
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
        return embeddings + norms + self.num_layers * biases + self.num_head_parameters

    @property
    def num_head_parameters(self) -> int:
        """What stands on the backbone, and not in it."""
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


def model_shape(config: Mapping[str, Any], *, is_language: bool = False) -> ModelShape:
    """The shape of a model from the content of its config.json.

    Args:
        config: That content.
        is_language: The task learns tokens, not classes.

    Raises:
        ModelError: A family whose sizes are not known here.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(
            f"the planner does not know model_type {kind!r}; it knows {sorted(FAMILIES)}"
        )
    shape = _SHAPES[FAMILIES[kind]](config)
    if not is_language:
        return shape
    is_tied = config.get("tie_word_embeddings", shape.family == "gpt")
    return replace(shape, head="tied" if is_tied else "vocabulary")


def _gpt(config: Mapping[str, Any]) -> ModelShape:
    is_big_code = config["model_type"] == "gpt_bigcode"
    hidden, num_heads = config.get("n_embd", 768), config.get("n_head", 12)
    num_layers, positions = config.get("n_layer", 12), config.get("n_positions", 1024)
    inner = config.get("n_inner") or 4 * hidden
    head_size = hidden // num_heads
    kv_size = head_size if is_big_code and config.get("multi_query", True) else hidden
    activation = config.get(
        "activation_function", "gelu_pytorch_tanh" if is_big_code else "gelu_new"
    )
    return ModelShape(
        family="gpt",
        num_layers=num_layers,
        hidden=hidden,
        inner=inner,
        num_heads=num_heads,
        head_size=head_size,
        kv_size=kv_size,
        vocabulary=config.get("vocab_size", 50257),
        positions=positions,
        linears=(
            Linear("attn.c_attn", hidden, hidden + 2 * kv_size, True, "norm_1"),
            Linear("attn.c_proj", hidden, hidden, True, "attention"),
            Linear("mlp.c_fc", hidden, inner, True, "norm_2"),
            Linear("mlp.c_proj", inner, hidden, True, "activation"),
        ),
        num_norm_weights=2 * hidden,
        dropout=config.get("resid_pdrop", 0.1),
        attention_dropout=config.get("attn_pdrop", 0.1),
        mask_bytes=positions**2 if is_big_code else 0,
        activation_copies=4 if activation == "gelu_new" else 1,  # written in Python, or one kernel
    )


def _llama(config: Mapping[str, Any]) -> ModelShape:
    hidden, inner = config.get("hidden_size", 4096), config.get("intermediate_size", 11008)
    num_heads = config.get("num_attention_heads", 32)
    head_size = config.get("head_dim") or hidden // num_heads
    kv_size = (config.get("num_key_value_heads") or num_heads) * head_size
    bias = bool(config.get("attention_bias", config["model_type"] == "qwen2"))
    out_bias = bias and config["model_type"] != "qwen2"
    mlp_bias = bool(config.get("mlp_bias", False))
    width = num_heads * head_size
    return ModelShape(
        family="llama",
        num_layers=config.get("num_hidden_layers", 32),
        hidden=hidden,
        inner=inner,
        num_heads=num_heads,
        head_size=head_size,
        kv_size=kv_size,
        vocabulary=config.get("vocab_size", 32000),
        positions=0,
        linears=(
            Linear("self_attn.q_proj", hidden, width, bias, "norm_1"),
            Linear("self_attn.k_proj", hidden, kv_size, bias, "norm_1"),
            Linear("self_attn.v_proj", hidden, kv_size, bias, "norm_1"),
            Linear("self_attn.o_proj", width, hidden, out_bias, "attention"),
            Linear("mlp.gate_proj", hidden, inner, mlp_bias, "norm_2"),
            Linear("mlp.up_proj", hidden, inner, mlp_bias, "norm_2"),
            Linear("mlp.down_proj", inner, hidden, mlp_bias, "activation"),
        ),
        num_norm_weights=hidden,
        dropout=0.0,
        attention_dropout=config.get("attention_dropout", 0.0),
        mask_bytes=0,
        activation_copies=3,  # gate, up and silu(gate)
    )


_SHAPES = {"gpt": _gpt, "llama": _llama}
