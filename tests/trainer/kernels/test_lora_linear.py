"""The fused LoRA layer is PEFT's: outputs, gradients, dropout, names; and leaner."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2ForSequenceClassification
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from trainer.config.methods import choose_lora_backend
from trainer.config.sections import TuningSection
from trainer.kernels.lora_linear import lora_linear
from trainer.tuning.fused_lora import FusedLoraLinear
from trainer.tuning.peft_layers import add_lora

BASES = {
    "linear": lambda: nn.Linear(12, 20),
    "linear without bias": lambda: nn.Linear(12, 20, bias=False),
    "conv1d": lambda: Conv1D(20, 12),
}


def layers(kind, dropout=0.0, base_dtype=torch.float64, dtype=torch.float64):
    """The fused layer and PEFT's with the same weights."""
    torch.manual_seed(0)
    base = BASES[kind]().to(base_dtype).requires_grad_(False)
    settings = LoraConfig(
        r=3, lora_alpha=7, lora_dropout=dropout, init_lora_weights=False,
        fan_in_fan_out=kind == "conv1d",
    )  # fmt: skip
    fused = FusedLoraLinear(base, "default", config=settings, r=3, lora_alpha=7)
    theirs = PeftLinear(
        copy.deepcopy(base), "default", config=settings, r=3, lora_alpha=7,
        is_target_conv_1d_layer=kind == "conv1d",
    )  # fmt: skip
    for layer in (fused, theirs):
        layer.lora_A.to(dtype)
        layer.lora_B.to(dtype)
    theirs.load_state_dict(fused.state_dict())  # strict: the names are the same
    return fused, theirs


def run(layer, x, upstream, seed=3):
    """Output and gradients of x, A and B."""
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    y = layer(x)
    y.backward(upstream)
    pair = [p for name, p in layer.named_parameters() if "lora_" in name]
    result = [y.detach(), x.grad, *(p.grad for p in pair)]
    for p in pair:
        p.grad = None
    return result


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (2, 1, 3, 12), (12,), (0, 12)])
def test_output_and_gradients_are_those_of_peft(kind, dropout, shape):
    fused, theirs = layers(kind, dropout)
    x = torch.randn(shape, dtype=torch.float64)
    upstream = torch.randn(*shape[:-1], 20, dtype=torch.float64)
    ours, expected = run(fused, x, upstream), run(theirs, x, upstream)
    for our, their in zip(ours, expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-12, atol=1e-12)
    if dropout and x.numel():
        assert not torch.equal(run(fused, x, upstream, seed=4)[0], ours[0])


@pytest.mark.parametrize("is_transposed", [False, True])
def test_the_gradient_is_exact(is_transposed):
    torch.manual_seed(0)
    x, a, b = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((4, 6), (2, 6), (5, 2))
    )
    weight = torch.randn((6, 5) if is_transposed else (5, 6), dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, a, b: lora_linear(x, weight, bias, a, b, 1.5, is_transposed=is_transposed),
        [x, a, b],
    )


