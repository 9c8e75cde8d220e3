"""The tuning methods and tiny models of every family, for the tests of trainer/tuning."""

import json
from pathlib import Path

import transformers

from trainer.config.sections import TuningSection

_IDS = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 2048}
_GPT = _IDS | {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 1024,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.2,
}  # fmt: skip
_LLAMA = _IDS | {
    "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.2,
}  # fmt: skip
FAMILIES = {"gpt_bigcode": _GPT, "gpt2": _GPT, "llama": _LLAMA, "qwen2": _LLAMA}

# What a recipe says in tuning; ptuning also needs data.packing=false.
METHODS: dict[str, dict[str, object]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "lora_r": 4},
    "rslora": {"variant": "rslora", "lora_r": 4},
    "dora": {"variant": "dora", "lora_r": 4},
    "ia3": {"method": "ia3"},
    "ptuning": {"method": "ptuning", "adapter_size": 5},
    "adapter_h": {"method": "adapter_h", "adapter_size": 6},
    "adapter_p": {"method": "adapter_p", "adapter_size": 6, "variant": "llm_adapters"},
    "parallel": {"method": "parallel", "adapter_size": 6},
}

# Methods of PEFT by their names: one that layers share, and one before all layers.
PEFT_METHODS: dict[str, dict[str, object]] = {
    "vblora": {"method": "vblora", "peft": {"num_vectors": 16, "vector_length": 8}},
    "prefix_tuning": {"method": "prefix_tuning", "peft": {"num_virtual_tokens": 5}},
}


def tuning(name: str, **more: object) -> TuningSection:
    """The section of a method."""
    return TuningSection(**(METHODS | PEFT_METHODS)[name] | {"lora_dropout": 0.0} | more)  # type: ignore[arg-type]


def overrides(name: str) -> list[str]:
    """The same for a command line."""
    packing = ["data.packing=false"] if name == "ptuning" else []
    given = (METHODS | PEFT_METHODS)[name]
    return [f"tuning.{key}={value}" for key, value in given.items()] + packing


def model_config(family: str) -> transformers.PretrainedConfig:
    """A tiny model of two classes."""
    return transformers.AutoConfig.for_model(family, **FAMILIES[family], num_labels=2)


def write_model(folder: Path, family: str, tokenizer: Path) -> Path:
    """config.json of a tiny model with a tokenizer beside it."""
    folder.mkdir(parents=True)
    values = FAMILIES[family] | {"model_type": family}
    (folder / "config.json").write_text(json.dumps(values))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    return folder
