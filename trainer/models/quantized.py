"""A base whose linear layers bitsandbytes keeps in 4 or 8 bits (Dettmers et al. 2022, 2023)."""

import hashlib
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data.prepared.cache import cached
from trainer.config.sections import TuningSection

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


def quantization_config(
    tuning: TuningSection, dtype: torch.dtype, head: list[str], *, packing: bool
) -> "BitsAndBytesConfig":
    """The settings for transformers; the head and modules trained whole are not quantised.

    A layer decodes its weight to `dtype`, that of the products, when it is used. LLM.int8 takes a
    column out of the 8 bits for all tokens of a batch where one of them has an outlier in it, so
    that packed records change each other: with packing it keeps every column, rounded by token.
    """
    from transformers import BitsAndBytesConfig

    kept = [*head, *tuning.modules_to_save]
    if tuning.base_quant_type == "int8":
        outliers = {"llm_int8_threshold": 0.0} if packing else {}
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept, **outliers)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=tuning.base_quant_type,
        bnb_4bit_use_double_quant=tuning.double_quant,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def prepare_layers(model: nn.Module) -> None:
    """Keep 4-bit layers trainable, and their weights right, on CPUs with AVX512.

    On these a forward pass in evaluation mode repacks the weights for inference, and every later
    gradient is wrong (88% off, with only a warning). And bitsandbytes 0.50.2 decodes rows that are
    not a multiple of 64 wrongly: such layers multiply by the weight decoded as one row.
    """
    import bitsandbytes

    for layer in quantized_layers(model).values():
        if not isinstance(layer, bitsandbytes.nn.Linear4bit):
            continue
        layer.support_avx512bf16_for_cpu = False
        if layer.weight.device.type == "cpu" and not _decodes_rows(layer.in_features):
            layer.forward = partial(_product, layer)


@cache
def _decodes_rows(width: int) -> bool:
    """Whether this CPU decodes rows of a width as the table of the 16 values says."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    probe = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    packed, state = quantize_4bit(probe, blocksize=64, quant_type="nf4")
    two = packed.flatten()
    codes = torch.stack([two >> 4, two & 15], dim=1).flatten()[: probe.numel()].long()
    scale = state.absmax.repeat_interleave(64)[: probe.numel()]
    right = (state.code[codes] * scale).view(probe.shape)
    return torch.allclose(dequantize_4bit(packed, state), right, rtol=1e-3, atol=1e-5)


def _product(layer: Any, x: Tensor) -> Tensor:
    """As the layer's own, by the weight decoded as one row."""
    from trainer.tuning.fused_lora_4bit import decoded

    dtype = layer.compute_dtype or x.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    weight = decoded(layer.weight, layer.weight.quant_state, dtype)
    product = nn.functional.linear(x.to(dtype), weight, bias)
    return product.to(x.dtype)


def quantized_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The quantised layers by name."""
    bitsandbytes = sys.modules.get("bitsandbytes")
    if bitsandbytes is None:  # nobody has made such a layer
        return {}
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def decoded_weight(layer: nn.Linear) -> Tensor:
    """The weight by which a quantised layer multiplies, (out, in), in fp32."""
    from peft.utils.integrations import dequantize_bnb_weight

    from trainer.tuning.fused_lora_4bit import decoded

    state = getattr(layer.weight, "quant_state", None)
    if state is not None:
        return decoded(layer.weight, state, torch.float32)
    whole: Tensor = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
    return whole.float()


def quantization_line(model: nn.Module, tuning: TuningSection, dtype: torch.dtype) -> str:
    """The line of the banner: which layers are quantised, how, and which are not."""
    layers = quantized_layers(model)
    names = sorted({name.replace(".base_layer", "").rpartition(".")[2] for name in layers})
    kind = tuning.base_quant_type
    twice = ", double quantisation" if kind != "int8" and tuning.double_quant else ""
    stored = sum(layer.weight.nbytes for layer in layers.values())
    return (
        f"{kind}{twice}, products in {str(dtype).removeprefix('torch.')}:"
        f" {len(layers)} layers ({', '.join(names)}) in {stored / 2**20:,.1f} MiB; embeddings,"
        " norms and the head are not quantised"
    )


def quantized_folder(
    root: Path,
    base_sha256: str,
    settings: "BitsAndBytesConfig",
    quantize: Callable[[], "PreTrainedModel"],
) -> Path:
    """The quantised base in model.quantize_cache; the first process that needs it makes it."""
    parts = (
        base_sha256, settings.to_json_string(), version("bitsandbytes"), version("transformers"),
    )  # fmt: skip
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def build(folder: Path) -> dict[str, Any]:
        quantize().save_pretrained(str(folder))
        return {"base": base_sha256, "quantization": settings.to_dict()}

    return cached(root, key, build, "model.quantize_cache")
