"""The base model from a folder or from a config, at the dtype and attention of the run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import nn

from data.errors import parsing
from data.text.labels import Classes
from trainer.architectures.classes import (
    OWN,
    ModelClass,
    head_modules,
    model_class,
    scores_last_state,
)
from trainer.config.methods import HEAD, SCORE_FILE
from trainer.config.sections import RunConfig
from trainer.errors import ModelError
from trainer.models.as_saved import DTYPES, return_freed_memory, saved_dtype
from trainer.models.files import config_values
from trainer.models.quantized import prepare_layers, quantization_config, quantized_folder
from trainer.models.text_model import text_names
from trainer.models.weights import (
    CONFIG,
    named_files,
    refuse_not_finite,
    tensor_names,
    weight_files,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VULNERABILITY = Classes()
CPU = torch.device("cpu")


def load_base(
    config: RunConfig,
    classes: Classes = VULNERABILITY,
    device: torch.device = CPU,
    *,
    as_saved: bool = False,
) -> "PreTrainedModel":
    """The base, for classification with an untrained head, in evaluation mode.

    Weights of files go to the device one after the other, so the host holds a few tensors of them.

    Args:
        config: The run, its precision and attention settled; run.seed draws what has no weights.
        classes: What a classifier tells apart; their names are what stock tools show.
        device: Where weights of files go; random ones are drawn on the CPU, and stay there.
        as_saved: Leave weights in the dtype of their files, which the host maps and does not copy,
            where `cast_to_run` can cast each of them later to the same values.

    Raises:
        ModelError: transformers has no class for the task, or the weights do not load.
    """
    torch.manual_seed(config.run.seed)
    if config.model.path:
        source = Path(config.model.path)
        files = _sound_files(source)
        dtype = None
        if as_saved:
            dtype = saved_dtype(config, files, lambda one: _skeleton(config, source, classes, one))
        model = _from_files(config, source, files, classes, device, dtype)
        if dtype is not None or device.type != "cpu":  # drawn in another dtype, or by the device
            _draw_head(model, config, tensor_names(files))
        if dtype is not None:
            model.saved_dtype = dtype
        return _ready_to_train(_with_score(model, source, DTYPES[config.base_dtype]), config)
    path = config.model.config_file
    with named_files(path.parent, config_values(path), ()) as folder, _model_errors(str(path)):
        kind = _model_class(folder, config, classes)
        drawn = kind.auto.from_config(
            kind.settings, dtype=DTYPES[config.base_dtype], trust_remote_code=False, **kind.more
        )
        _say_how(drawn, kind)
    return _ready_to_train(_with_score(drawn), config)


def load_quantized_base(
    config: RunConfig, source: Path, base_sha256: str, classes: Classes = VULNERABILITY
) -> "PreTrainedModel":
    """The base with its linear layers quantised, the rest and the head in the compute dtype.

    On a GPU it is quantised, and stays, there: bitsandbytes packs for the device.
    A head that the files lack is drawn from run.seed, wherever the base comes from.

    Args:
        base_sha256: From `base_digest`; names the base in model.quantize_cache.
        classes: As in load_base.

    Raises:
        ModelError: As load_base.
    """
    settings = quantization_config(
        config.tuning,
        DTYPES[config.base_dtype],
        _unquantised(config, source, classes),
        packing=config.data.packing,
    )

    def quantize() -> "PreTrainedModel":
        files = _sound_files(source)
        return _from_files(config, source, files, classes, quantization_config=settings)

    if config.model.quantize_cache is None:
        model = quantize()
    else:
        cache = Path(config.model.quantize_cache)
        key = f"{base_sha256} {len(classes.names)}"  # it holds a head
        folder = quantized_folder(cache, key, settings, quantize)
        model = _from_files(config, folder, weight_files(folder), classes)
    with _model_errors(str(source)):
        saved = tensor_names(weight_files(source))
    _draw_head(model, config, saved)
    prepare_layers(model)
    return _ready_to_train(_with_score(model, source), config)


def _unquantised(config: RunConfig, source: Path, classes: Classes) -> list[str]:
    """Paths of a classifier's head, or of a language model's output layer."""
    skeleton = _skeleton(config, source, classes)
    output = skeleton.get_output_embeddings()
    names = [name for name, module in skeleton.named_modules() if module is output]
    return [*names, *head_modules(skeleton)]


def _skeleton(
    config: RunConfig, source: Path, classes: Classes, dtype: torch.dtype | None = None
) -> "PreTrainedModel":
    """The model of a folder without weights."""
    with (
        named_files(source, config_values(source / CONFIG), ()) as folder,
        _model_errors(str(source)),
    ):
        return _model_class(folder, config, classes).skeleton(dtype=dtype)


def _draw_head(model: "PreTrainedModel", config: RunConfig, saved: set[str]) -> None:
    """Draw what files lack of a head from run.seed, on the CPU: the same numbers on any device."""
    torch.manual_seed(config.run.seed)
    for path in head_modules(model):
        for name, module in model.get_submodule(path).named_modules(prefix=path):
            own = list(module.parameters(recurse=False))
            if not own or _are_saved(model, name, module, saved):
                continue
            device = own[0].device
            module.to_empty(device="cpu", recurse=False)
            for parameter in own:
                parameter.data = parameter.data.to(DTYPES[config.base_dtype])
                parameter._is_hf_initialized = False  # a cached head is of another seed
            model._init_weights(module)
            module.to(device)


def _are_saved(model: "PreTrainedModel", path: str, module: nn.Module, saved: set[str]) -> bool:
    """Whether files hold a module's own parameters, named in the whole model or in its backbone."""
    own = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
    return all({name, name.removeprefix(f"{model.base_model_prefix}.")} & saved for name in own)


