"""Tiny configs of the model types that transformers knows, shrunk from each type's own defaults.

`python tests/tiny_models.py FOLDER` writes FOLDER/NAME/config.json of every case.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WINDOW = 64  # of sliding attention, in tokens; the matrix has longer records
# What the integer behind a key becomes. A key that is missing here keeps its default.
_SIZES = {
    2048: "vocab_size vocab_size_per_layer_input unpadded_vocab_size",
    1026: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length",
    WINDOW: "sliding_window sliding_window_size window_size local_attention attention_chunk_size"
    " attention_window_size attention_window hidden_size d_model n_embd dim embedding_size"
    " embedding_dim emb_dim word_embed_proj_dim pooler_hidden_size lru_width position_buckets"
    " input_embedding_size output_embedding_size router_hidden_size prediction_head_size"
    " out_hidden_size true_hidden_size block_multiple_of dim_model_base intra_bottleneck_size",
    128: "intermediate_size d_ff d_inner ffn_hidden_size ffn_dim encoder_ffn_dim decoder_ffn_dim"
    " hidden_dim dff dim_ff intermediate_size_mlp dense_intermediate_size mamba_d_ssm"
    " attention_hidden_size",
    32: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size"
    " expert_ffn_hidden_size moe_shared_expert_intermediate_size q_lora_rank mamba_chunk_size"
    " chunk_size o_lora_rank attention_head_dim",
    24: "qk_head_dim",
    16: "head_dim d_kv d_head v_head_dim qk_nope_head_dim swa_head_dim global_head_dim kv_channels"
    " linear_key_head_dim linear_value_head_dim linear_head_dim kv_lora_rank mamba_d_state"
    " state_size ssm_state_size mamba_d_head mamba_head_dim mamba_headdim index_head_dim"
    " hidden_size_per_layer_input time_step_rank mamba_dt_rank laurel_rank dim_head adapter_rank",
    8: "qk_rope_head_dim rotary_dim mamba_n_heads mamba_num_heads n_mamba_heads",
    4: "num_attention_heads n_head num_heads n_heads attention_heads encoder_attention_heads"
    " decoder_attention_heads swa_num_attention_heads num_experts num_local_experts"
    " n_routed_experts moe_num_experts linear_num_value_heads linear_num_heads index_n_heads",
    2: "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers depth"
    " num_decoder_layers num_key_value_heads num_kv_heads swa_num_key_value_heads num_query_groups"
    " linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k topk_group"
    " n_groups n_group num_expert_group sliding_window_pattern _sliding_window_pattern"
    " no_rope_layer_interval global_attn_every_n_layers attn_layer_period expert_layer_period",
    1: "first_k_dense_replace num_dense_layers n_shared_experts num_shared_experts"
    " moe_num_shared_experts mamba_n_groups attn_layer_offset num_layers_per_stack",
}
_SIZE_OF = {key: size for size, keys in _SIZES.items() for key in keys.split()}
# Of data/samples/model, whose tokenizer all have.
_TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
_SPREADS = ("initializer_range", "init_std")  # of random weights: wide ones make a leak large
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")

# Language models, then the others: encoders, encoder-decoders, prefixes (cpmant), classifiers.
_DECODERS = """
afmoe apertus arcee aria_text bailing_hybrid bamba beam biogpt bitnet bloom codegen cohere cohere2
cohere2_moe ctrl cwm deepseek_v2 deepseek_v3 deepseek_v32 diffllama doge dots1 ernie4_5
ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo gemma gemma2 gemma3_text
gemma3n_text gemma4_text glm glm4 glm4_moe glm4_moe_lite gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox
gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoehybrid granitemoeshared helium
hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 jamba jetmoe
kimi_linear lfm2 lfm2_moe llama llama4_text longcat_flash mamba mamba2 mellum mimo_v2_flash
minicpm3 minimax minimax_m2 ministral ministral3 mistral mixtral modernbert-decoder mpt nanochat
nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi phi3 phimoe
qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_5_moe_text qwen3_moe qwen3_next recurrent_gemma seed_oss
smollm3 solar_open stablelm starcoder2 vaultgemma xglm youtu zamba2 zaya
"""
_ENCODERS = """
albert bart bert big_bird camembert convbert cpmant data2vec-text deberta deberta-v2 distilbert
electra ernie esmc eurobert fnet ibert jina_embeddings_v3 longformer megatron-bert mistral4
mobilebert modernbert mpnet mt5 nomic_bert nystromformer plbart rembert roberta
roberta-prelayernorm roformer squeezebert t5 umt5 xlm-roberta xlm-roberta-xl xlnet
"""
_NESTED = "gemma3 gemma4 llama4 qwen3_5 qwen3_5_moe"  # the decoder is their text_config

_KV4, _HEAD16 = {"num_key_value_heads": 4}, {"head_dim": 16}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
# What a type's defaults leave open, or what has to agree with another key.
_AGREE: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "esmc": _KV4,
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "intermediate_size": [128, 128],
        "activation_sparsity_pattern": [0.95, 0.0],
    },
    "granitemoehybrid": _HYBRID,
    "hunyuan_v1_dense": _HEAD16,
    "hunyuan_v1_moe": _HEAD16,
    "kimi_linear": {"num_expert_group": 1, "topk_group": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "ministral": _HEAD16,
    "nemotron": _KV4,
    "recurrent_gemma": {"num_hidden_layers": 3},  # attends in every third
    "t5": {"decoder_start_token_id": 1},
    "zaya": {"num_experts_per_tok": 1},
}
_SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 2}
# Settings that change what a type computes: name -> type, keys.
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom_post_norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "cohere_scaled": ("cohere", {"logit_scale": 0.5, "use_qk_norm": True}),
    "cohere2_scaled": ("cohere2", {"logit_scale": 0.25}),
    "falcon_alibi": ("falcon", {"alibi": True, "bias": True}),
    "falcon_new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma2_caps": (
        "gemma2", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 2.0},
    ),
    "gemma3_caps": ("gemma3_text", {"final_logit_softcapping": 2.0}),
    "glm4_biased": ("glm4", {"attention_bias": True, "tie_word_embeddings": True}),
    "gpt2_scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2_untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt_bigcode_heads": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox_sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "granite_scaled": (
        "granite",
        {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    ),
    "granitemoe_scaled": ("granitemoe", {"logits_scaling": 4.0, "attention_multiplier": 0.1}),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True, **_GROUPED}),
    "llama_llama3_rope": (
        "llama",
        {"rope_parameters": _LLAMA3 | {"original_max_position_embeddings": 128}, **_GROUPED},
    ),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_yarn": (
        "llama", {"rope_parameters": _YARN | {"original_max_position_embeddings": 128}}
    ),
    "mistral_whole": ("mistral", {"sliding_window": None}),
    "mixtral_sliding": ("mixtral", {"sliding_window": WINDOW}),
    "mpt_rotary": ("mpt", {"attn_config": {"alibi": False}}),
    "olmo_clipped": ("olmo", {"clip_qkv": 0.5}),
    "phi_qk_norm": ("phi", {"qk_layernorm": True}),
    "phi3_sliding": ("phi3", {"sliding_window": WINDOW}),
    "qwen2_sliding": ("qwen2", _SLIDING),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3_sliding": ("qwen3", _SLIDING | {"head_dim": 32}),
    "qwen3_moe_dense_first": ("qwen3_moe", {"mlp_only_layers": [0]}),
    "stablelm_parallel": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "starcoder2_sliding": ("starcoder2", {"sliding_window": WINDOW}),
    "t5_gated": ("t5", {"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 1}),
}  # fmt: skip


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> model type, and the keys that differ from its shrunk defaults."""
    types = f"{_DECODERS} {_ENCODERS} {_NESTED}".split()
    return {name: (name, {}) for name in types} | _VARIANTS


