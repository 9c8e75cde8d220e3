"""The base model from a folder or from a config, at the dtype and attention of the run."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data.errors import parsing
from trainer.config.sections import RunConfig
from trainer.errors import ModelError
from trainer.models.files import config_values
from trainer.models.quantized import prepare_layers, quantization_config, quantized_folder
from trainer.models.weights import (
    CONFIG,
    named_files,
    refuse_not_finite,
    tensor_names,
    weight_files,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEAD = "score."  # of a classifier; transformers' name
CLASSES = ("not vulnerable", "vulnerable")  # by class id; what stock tools show
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
        source = Path(config.model.path)
        return _ready_to_train(_from_files(config, source, _sound_files(source)), config)
    path = config.model.config_file
    with named_files(path.parent, config_values(path), ()) as folder, _model_errors(str(path)):
        drawn = _auto_class(config).from_config(
            _model_config(folder, config), **_explicit(config), trust_remote_code=False
        )
    return _ready_to_train(drawn, config)


def load_quantized_base(config: RunConfig, source: Path, base_sha256: str) -> "PreTrainedModel":
    """The base with its linear layers quantised, the rest and the head in the compute dtype.

    On a GPU it is quantised, and stays, there: bitsandbytes packs for the device.
    A head that the files lack is drawn from run.seed, wherever the base comes from.

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
        files = _sound_files(source)
        return _from_files(config, source, files, quantization_config=settings)

    if config.model.quantize_cache is None:
        model = quantize()
    else:
        cache = Path(config.model.quantize_cache)
        folder = quantized_folder(cache, base_sha256, settings, quantize)
        model = _from_files(config, folder, weight_files(folder))
    with _model_errors(str(source)):
        has_head = any(name.startswith(_HEAD) for name in tensor_names(weight_files(source)))
    if not config.is_language and (config.model.config or not has_head):
        torch.manual_seed(config.run.seed)
        model._init_weights(model.score)
    prepare_layers(model)
    return _ready_to_train(model, config)


def _sound_files(source: Path) -> list[Path]:
    with _model_errors(str(source)):
        files = weight_files(source)
        refuse_not_finite(files)  # quantised, they would be numbers
    return files


def _from_files(
    config: RunConfig, source: Path, files: Sequence[Path], **more: Any
) -> "PreTrainedModel":
    """The model of these files.

    Settled here, because from_pretrained decides it by what it finds: files (`named_files`), dtype
    (`_explicit`; config.json names another), code (none), the network (not used), kernels of a hub
    (not used: use_kernels is off), the attributes that name the source in what is saved, and tied
    weights that differ in the files. Attention is transformers' own until proof.py chooses.
    """
    values = config_values(source / CONFIG)
    with named_files(source, values, files) as folder, _model_errors(str(source)):
        model, seen = _auto_class(config).from_pretrained(
            folder, config=_model_config(folder, config), **_explicit(config), use_safetensors=True,
            local_files_only=True, trust_remote_code=False, use_kernels=False,
            output_loading_info=True, **more,
        )  # fmt: skip
        drawn = () if config.is_language else (_HEAD,)
        _refuse_missing(str(source), seen["missing_keys"], seen["mismatched_keys"], drawn)
    loaded: PreTrainedModel = model
    loaded.name_or_path = loaded.config._name_or_path = str(source)
    head = loaded.get_output_embeddings()
    if head is not None and head.weight is not loaded.get_input_embeddings().weight:
        # transformers keeps both where they differ; what is saved has to say so, too.
        loaded.config.tie_word_embeddings = False
    return loaded


def _auto_class(config: RunConfig) -> Any:
    import transformers

    if config.is_language:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForSequenceClassification


def _explicit(config: RunConfig) -> dict[str, Any]:
    return {"dtype": DTYPES[config.base_dtype]}


def _model_config(folder: str, config: RunConfig) -> Any:
    import transformers

    labels = {
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: number for number, name in enumerate(CLASSES)},
    }
    return transformers.AutoConfig.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        **({} if config.is_language else labels),
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
