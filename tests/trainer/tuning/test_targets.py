"""What LoRA adapts in models of any kind: what a forward pass reads, and what PEFT can adapt."""

import copy

import pytest
import torch
import transformers
from method_cases import FAMILIES, model_config
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from trainer.architectures.derived import expert_pattern, stacked_parameters
from trainer.config.sections import TuningSection
from trainer.errors import ModelError
from trainer.tuning import METHODS, probe
from trainer.tuning.probe import idle_layers
from trainer.tuning.targets import choose_targets

_IDS = {"vocab_size": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
_SMALL = _IDS | {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
_BART = _IDS | {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "decoder_start_token_id": 0,
}  # fmt: skip
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
_LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
_GPT = ["c_attn", "c_fc", "c_proj"]
_ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]

# model_type -> its configuration, names by hand from the model's source, what is left out
CASES = {
    "bart": (_BART, ["fc1", "fc2", *(f"self_attn.{n}_proj" for n in ("k", "out", "q", "v"))],
             "decoder.layers.*.encoder_attn.k_proj"),
    "bert": (_SMALL, ["attention.output.dense", "attention.self.key", "attention.self.query",
                      "attention.self.value", "intermediate.dense", "output.dense"], ""),
    "falcon": (_IDS | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
               ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"], ""),
    "mamba": (_IDS | {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2,
                      "time_step_rank": 4}, ["in_proj", "x_proj"],
              "layers.*.mixer.dt_proj (not called); layers.*.mixer.out_proj (PEFT does not adapt"
              " out_proj in mamba)"),
    "mixtral": (_SMALL | {"num_local_experts": 4}, _ATTENTION, ""),
    "phimoe": (_SMALL | {"num_local_experts": 4}, _ATTENTION,
               "layers.*.mlp.router (takes or gives several tensors)"),
    "qwen2_moe": (_SMALL | _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 8},
                  _LLAMA, "layers.*.mlp.shared_expert_gate (1 wide, below tuning.lora_r 4)"),
    "qwen3_moe": (_SMALL | _EXPERTS | {"num_experts": 4, "head_dim": 8}, _ATTENTION, ""),
    "glm4_moe": (_SMALL | _EXPERTS | {"n_routed_experts": 4, "first_k_dense_replace": 1},
                 _ATTENTION, "mlp.shared_experts.gate_proj (PEFT takes gate_proj in glm4_moe for"),
}  # fmt: skip


def base_of(kind, values, auto=transformers.AutoModelForCausalLM):
    torch.manual_seed(0)
    return auto.from_config(transformers.AutoConfig.for_model(kind, **values)).eval()


def section(**more):
    return TuningSection(**{"lora_r": 4, "lora_dropout": 0.0} | more)


@pytest.mark.parametrize("kind", CASES)
def test_auto_takes_what_a_pass_reads_and_says_what_it_left_out(kind):
    values, names, left_out = CASES[kind]
    targets = choose_targets(base_of(kind, values), section())
    assert targets.modules == names
    assert targets.parameters == []
    assert left_out in targets.left_out_line
    assert bool(left_out) == bool(targets.left_out_line)


@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
@pytest.mark.parametrize("auto", ["AutoModelForCausalLM", "AutoModelForSequenceClassification"])
def test_the_five_families_are_named_as_ever(family, auto):
    config = model_config(family) if family != "mistral" else model_config("llama")
    values = {key: value for key, value in config.to_dict().items() if key != "model_type"}
    targets = choose_targets(base_of(family, values, getattr(transformers, auto)), section())
    assert targets.modules == (_GPT if family.startswith("gpt") else _LLAMA)
    assert targets.left_out_line == ""


@pytest.mark.parametrize("kind", CASES)
def test_the_pass_without_data_sees_what_a_pass_of_the_model_sees(kind, monkeypatch):
    backbone = base_of(kind, CASES[kind][0], transformers.AutoModel).base_model
    config, random = copy.deepcopy(backbone.config.to_dict()), torch.get_rng_state()
    without_data = idle_layers(backbone)

    def no_twin(_):
        raise ValueError

    monkeypatch.setattr(probe, "_twin", no_twin)
    assert idle_layers(backbone) == without_data
    assert backbone.config.to_dict() == config
    assert backbone.config._attn_implementation == "sdpa" or kind == "mamba"
    assert torch.equal(torch.get_rng_state(), random)
    assert len(without_data) < sum(isinstance(m, nn.Linear) for m in backbone.modules())


def test_only_several_experts_in_one_parameter_are_stacked():
    model = nn.Module()
    model.experts, model.mask = nn.Module(), nn.Parameter(torch.zeros(1, 1, 4))  # XLNet's
    model.experts.up = nn.Parameter(torch.zeros(3, 4, 8))
    model.convolution = nn.Conv1d(4, 4, 3)
    assert list(stacked_parameters(model)) == ["experts.up"]


def test_a_pooler_is_not_adapted():
    base = base_of("bert", CASES["bert"][0], transformers.AutoModel)
    why = choose_targets(base, section()).left_out
    assert why == {"pooler.dense": "not part of the last hidden states"}
    base = base_of("bert", CASES["bert"][0], transformers.AutoModelForSequenceClassification)
    targets = choose_targets(base, section())  # there it is a part of the head
    assert not targets.left_out
    assert not any("pooler" in name for name in targets.modules)


def test_a_head_that_was_put_on_a_backbone_is_not_adapted():
    base = base_of("llama", _SMALL, transformers.AutoModel)
    base.score = nn.Linear(16, 2, bias=False)
    targets = choose_targets(base, section(lora_r=2))
    assert (targets.modules, targets.left_out_line) == (_LLAMA, "")


class OddConfig(PretrainedConfig):
    """Of the model below."""

    model_type = "odd"
    vocab_size, hidden_size = 64, 8


class Router(nn.Linear):
    """Gives two tensors, as PhiMoE's does."""

    def forward(self, x):
        scores = super().forward(x)
        return scores.softmax(-1), scores.argmax(-1)


class Scaled(nn.Linear):
    """A merged adapter would be scaled, too."""

    def forward(self, x):
        return 3 * super().forward(x)


class Spelled(nn.Linear):
    """x W' + b in words of its own, as Falcon's."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Block(nn.Module):
    """Every kind of linear layer; only the first of three experts is ever chosen."""

    def __init__(self):
        super().__init__()
        self.router, self.gate = Router(8, 8), nn.Linear(8, 1)
        self.scaled, self.spelled = Scaled(8, 8), Spelled(8, 8)
        self.by_weight, self.unread = nn.Linear(8, 8), nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.ModuleDict({"w1": nn.Linear(8, 8)}) for _ in range(3))

    def forward(self, x):
        self.unread(x)
        scores, _ = self.router(x)
        x = x + self.experts[0]["w1"](x) * scores * self.gate(x)
        x = self.spelled(self.scaled(x))
        return x + nn.functional.linear(x, self.by_weight.weight)


class OddModel(PreTrainedModel, GenerationMixin):
    """Two blocks."""

    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(64, 8)
        self.layers = nn.ModuleList([Block(), Block()])
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return BaseModelOutput(last_hidden_state=x)


def test_each_kind_of_layer_has_its_own_reason():
    torch.manual_seed(0)
    base = OddModel(OddConfig())
    targets = choose_targets(base, section())
    assert targets.modules == ["spelled", "w1"]  # the experts that no token chose, too
    assert targets.left_out == {
        f"layers.{block}.{name}": why
        for block in (0, 1)
        for name, why in {
            "router": "takes or gives several tensors",
            "gate": "1 wide, below tuning.lora_r 4",
            "scaled": "Scaled computes more than a product",
            "by_weight": "not called",
            "unread": "not part of the last hidden states",
        }.items()
    }
    assert "layers.*.gate (1 wide, below tuning.lora_r 4); " in targets.left_out_line
    model = METHODS["lora"](base, section())
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 2 * 4


def test_names_get_as_long_as_they_must():
    base = OddModel(OddConfig())
    base.layers[1].spelled = Scaled(8, 8)  # the twin does not show it, the layer does
    base.layers[1].experts = nn.ModuleList()
    assert choose_targets(base, section()).modules == [
        "layers.0.experts.0.w1", "layers.0.experts.1.w1", "layers.0.experts.2.w1",
        "layers.0.spelled",
    ]  # fmt: skip


def test_only_numbers_behind_the_blocks_are_of_experts():
    assert expert_pattern("h.3.mlp.c_fc") == "h.3.mlp.c_fc"
    assert expert_pattern("layers.3.moe.experts.11.w2") == "layers.3.moe.experts.*.w2"
    assert expert_pattern("layers.3.experts.11.up.0") == "layers.3.experts.*.up.*"


def test_a_layer_that_is_trained_whole_gets_no_adapter():
    targets = choose_targets(base_of("llama", _SMALL), section(modules_to_save=["q_proj"]))
    assert targets.modules == [name for name in _LLAMA if name != "q_proj"]
    assert targets.left_out_line == "layers.*.self_attn.q_proj (trained whole)"


def test_a_rank_above_every_layer_leaves_nothing():
    with pytest.raises(
        ModelError, match=r"no linear layer to adapt: .*16 wide, below tuning\.lora"
    ):
        choose_targets(base_of("llama", _SMALL), section(lora_r=17))


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("llama", "q", r"'q' matches no linear layer of the model; it has \['mlp.down_proj'"),
        ("mixtral", "gate", r"'gate' matches no linear layer"),  # a parameter of a router
        ("mamba", "out_proj", r"'out_proj': PEFT does not adapt out_proj in mamba; leave it out"),
        ("glm4_moe", "up_proj", r"PEFT takes up_proj in glm4_moe for the experts' parameters"),
        ("qwen2_moe", "shared_expert_gate", r"shared_expert_gate' is 1 wide, below tuning\.lora_r"),
    ],
)
def test_81_an_explicit_name_that_cannot_be_adapted_says_why(kind, name, said):
    values = CASES[kind][0] if kind in CASES else _SMALL
    with pytest.raises(ModelError, match=said):
        choose_targets(base_of(kind, values), section(target_modules=[name]))


def test_a_name_that_also_means_another_kind_of_module_is_refused():
    base = OddModel(OddConfig())
    base.layers[1].spelled = nn.LayerNorm(8)
    with pytest.raises(ModelError, match=r"also matches layers\.1\.spelled, a LayerNorm"):
        choose_targets(base, section(target_modules=["spelled"]))


def test_a_backbone_that_takes_more_than_ids_asks_for_names():
    base = OddModel(OddConfig())
    base.forward = lambda input_ids, attention_mask=None: base.missing
    base.__class__ = type("Odder", (OddModel,), {"forward": lambda self, pixels: pixels})
    with pytest.raises(ModelError, match=r"transformers' odd fails .* take another base"):
        choose_targets(base, section())