def _sound_files(source: Path) -> list[Path]:
    with _model_errors(str(source)):
        files = weight_files(source)
        refuse_not_finite(files)  # quantised, they would be numbers
    return files


def _from_files(
    config: RunConfig,
    source: Path,
    files: Sequence[Path],
    classes: Classes,
    device: torch.device = CPU,
    dtype: torch.dtype | None = None,
    **more: Any,
) -> "PreTrainedModel":
    """The model of these files.

    Settled here, because from_pretrained decides it by what it finds: files (`named_files`), dtype
    (config.json names another), code (none), the network (not used), kernels of a hub (not used:
    use_kernels is off), the attributes that name the source in what is saved, and tied weights that
    differ in the files. Attention is transformers' own until proof.py chooses.
    """
    values = config_values(source / CONFIG)
    if device.type != "cpu":
        return_freed_memory()
        more["device_map"] = {"": device}
    with named_files(source, values, files) as folder, _model_errors(str(source)):
        kind = _model_class(folder, config, classes)
        names = text_names(tensor_names(files), kind.skeleton()) if "text_config" in values else {}
        model, seen = kind.auto.from_pretrained(
            folder, config=kind.settings, key_mapping=names,
            dtype=dtype or DTYPES[config.base_dtype],
            use_safetensors=True, local_files_only=True, trust_remote_code=False, use_kernels=False,
            output_loading_info=True, **kind.more, **more,
        )  # fmt: skip
        _say_how(model, kind, names)
        # A backbone may have a pooler that our head does not read.
        drawn = head_modules(model) if kind.pooling == "auto" else ["pooler"]
        _refuse_missing(str(source), seen["missing_keys"], seen["mismatched_keys"], drawn)
    loaded: PreTrainedModel = model
    loaded.name_or_path = loaded.config._name_or_path = str(source)
    head = loaded.get_output_embeddings()
    if head is not None and head.weight is not loaded.get_input_embeddings().weight:
        # transformers keeps both where they differ; what is saved has to say so, too.
        loaded.config.tie_word_embeddings = False
    return loaded


