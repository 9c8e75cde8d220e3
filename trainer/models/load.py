"""The base model from a folder or from a config, at the dtype and attention of the run."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from trainer.config.sections import RunConfig
from trainer.errors import MachineError, ModelError
from trainer.models.packed_attention import FLASH, SEGMENT_SDPA
from trainer.models.quantized import prepare_layers, quantization_config, quantized_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NUM_CLASSES = 2


def choose_attention(wanted: str, precision: str, device: torch.device) -> tuple[str, str]:
    """The attention back end and the reason for it; FlashAttention computes in 16 bit only.

    Raises:
        ModelError: FlashAttention is asked for and is not there.
    """
    has_flash = precision != "fp32" and _flash_is_usable(device)
    if wanted == FLASH and not has_flash:
        raise ModelError(
            "model.attention flash_attention_2 needs the flash_attn package, a GPU of sm80 or newer"
            " and bf16 or fp16; take auto or sdpa"
        )
    if wanted != "auto":
        return wanted, "asked for"
    if has_flash:
        return FLASH, "flash_attn is installed and the GPU is sm80 or newer"
    if device.type == "cuda":
        return "sdpa", "GPU without usable flash_attn"
    return SEGMENT_SDPA, "CPU: cost follows the functions, not the row"


def choose_precision(config: RunConfig, zero_stage: int, device: torch.device) -> tuple[str, str]:
    """The training precision and the reason for it.

    Raises:
        MachineError: fp16 on a machine without it.
    """
    from deepspeed.accelerator import get_accelerator

    precision, reason = config.engine.precision, "asked for"
    if precision == "auto":
        if zero_stage == 0:
            precision, reason = "fp32", "ZeRO 0 is exact in fp32 only"
        elif device.type == "cpu":
            precision, reason = "fp32", "CPU"
        elif torch.cuda.get_device_capability(device) >= (8, 0):
            precision, reason = "bf16", "GPU of sm80 or newer"
        else:
            precision, reason = "fp16", "GPU older than sm80 has no bf16 tensor cores"
    if precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise MachineError("this machine does not compute in fp16; take engine.precision auto")
    return precision, reason


def base_dtype(config: RunConfig, precision: str) -> torch.dtype:
    """Of the weights as stored, and of the products of a quantised base."""
    return DTYPES[precision if config.model.dtype == "auto" else config.model.dtype]


def load_base(config: RunConfig, attention: str, precision: str) -> "PreTrainedModel":
    """The base, for classification with an untrained head, on the CPU, in evaluation mode.

    Args:
        config: The run; run.seed draws whatever has no weights.
        attention: Resolved back end.
        precision: Resolved; dtype of the weights unless model.dtype names another.

    Raises:
        ModelError: The architecture has no sequence classification, or the weights do not load.
    """
    dtype = base_dtype(config, precision)
    torch.manual_seed(config.run.seed)
    if config.model.path:
        model = _from_files(config, Path(config.model.path), dtype, attention)
    else:
        model = _from_config(config, dtype, attention)
    return _ready_to_train(model, config)


def load_quantized_base(
    config: RunConfig, attention: str, precision: str, source: Path, base_sha256: str
) -> "PreTrainedModel":
    """The base with its linear layers quantised, the rest and the head in the compute dtype.

    On a GPU it is quantised, and stays, there: bitsandbytes packs for the device.

    Args:
        config: The run; the head is drawn from run.seed, wherever the base comes from.
        attention: Resolved back end.
        precision: Resolved.
        source: Folder of the weights.
        base_sha256: Of base_digest, names the base in model.quantize_cache.

    Raises:
        ModelError: As load_base.
    """
    dtype = base_dtype(config, precision)
    head = "lm_head" if config.is_language else "score"
    settings = quantization_config(config.tuning, dtype, head)

    def quantize() -> "PreTrainedModel":
        return _from_files(config, source, dtype, attention, quantization_config=settings)

    if config.model.quantize_cache is None:
        model = quantize()
    else:
        cache = Path(config.model.quantize_cache)
        folder = quantized_folder(cache, base_sha256, settings, quantize)
        model = _from_files(config, folder, dtype, attention)
    if not config.is_language:
        torch.manual_seed(config.run.seed)
        model._init_weights(model.score)
    prepare_layers(model)
    return _ready_to_train(model, config)


def _from_files(
    config: RunConfig, source: Path, dtype: torch.dtype, attention: str, **more: Any
) -> "PreTrainedModel":
    with _model_errors(str(source)):
        model, seen = _auto_class(config).from_pretrained(
            str(source), config=_model_config(str(source)), dtype=dtype, use_safetensors=True,
            attn_implementation=attention, local_files_only=True, trust_remote_code=False,
            output_loading_info=True, **more,
        )  # fmt: skip
        drawn = () if config.is_language else ("score.",)
        _refuse_missing(str(source), seen["missing_keys"], seen["mismatched_keys"], drawn)
    loaded: PreTrainedModel = model
    return loaded


def _from_config(config: RunConfig, dtype: torch.dtype, attention: str) -> "PreTrainedModel":
    source = str(config.model.config)
    with _model_errors(source):
        drawn: PreTrainedModel = _auto_class(config).from_config(
            _model_config(source), dtype=dtype, attn_implementation=attention
        )
    return drawn


def _auto_class(config: RunConfig) -> Any:
    import transformers

    if config.is_language:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForSequenceClassification


def _model_config(source: str) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(
        source, num_labels=NUM_CLASSES, local_files_only=True, trust_remote_code=False
    )


@contextmanager
def _model_errors(source: str) -> Iterator[None]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except ModelError:
        raise
    except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{source}: the base model does not load: {error}") from error


def _ready_to_train(model: "PreTrainedModel", config: RunConfig) -> "PreTrainedModel":
    # With a pad id, the model looks for it in every batch, which waits for the GPU; nothing here
    # needs one, because the padding of a row is a segment of its own.
    model.config.pad_token_id = None
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.eval()


def _refuse_missing(
    source: str, missing: Iterable[str], mismatched: Iterable[object], drawn: tuple[str, ...]
) -> None:
    """Weights the files lack would be drawn at random without a word; only the head may be new."""
    absent = sorted(name for name in missing if not name.startswith(drawn))
    if absent or mismatched:
        odd = [*absent, *map(str, mismatched)]
        raise ModelError(
            f"{source}: {len(odd)} weights of the model are missing or of another shape, first"
            f" {odd[0]}; convert the weights again for this architecture"
        )


def _flash_is_usable(device: torch.device) -> bool:
    from importlib.util import find_spec

    if device.type != "cuda" or find_spec("flash_attn") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
