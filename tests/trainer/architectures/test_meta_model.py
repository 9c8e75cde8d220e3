"""Sizes of any model type, against stock models and what torch keeps of them on a CPU."""

from typing import Any

import pytest
import torch
import transformers
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING

from trainer.architectures.adapters import (
    adapted_layers,
    auto_modules,
    num_adapter_parameters,
)
from trainer.architectures.derived import is_linear
from trainer.architectures.families import FAMILIES, model_shape
from trainer.architectures.meta_model import derived_shape
from trainer.architectures.shapes import ModelShape
from trainer.config.sections import TuningSection
from trainer.errors import ModelError

_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "vocab_size": 300}
_DECODER = _IDS | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
_EXPERTS = {"num_local_experts": 6, "num_experts": 6, "num_experts_per_tok": 2,
            "moe_intermediate_size": 24}  # fmt: skip
_ENCODER = _IDS | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 514, "type_vocab_size": 2,
}  # fmt: skip
_HYBRID = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "shared_expert_intermediate_size": 24, "head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": _DECODER | {"head_dim": 8},
    "gemma2": _DECODER | {"head_dim": 8, "query_pre_attn_scalar": 8},
    "phi": _DECODER,
    "gpt_neox": _DECODER,
    "olmo2": _DECODER,
    "granite": _DECODER,
    "mixtral": _DECODER | _EXPERTS,
    "qwen3_moe": _DECODER | _EXPERTS | {"head_dim": 8},
    "gpt_oss": _DECODER | _EXPERTS | {"head_dim": 8},
    "qwen3_next": _DECODER | _EXPERTS | _HYBRID,
    "falcon": _IDS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bloom": _IDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": _IDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_ctx": 512},
    "mamba": _IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "bert": _ENCODER | {"attention_probs_dropout_prob": 0.0},
    "roberta": _ENCODER | {"attention_probs_dropout_prob": 0.0},
    "modernbert": _ENCODER,
    "t5": _IDS | {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4,
                  "dropout_rate": 0.0, "decoder_start_token_id": 1},
    "bart": _IDS | {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0,
                    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 512},
}  # fmt: skip
LENGTH = 256


def values_of(name: str) -> dict[str, Any]:
    """The content of a config.json."""
    return {"model_type": name, **CONFIGS[name]}


def shape_of(name: str) -> ModelShape:
    """The derived shape of a classifier."""
    shape = derived_shape(values_of(name), "auto", "ia3")
    assert not shape.doubt
    return shape


def backbone(name: str, device: str) -> Any:
    """Stock's model without a head, in fp32."""
    config = transformers.AutoConfig.for_model(name, **CONFIGS[name])
    with torch.device(device):
        return transformers.AutoModel.from_config(config, dtype=torch.float32)


def kept_on_a_cpu(name: str) -> int:
    """Bytes that stock's forward pass of one row keeps, by torch's own hooks; weights left out."""
    model = backbone(name, "cpu").train().requires_grad_(False)
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage)
        return tensor

    for table in model.modules():
        if getattr(table, "weight", None) is model.get_input_embeddings().weight:
            table.register_forward_hook(lambda _, args, out: out.requires_grad_())
    ids = torch.randint(5, 300, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {"use_cache": False}
    if name in ("bert", "roberta", "modernbert"):
        more = {}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, **more)
    return sum(s.nbytes() for place, s in kept.items() if place not in weights)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_stocks_model(name):
    shape, model = shape_of(name), backbone(name, "meta")
    parameters = {path: p for path, p in model.named_parameters() if "pooler" not in path}
    assert shape.num_backbone_parameters == sum(p.numel() for p in parameters.values())
    in_linears = {
        id(module.weight)
        for path, module in model.named_modules()
        if is_linear(module) and "pooler" not in path
    }
    packed = sum(p.numel() for p in parameters.values() if id(p) in in_linears)
    assert shape.num_linear_weights == packed > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_token_keeps_is_what_torch_keeps_on_a_cpu(name):
    shape = shape_of(name)
    kept, masks = shape.kept[4], 4 * shape.num_dropped.at(LENGTH)
    of_token = kept.blocks.at(LENGTH) + kept.written.at(LENGTH) + kept.once + masks
    # The rest are tables that all tokens share, such as positions.
    assert of_token * LENGTH == pytest.approx(kept_on_a_cpu(name), rel=0.02)


KNOWN: dict[str, dict[str, Any]] = {
    "gpt2": _IDS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "embd_pdrop": 0.0},
    "gpt_bigcode": _IDS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "embd_pdrop": 0.0},
    "llama": _DECODER,
    "mistral": _DECODER | {"sliding_window": None},
    "qwen2": _DECODER,
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_type_has_the_sizes_that_its_model_shows(name):
    assert KNOWN.keys() == FAMILIES.keys()
    values = {"model_type": name, **KNOWN[name]}
    known, shown = model_shape(values), derived_shape(values, "auto", "ia3")
    for field in ("num_parameters", "num_linear_weights", "num_layers", "hidden", "vocabulary"):
        assert getattr(known, field) == getattr(shown, field), field
    assert known.attention.copied == shown.attention.copied
    assert known.attention.outputs == shown.attention.outputs
    assert known.num_dropped == shown.num_dropped
    assert known.widest == shown.widest
    for width in (2, 4):
        ours, own = known.kept[width], shown.kept[width]
        assert ours.first == own.first
        tables = 0 if name.startswith("gpt") else 2 * width * 8  # rotary, in the first block there
        assert ours.blocks.at(512) == own.blocks.at(512) - tables
    for one, other in zip(known.linears, shown.linears, strict=True):
        assert one.path == other.path
        assert (one.times, one.inputs, one.outputs) == (other.times, other.inputs, other.outputs)
        assert one.roles == other.roles
    assert _groups(known) == _groups(shown)


