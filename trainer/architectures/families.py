"""FAMILIES: everything that is known of a model type, in one entry, without building the model.

Sources: the forward passes of transformers 5 for GPT-2, GPTBigCode (StarCoder) and the Llama family
(Llama, Mistral, Qwen2, Code Llama, DeepSeek-Coder). A test compares every count with the model on
the meta device. Target modules: Astraios (Zhuo et al. 2024) for GPTBigCode; for other families
LLM-Adapters (Hu et al. 2023) and, for IA3, PEFT.

A type without an entry needs none: `derived` reads its sizes off transformers' model.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from data.errors import parsing
from trainer.architectures.shapes import Linear, ModelShape
from trainer.errors import ModelError

_GPT_MODULES = {
    "ia3": ("c_attn", "mlp.c_proj"),
    "adapter_h": ("c_fc", "mlp.c_proj"),
    "adapter_p": ("mlp.c_proj",),
    "parallel": ("c_attn",),
}
_LLAMA_MODULES = {
    "ia3": ("k_proj", "v_proj", "down_proj"),
    "adapter_h": ("gate_proj", "up_proj", "down_proj"),
    "adapter_p": ("down_proj",),
    "parallel": ("q_proj", "k_proj", "v_proj"),
}


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
        auto_modules=_GPT_MODULES,
    )


def _llama(config: Mapping[str, Any]) -> ModelShape:
    hidden, inner = config.get("hidden_size", 4096), int(config.get("intermediate_size", 11008))
    num_heads = int(config.get("num_attention_heads", 32))
    head_size = config.get("head_dim") or hidden // num_heads
    kv_size = (config.get("num_key_value_heads") or num_heads) * head_size
    bias = bool(config.get("attention_bias", config["model_type"] == "qwen2"))
    out_bias = bias and config["model_type"] != "qwen2"
    mlp_bias = bool(config.get("mlp_bias", False))
    width = num_heads * head_size
    return ModelShape(
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
        attention_dropout=config.get("attention_dropout", 0.0),
        activation_copies=3,  # gate, up and silu(gate)
        auto_modules=_LLAMA_MODULES,
        has_fp32_norms=True,
        repeats_keys=True,
    )


FAMILIES: dict[str, Callable[[Mapping[str, Any]], ModelShape]] = {
    "gpt2": _gpt,
    "gpt_bigcode": _gpt,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
}
"""model_type of config.json -> the shape of such a model."""


def model_shape(config: Mapping[str, Any], *, is_language: bool = False) -> ModelShape:
    """The shape of a model from the content of its config.json.

    Raises:
        ModelError: A type that has no entry, and that transformers does not build.
    """
    kind = config.get("model_type")
    what = f"model_type {kind!r}: transformers builds no such model"
    with parsing(what, ModelError, "take another, or fetch config.json again"):
        return _shape(config, kind, is_language)


def _shape(config: Mapping[str, Any], kind: Any, is_language: bool) -> ModelShape:
    if kind not in FAMILIES:
        from trainer.architectures.derived import derived_shape  # imports torch

        return derived_shape(config, is_language=is_language)
    shape = FAMILIES[kind](config)
    if not is_language:
        return shape
    is_tied = config.get("tie_word_embeddings", shape.positions > 0)
    return replace(shape, head="tied" if is_tied else "vocabulary")
