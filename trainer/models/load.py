"""The base model from a folder or from a config, at the dtype and attention of the run."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data.errors import parsing
from trainer.architectures.shapes import NUM_CLASSES
from trainer.config.sections import RunConfig
from trainer.errors import ModelError
from trainer.models import packed_attention  # noqa: F401 registers segment_sdpa
from trainer.models.quantized import prepare_layers, quantization_config, quantized_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_base(config: RunConfig) -> "PreTrainedModel":
    """The base, for classification with an untrained head, on the CPU, in evaluation mode.

    Args:
        config: The run, its precision and attention settled; run.seed draws what has no weights.

    Raises:
        ModelError: The architecture has no sequence classification, or the weights do not load.
    """
    torch.manual_seed(config.run.seed)
    if config.model.path:
        return _ready_to_train(_from_files(config, Path(config.model.path)), config)
    source = str(config.model.config)
    with _model_errors(source):
        drawn = _auto_class(config).from_config(
            _model_config(source),
            dtype=DTYPES[config.base_dtype],
            attn_implementation=config.model.attention,
        )
    return _ready_to_train(drawn, config)


def load_quantized_base(config: RunConfig, source: Path, base_sha256: str) -> "PreTrainedModel":
    """The base with its linear layers quantised, the rest and the head in the compute dtype.

    On a GPU it is quantised, and stays, there: bitsandbytes packs for the device.
    The head is drawn from run.seed, wherever the base comes from.

    Args:
        config: The run, settled.
        source: Folder of the weights.
        base_sha256: From `base_digest`; names the base in model.quantize_cache.

    Raises:
        ModelError: As load_base.
    """
    head = "lm_head" if config.is_language else "score"
    settings = quantization_config(config.tuning, DTYPES[config.base_dtype], head)

    def quantize() -> "PreTrainedModel":
        return _from_files(config, source, quantization_config=settings)

    if config.model.quantize_cache is None:
        model = quantize()
    else:
        cache = Path(config.model.quantize_cache)
        folder = quantized_folder(cache, base_sha256, settings, quantize)
        model = _from_files(config, folder)
    if not config.is_language:
        torch.manual_seed(config.run.seed)
        model._init_weights(model.score)
    prepare_layers(model)
    return _ready_to_train(model, config)


def _from_files(config: RunConfig, source: Path, **more: Any) -> "PreTrainedModel":
    with _model_errors(str(source)):
        model, seen = _auto_class(config).from_pretrained(
            str(source), config=_model_config(str(source)), dtype=DTYPES[config.base_dtype],
            attn_implementation=config.model.attention, use_safetensors=True, local_files_only=True,
            trust_remote_code=False, output_loading_info=True, **more,
        )  # fmt: skip
        drawn = () if config.is_language else ("score.",)
        _refuse_missing(str(source), seen["missing_keys"], seen["mismatched_keys"], drawn)
    loaded: PreTrainedModel = model
    return loaded


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
    with parsing(f"{source}: the base model does not load", ModelError, "fetch its files again"):
        yield


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