def test_evaluation_drops_nothing():
    fused, theirs = layers("linear", dropout=0.5)
    x = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(fused.eval()(x), theirs.eval()(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(fused.train()(x), theirs.eval()(x))


def test_a_model_may_change_the_output_in_place():
    """As Gemma 3n's does; the output was a view made inside the function, which torch refuses."""
    x, upstream = torch.randn(2, 3, 12).double(), torch.randn(2, 3, 20).double()
    ours, expected = (
        run(nn.Sequential(layer, InPlace()), x, upstream) for layer in layers("linear")
    )
    for our, their in zip(ours, expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-12, atol=1e-12)


class InPlace(nn.Module):
    def forward(self, y):
        return y.mul_(2.0).add_(1.0)


def test_dropout_repeats_when_recomputed():
    fused, theirs = layers("conv1d", dropout=0.3)
    x, upstream = torch.randn(5, 12).double(), torch.randn(5, 20).double()
    expected = run(theirs, x, upstream)
    again = x.clone().requires_grad_()
    torch.manual_seed(3)
    checkpoint(fused, again, use_reentrant=False).backward(upstream)
    torch.testing.assert_close(again.grad, expected[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fused.lora_A["default"].weight.grad, expected[2])


class Widened(TorchDispatchMode):
    """Elements of the largest fp32 tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_activations_of_16_bit_are_never_widened(dtype):
    fused, theirs = layers("linear", 0.1, base_dtype=torch.bfloat16, dtype=dtype)
    x, upstream = torch.randn(64, 12).bfloat16(), torch.randn(64, 20).bfloat16()
    largest = {}
    for name, layer in (("ours", fused), ("theirs", theirs)):
        with Widened() as seen:
            result = run(layer, x, upstream)
        largest[name] = seen.largest
        assert result[2].dtype == result[3].dtype == dtype
    assert largest["ours"] <= 3 * 20  # an adapter, not 64 x 12
    assert largest["theirs"] >= 64 * 12 or dtype == torch.bfloat16
    exact = run(layers("linear", 0.1)[0], x.double(), upstream.double())
    # Same weights up to bf16's rounding, through three products: a few times 2^-9.
    for ours, wide in zip(run(fused, x, upstream), exact, strict=True):
        assert (ours.double() - wide).norm() < 1e-2 * wide.norm()


def test_what_is_not_plain_training_stays_pefts():
    fused, theirs = layers("conv1d")
    x = torch.randn(4, 12, dtype=torch.float64)
    expected = theirs(x)
    fused.merge()
    torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)
    fused.unmerge()
    torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)
    fused.enable_adapters(False)
    torch.testing.assert_close(fused(x), theirs.base_layer(x), rtol=1e-12, atol=1e-12)


def gpt2():
    torch.manual_seed(1)
    return GPT2ForSequenceClassification(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def test_a_model_takes_either_and_names_its_weights_alike():
    models = {}
    for wanted in ("auto", "peft"):
        model = add_lora(gpt2(), TuningSection(lora_r=2, lora_backend=wanted))
        models[wanted] = model
        kinds = {type(m) for m in model.modules() if isinstance(m, PeftLinear)}
        assert kinds == {FusedLoraLinear if wanted == "auto" else PeftLinear}
    assert models["auto"].state_dict().keys() == models["peft"].state_dict().keys()
    configs = [model.peft_config["default"].to_dict() for model in models.values()]
    assert configs[0] == configs[1]


class Own(nn.Linear):
    """A linear layer of a model's own type, which may compute something else."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [Own, FalconLinear])
def test_a_model_with_layers_of_its_own_type_gets_pefts_through_peft(kind):
    settings = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    settings._register_custom_module({nn.Linear: FusedLoraLinear})
    model = get_peft_model(nn.Sequential(kind(4, 3)), settings)
    layer, x = model.base_model.model[0], torch.randn(2, 5, 4)
    assert isinstance(layer, FusedLoraLinear)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer(x) + layer.scaling["default"] * x @ a.T @ b.T
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_a_layer_of_a_type_of_the_models_own_is_pefts():
    settings = LoraConfig(r=2, init_lora_weights=False)
    layer = FusedLoraLinear(Own(4, 3), "default", config=settings, r=2, lora_alpha=4)
    x = torch.randn(5, 4)
    expected = PeftLinear.forward(layer, x)
    assert torch.equal(layer(x), expected)
    plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert (expected - plain).abs().max() > 0.01


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"variant": "dora"}, "does not support dora"),
        ({"quant_type": "int8"}, "does not support an 8-bit base"),
        ({"lora_backend": "peft"}, "set by the recipe"),
    ],
)
def test_what_the_fused_layer_does_not_know_goes_to_peft_with_the_reason(keys, said):
    backend, reason = choose_lora_backend(TuningSection(**keys))
    assert (backend, said in reason) == ("peft", True)


def test_rank_stabilised_scaling_is_known():
    settings = LoraConfig(r=4, target_modules=["c_attn"], use_rslora=True, fan_in_fan_out=True)
    assert choose_lora_backend(TuningSection(variant="rslora"))[0] == "fused"
    settings._register_custom_module({Conv1D: FusedLoraLinear})
    model = get_peft_model(gpt2(), settings)
    fused = next(m for m in model.modules() if isinstance(m, FusedLoraLinear))
    assert fused.scaling["default"] == settings.lora_alpha / 2  # alpha / sqrt(r)
