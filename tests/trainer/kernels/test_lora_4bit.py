"""LoRA over a 4-bit layer, fused: its decoded weight's output and gradients in float64; leaner."""

import bitsandbytes
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit

from trainer.models.quantized import decoded_weight, prepare_layers
from trainer.tuning.fused_lora_4bit import FusedLora4bit

INPUTS, OUTPUTS, RANK, ALPHA, TOKENS = 96, 80, 3, 7, 11


def layer_of(kind, quant_type="nf4", dtype=torch.float32, dropout=0.0, **more):
    torch.manual_seed(0)
    base = bitsandbytes.nn.Linear4bit(
        INPUTS, OUTPUTS, compute_dtype=dtype, quant_type=quant_type, **more
    )
    base.bias.data = base.bias.data.to(dtype)
    model = torch.nn.Sequential(base).to("cpu").requires_grad_(False)
    prepare_layers(model)
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, init_lora_weights=False)
    return kind(base, "default", config=settings, r=RANK, lora_alpha=ALPHA).train()


def run(layer, x, upstream):
    """Output and gradients of x, A and B."""
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    y = layer(x)
    torch.autograd.backward(y, upstream)
    return [y.detach(), x.grad, layer.lora_A.default.weight.grad, layer.lora_B.default.weight.grad]


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("is_double", [False, True])
def test_output_and_gradients_are_those_of_the_decoded_weight(quant_type, is_double):
    layer = layer_of(FusedLora4bit, quant_type, compress_statistics=is_double)
    x, upstream = torch.randn(2, TOKENS, INPUTS), torch.randn(2, TOKENS, OUTPUTS)
    found = run(layer, x, upstream)
    weight, bias = decoded_weight(layer.base_layer).double(), layer.base_layer.bias.double()
    a, b = (
        getattr(layer, f"lora_{side}").default.weight.detach().double().requires_grad_()
        for side in "AB"
    )
    read = x.double().requires_grad_()
    y = read @ weight.T + bias + ALPHA / RANK * (read @ a.T @ b.T)
    torch.autograd.backward(y, upstream.double())
    for one, right in zip(found, [y.detach(), read.grad, a.grad, b.grad], strict=True):
        assert (one - right).abs().max() < 1e-6 * right.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_is_pefts_layer(dtype, dropout):
    ours, theirs = (
        layer_of(kind, "nf4", dtype, dropout) for kind in (FusedLora4bit, PeftLinear4bit)
    )
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x, upstream = torch.randn(TOKENS, INPUTS).to(dtype), torch.randn(TOKENS, OUTPUTS).to(dtype)
    most = 1e-5 if dtype == torch.float32 else 0.03  # of the largest value
    for one, other in zip(run(ours, x, upstream), run(theirs, x, upstream), strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= most * other.abs().max()


def test_no_decoded_weight_is_kept_for_the_backward_pass():
    layer, kept = layer_of(FusedLora4bit), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.nbytes) or t, lambda t: t
    ):
        layer(torch.randn(TOKENS, INPUTS, requires_grad=True))
    assert sum(kept) < INPUTS * OUTPUTS * 4
    assert INPUTS * OUTPUTS // 2 in kept  # the packed one
    with torch.no_grad():
        before = layer(torch.ones(1, INPUTS))
        with pytest.warns(UserWarning, match="rounding errors"):
            layer.merge()
        merged = layer(torch.ones(1, INPUTS))
    assert 0 < (merged - before).abs().max() < 0.5  # quantised once more, by PEFT