def _model_class(folder: str, config: RunConfig, classes: Classes) -> ModelClass:
    import transformers

    settings = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    kind = model_class(settings, None if config.is_language else config.model.pooling)
    if not config.is_language:
        kind.settings.id2label = dict(enumerate(classes.names))
        kind.settings.label2id = {name: number for number, name in enumerate(classes.names)}
        kind.settings.problem_type = classes.problem_type
    return kind


def _say_how(model: Any, kind: ModelClass, names: Mapping[str, str] | None = None) -> None:
    """Keep beside the model how a classifier reads states, and how a text model is named in files.

    What is saved of the model has its own names: from_pretrained would give it those of the files.
    """
    pooling = kind.pooling
    if pooling == "auto":
        pooling = "last" if scores_last_state(model) else OWN
    model.pooling, model.key_mapping = pooling, dict(names or {})
    if names:
        del model._weight_conversions


def _with_score(
    model: Any, source: Path | None = None, dtype: torch.dtype | None = None
) -> "PreTrainedModel":
    """Put our own head on a backbone, with the weights that this program saved in its folder."""
    if model.pooling != OWN and not hasattr(model, HEAD):
        sizes = model.config.hidden_size, model.config.num_labels
        score = nn.Linear(*sizes, bias=False, dtype=dtype or model.dtype)
        model.add_module(HEAD, score)
        model._init_weights(score)
        if source is not None and (source / SCORE_FILE).is_file():
            with _model_errors(str(source / SCORE_FILE)):
                score.load_state_dict(load_file(source / SCORE_FILE))
    whole: PreTrainedModel = model
    return whole


@contextmanager
def _model_errors(source: str) -> Iterator[None]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with parsing(f"{source}: the base model does not load", ModelError, "fetch its files again"):
        yield


def _ready_to_train(model: "PreTrainedModel", config: RunConfig) -> "PreTrainedModel":
    _refuse_own(model, config)
    with suppress(StrictDataclassError):  # some configs demand an id
        model.config.pad_token_id = None if config.is_language else _pad_id(model)
    if config.model.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ModelError(
                f"model_type {model.config.model_type} has no gradient checkpointing in"
                " transformers; set model.gradient_checkpointing=false"
            )
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.eval()


def _refuse_own(model: Any, config: RunConfig) -> None:
    """What the forward pass of a classifier's class does not do."""
    kind = model.config.model_type
    if config.is_language or model.pooling != OWN:
        return
    if config.engine.precision == "fp32" and config.base_dtype != "fp32":
        raise ModelError(
            f"model.dtype {config.base_dtype} with engine.precision fp32: the head of {kind} would"
            " get states of another type than its weights; set model.dtype=auto, or model.pooling"
        )
    if config.tuning.method == "ptuning" and model.config.is_encoder_decoder:
        raise ModelError(
            f"tuning.method ptuning: the head of {kind} looks for the end token among token ids,"
            " and virtual tokens have none; take tuning.method=lora"
        )


def _pad_id(model: Any) -> int | None:
    """The id that the model's own forward pass looks for, other than the end that a head reads.

    None where our own code pads: with an id, models look for it in every batch, which waits for
    the GPU.
    """
    if model.pooling != OWN:
        return None
    ends = getattr(model.config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    wanted = (getattr(model.config, "pad_token_id", None), *range(len(ends) + 1))
    return next(int(pad) for pad in wanted if pad is not None and pad not in ends)


def _refuse_missing(
    source: str, missing: Iterable[str], mismatched: Iterable[object], drawn: Iterable[str]
) -> None:
    """Weights the files lack would be drawn at random without a word; only the head may be new."""
    new = tuple(f"{path}." for path in drawn)
    absent = sorted(name for name in missing if not name.startswith(new))
    if absent or mismatched:
        odd = [*absent, *map(str, mismatched)]
        raise ModelError(
            f"{source}: {len(odd)} weights of the model are missing or of another shape, first"
            f" {odd[0]}; convert the weights again for this architecture"
        )
