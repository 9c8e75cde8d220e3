"""Weights of 4 bits are what their table says, whatever the CPU's kernels do with narrow rows."""

import bitsandbytes
import pytest
import torch

from trainer.models.quantized import decoded_weight, prepare_layers

BLOCK = 64


def table_decoded(weight: bitsandbytes.nn.Params4bit) -> torch.Tensor:
    """Two codes a byte, the high one first; a scale for each 64 values."""
    state = weight.quant_state
    codes = [code for byte in weight.data.flatten().tolist() for code in (byte >> 4, byte & 15)]
    scales = [float(state.absmax[place // BLOCK]) for place in range(len(codes))]
    values = [float(state.code[code]) * scale for code, scale in zip(codes, scales, strict=True)]
    return torch.tensor(values[: state.shape.numel()]).view(state.shape)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("width", [32, 48, 64, 96, 112, 128, 100])
def test_a_layer_multiplies_by_the_decoded_table(width, kind):
    torch.manual_seed(width)
    layer = bitsandbytes.nn.Linear4bit(
        width, 24, compute_dtype=torch.float32, quant_type=kind, compress_statistics=False
    )
    model = torch.nn.Sequential(layer).to("cpu")
    prepare_layers(model)
    right = table_decoded(layer.weight)
    x = torch.randn(5, width, requires_grad=True)
    y = model(x)
    y.square().sum().backward()
    expected = x.detach() @ right.T + layer.bias.detach()
    torch.testing.assert_close(y.detach(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, 2 * expected @ right, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoded_weight(layer), right, rtol=1e-5, atol=1e-6)
