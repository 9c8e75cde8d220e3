"""FAMILIES: everything that is known of a model type, in one entry, without building the model.

Sources: the forward passes of transformers 5 for GPT-2, GPTBigCode (StarCoder) and the Llama family
(Llama, Mistral, Qwen2, Code Llama, DeepSeek-Coder). A test compares every count with the model on
the meta device.

A type without an entry needs none: `meta_model` reads its sizes off transformers' model.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from trainer.architectures.meta_model import derived_shape, not_built
from trainer.architectures.shapes import (
    ATTENTION,
    INNER,
    KEY_VALUE,
    LAST,
    NUM_CLASSES,
    QUERY,
    WIDTHS,
    Attention,
    Kept,
    Linear,
    ModelShape,
    PerToken,
)

_ATTENDS = frozenset({QUERY, KEY_VALUE})
_QUERY, _KEYS = frozenset({QUERY}), frozenset({KEY_VALUE})
_INNER, _LAST = frozenset({INNER}), frozenset({LAST})


def _gpt(config: Mapping[str, Any]) -> ModelShape:
    is_big_code = config["model_type"] == "gpt_bigcode"
    hidden, num_heads = config.get("n_embd", 768), config.get("n_head", 12)
    num_layers, positions = config.get("n_layer", 12), config.get("n_positions", 1024)
    inner = config.get("n_inner") or 4 * hidden
    kv_size = hidden
    if is_big_code and config.get("multi_query", True):
        kv_size = hidden // num_heads
    activation = config.get(
        "activation_function", "gelu_pytorch_tanh" if is_big_code else "gelu_new"
    )
    copies = 4 if activation == "gelu_new" else 1  # written in Python, or one kernel
    linears = (
        Linear(
            "attn.c_attn", hidden, hidden + 2 * kv_size, True, "norm_1", num_layers, roles=_ATTENDS
        ),
        Linear("attn.c_proj", hidden, hidden, True, ATTENTION, num_layers),
        Linear("mlp.c_fc", hidden, inner, True, "norm_2", num_layers, roles=_INNER),
        Linear("mlp.c_proj", inner, hidden, True, "activation", num_layers, roles=_LAST),
    )
    vocabulary, norm = config.get("vocab_size", 50257), 2 * hidden
    kept = 2 * hidden + 2 * kv_size + copies * inner
    return ModelShape(
        num_layers=num_layers,
        hidden=hidden,
        vocabulary=vocabulary,
        positions=positions,
        linears=linears,
        num_backbone_parameters=_num_parameters(linears, vocabulary + positions, hidden, norm),
        widest=PerToken(inner),
        # Norms keep their input and two statistics of 4 bytes.
        kept={
            w: _kept(num_layers, w * kept + 4 * num_heads, w * hidden + 8, w * hidden)
            for w in WIDTHS
        },
        attention=Attention(
            num_layers * num_heads,
            num_layers * hidden,
            has_dropout=config.get("attn_pdrop", 0.1) > 0,
            cached=2 * num_layers * kv_size,
        ),
        num_dropped=PerToken(2 * num_layers * hidden if config.get("resid_pdrop", 0.1) else 0),
        mask_bytes=positions**2 if is_big_code else 0,
    )


def _llama(config: Mapping[str, Any]) -> ModelShape:
    hidden, inner = config.get("hidden_size", 4096), int(config.get("intermediate_size", 11008))
    num_heads = int(config.get("num_attention_heads", 32))
    head_size = config.get("head_dim") or hidden // num_heads
    kv_size = (config.get("num_key_value_heads") or num_heads) * head_size
    bias = bool(config.get("attention_bias", config["model_type"] == "qwen2"))
    out_bias = bias and config["model_type"] != "qwen2"
    mlp_bias = bool(config.get("mlp_bias", False))
    num_layers, width = config.get("num_hidden_layers", 32), num_heads * head_size
    linears = (
        Linear("self_attn.q_proj", hidden, width, bias, "norm_1", num_layers, roles=_QUERY),
        Linear("self_attn.k_proj", hidden, kv_size, bias, "norm_1", num_layers, roles=_KEYS),
        Linear("self_attn.v_proj", hidden, kv_size, bias, "norm_1", num_layers, roles=_KEYS),
        Linear("self_attn.o_proj", width, hidden, out_bias, ATTENTION, num_layers),
        Linear("mlp.gate_proj", hidden, inner, mlp_bias, "norm_2", num_layers, roles=_INNER),
        Linear("mlp.up_proj", hidden, inner, mlp_bias, "norm_2", num_layers, roles=_INNER),
        Linear("mlp.down_proj", inner, hidden, mlp_bias, "activation", num_layers, roles=_LAST),
    )
    vocabulary = config.get("vocab_size", 32000)
    kept = 2 * width + 2 * kv_size + 3 * inner  # gate, up and silu(gate)
    return ModelShape(
        num_layers=num_layers,
        hidden=hidden,
        vocabulary=vocabulary,
        positions=0,
        linears=linears,
        num_backbone_parameters=_num_parameters(linears, vocabulary, hidden, hidden),
        widest=PerToken(inner),
        # Norms keep an fp32 copy of their input and a statistic; rotary tables serve all blocks.
        kept={
            w: _kept(
                num_layers, w * kept + 4 * num_heads, 4 * hidden + 4, w * (hidden + 2 * head_size)
            )
            for w in WIDTHS
        },
        attention=Attention(
            num_layers * num_heads,
            num_layers * width,
            2 * num_layers * (width - kv_size),
            has_dropout=config.get("attention_dropout", 0.0) > 0,
            cached=2 * num_layers * kv_size,
        ),
    )


def _kept(num_layers: int, block: float, norm: float, once: float) -> Kept:
    """Of blocks that keep so much beside two norms each."""
    return Kept(PerToken(num_layers * (block + 2 * norm)), num_layers, once, norm)


def _num_parameters(linears: tuple[Linear, ...], rows: int, hidden: int, norm: int) -> int:
    """Of embeddings with so many rows, linear layers, two norms a block and one behind them."""
    biases = sum(one.times * one.outputs for one in linears if one.has_bias)
    norms = (2 * linears[0].times + 1) * norm
    return rows * hidden + norms + biases + sum(one.num_weights for one in linears)


FAMILIES: dict[str, Callable[[Mapping[str, Any]], ModelShape]] = {
    "gpt2": _gpt,
    "gpt_bigcode": _gpt,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
}
"""model_type of config.json -> the shape of such a model."""


def model_shape(
    config: Mapping[str, Any],
    *,
    is_language: bool = False,
    pooling: str = "auto",
    method: str = "lora",
    num_classes: int = NUM_CLASSES,
) -> ModelShape:
    """The shape of a model from the content of its config.json; arguments as of `derived_shape`.

    Raises:
        ModelError: A type that has no entry, and that transformers does not build.
    """
    with not_built(config):
        entry = FAMILIES.get(config.get("model_type", ""))
        if entry is None:
            return derived_shape(config, None if is_language else pooling, method, num_classes)
        shape = entry(config)
    if not is_language:
        num_head = num_classes * shape.hidden
        return replace(shape, num_classes=num_classes, num_head_parameters=num_head)
    if config.get("tie_word_embeddings", shape.positions > 0):
        return replace(shape, head="tied", num_head_parameters=0)
    return replace(shape, head="vocabulary", num_head_parameters=shape.vocabulary * shape.hidden)
