"""LLM.int8 beside packed records: an outlier of one record must not change another."""

import bitsandbytes
import pytest
import torch

from trainer.config.recipe import load_run_config
from trainer.models.quantized import quantization_config

WIDTH = 128


def first_row_moves_by(threshold):
    """How far the first record's output moves when another gets an outlier."""
    layer = bitsandbytes.nn.Linear8bitLt(
        WIDTH, WIDTH, bias=False, has_fp16_weights=False, threshold=threshold
    )
    draw = torch.Generator().manual_seed(0)
    layer.load_state_dict({"weight": torch.randn(WIDTH, WIDTH, generator=draw)})
    layer = layer.to("cpu").eval()
    alone = torch.randn(4, WIDTH, generator=draw)
    beside = alone.clone()
    beside[1:, 7] = 20.0
    return float((layer(beside) - layer(alone))[0].abs().max() / layer(alone)[0].abs().max())


def test_only_without_outlier_columns_are_packed_records_apart(base):
    tuning = load_run_config(base, ["tuning.method=qlora", "tuning.quant_type=int8"]).tuning
    packed, alone = (
        quantization_config(tuning, torch.float32, [], packing=packing).llm_int8_threshold
        for packing in (True, False)
    )
    assert first_row_moves_by(packed) == 0.0
    assert first_row_moves_by(alone) > 1e-4  # else this proves nothing


@pytest.mark.parametrize("packing", [True, False])
def test_four_bits_know_no_outliers(base, packing):
    tuning = load_run_config(base, ["tuning.method=qlora"]).tuning
    settings = quantization_config(tuning, torch.float32, [], packing=packing)
    assert (settings.load_in_4bit, settings.bnb_4bit_quant_type) == (True, "nf4")