def _groups(shape: ModelShape) -> list[list[str]]:
    """Paths of the layers that read one tensor."""
    reads: dict[str | None, list[str]] = {}
    for linear in shape.linears:
        reads.setdefault(linear.reads, []).append(linear.path)
    return list(reads.values())


def test_experts_of_one_parameter_are_neither_adapted_nor_quantised():
    shape, model = shape_of("qwen3_moe"), backbone("qwen3_moe", "meta")
    stacked = sum(p.numel() for p in model.parameters() if p.ndim == 3)
    assert stacked > shape.num_linear_weights
    assert shape.num_other_parameters >= stacked
    assert shape.num_expert_weights == stacked * 2 / 6  # a token meets two of six
    assert "experts" not in str([one.path for one in shape.linears])


@pytest.mark.parametrize(
    ("name", "added"), [("gpt_neox", set()), ("falcon", set()), ("t5", set()), ("bart", {"k_proj"})]
)
def test_the_layers_of_ia3_are_those_of_peft(name, added):
    """PEFT lists queries and values of BART, where the paper scales keys and values."""
    listed = set(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[name])
    found = auto_modules(shape_of(name), "ia3")
    assert {path.rpartition(".")[2] for path in found} == listed - {"q_proj"} | added


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_next", "mamba", "bloom", "bert"])
def test_layers_are_not_guessed(name):
    """Experts are stacked, blocks lack attention or write it out; BERT's names are ambiguous."""
    assert auto_modules(shape_of(name), "adapter_p") is None


def test_auto_takes_layers_that_are_called_and_as_wide_as_the_rank():
    shape = shape_of("qwen3_next")
    gate = next(one for one in shape.linears if one.name == "shared_expert_gate")
    assert gate.outputs == 1
    adapted = adapted_layers(shape, TuningSection(lora_r=4))
    assert gate not in adapted
    assert {"q_proj", "in_proj_qkvz", "out_proj"} <= {one.name for one in adapted}
    counted = num_adapter_parameters(shape, TuningSection(lora_r=4))
    assert counted == sum(4 * (one.inputs + one.outputs) * one.times for one in adapted)


@pytest.mark.parametrize(
    ("name", "most"), [("roberta", 32), ("bert", 34), ("bart", 34), ("qwen3", 0)]
)
def test_learned_positions_end_where_stocks_forward_pass_does(name, most):
    values = values_of(name) | {"max_position_embeddings": 34}
    assert derived_shape(values, "auto").positions == most
    if not most:  # rotary
        return
    config = transformers.AutoConfig.for_model(**values)
    model = transformers.AutoModel.from_config(config, dtype=torch.float32).eval()
    model(input_ids=torch.full((1, most), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, most + 1), 7))


def test_the_text_model_of_a_multimodal_one_is_what_counts():
    text = values_of("qwen3") | {"model_type": "gemma3_text"}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 1}
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": vision}
    shape = derived_shape(whole, "auto")
    assert shape.num_backbone_parameters == derived_shape(text, "auto").num_backbone_parameters


def test_a_model_that_needs_values_to_run_has_exact_parameters_and_says_what_is_not(monkeypatch):
    def fails(*_: Any) -> None:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    exact = shape_of("phi")
    monkeypatch.setattr("trainer.architectures.traced.traced", fails)
    shape = derived_shape(values_of("phi"), "auto")
    assert shape.num_parameters == exact.num_parameters
    assert shape.doubt.startswith("activations by a rule of thumb: PhiModel needs values (Tensor")
    assert 0.5 < shape.kept[4].blocks.each / exact.kept[4].blocks.each < 2


def test_a_model_that_needs_values_to_be_built_is_not_known_and_one_that_is_wrong_is_named(
    monkeypatch,
):
    def fails(*_: Any) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr("trainer.architectures.classes.ModelClass.skeleton", fails)
    shape = model_shape(values_of("phi"))
    assert not shape.is_known
    assert "memory is not known" in shape.doubt
    monkeypatch.undo()
    with pytest.raises(ModelError, match="model_type 'phi': transformers builds no such model"):
        model_shape(values_of("phi") | {"num_attention_heads": 0})


def test_roles_are_looked_for_where_a_method_needs_them():
    by_method = {m: derived_shape(values_of("phi"), "auto", m) for m in ("lora", "parallel")}
    assert not any(one.roles for one in by_method["lora"].linears)
    assert auto_modules(by_method["parallel"], "parallel") == [
        "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj",
    ]  # fmt: skip