def is_decoder(name: str) -> bool:
    """Whether a case predicts next tokens; the others read a whole text."""
    return cases()[name][0] not in _ENCODERS.split()


def tiny_config(name: str) -> Any:
    """The config of a case, as transformers makes it."""
    from transformers import CONFIG_MAPPING

    kind, changes = cases()[name]
    defaults = CONFIG_MAPPING[kind]().to_dict()
    return CONFIG_MAPPING[kind](**shrunk(defaults) | _AGREE.get(kind, {}) | changes)


def write_config(name: str, folder: Path) -> Path:
    """config.json of a case in a new folder."""
    tiny_config(name).save_pretrained(folder)
    return folder


def shrunk(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a type's default config that change, with their tiny values.

    Lists with an entry a layer keep one layer of every kind, at least two layers.
    """
    small = {key: _small(key, value) for key, value in values.items()}
    tiny = {key: value for key, value in small.items() if value is not None}
    if "qk_rope_head_dim" in values:  # latent attention: keys for every head, widths that follow
        tiny["num_key_value_heads"] = tiny["num_attention_heads"]
        tiny = {key: value for key, value in tiny.items() if key not in ("head_dim", "qk_head_dim")}
    depth = next((key for key in _DEPTHS if values.get(key)), "")
    lists = {
        key: value
        for key, value in values.items()
        if isinstance(value, list) and len(value) == values.get(depth) and _names(value)
    }
    if lists:
        layers = list(zip(*lists.values(), strict=True))
        first = sorted({layers.index(layer) for layer in layers})
        first = first * 2 if len(first) == 1 else first
        tiny |= {key: [value[n] for n in first] for key, value in lists.items()}
        tiny[depth] = len(first)
    return tiny


def _names(values: list[Any]) -> bool:
    return isinstance(values[0], str | bool)


def _small(key: str, value: Any) -> Any:
    if isinstance(value, dict) and value.get("model_type"):
        return shrunk(value) | {"model_type": value["model_type"]}
    if key in _TOKENS:
        return _TOKENS[key]
    if isinstance(value, float):
        return (
            0.0 if "drop" in key or "jitter" in key else 0.15 if key in _SPREADS and value else None
        )
    is_size = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return _SIZE_OF.get(key) if is_size else None


if __name__ == "__main__":
    for case in cases():
        write_config(case, Path(sys.argv[1]) / case)
