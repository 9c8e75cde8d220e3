"""tuning.init_from: start a run with the weights of an earlier one.

Layouts: PEFT's for LoRA, IA3 and P-Tuning, trainer/tuning/bottleneck.py's for bottleneck adapters,
a plain transformers folder for full fine-tuning.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from data.errors import json_object, parsing
from data.readers.reading import listed
from data.text.labels import Classes
from trainer.config.methods import HEAD, SCORE_FILE
from trainer.errors import ModelError
from trainer.tuning.any_peft import names_of
from trainer.tuning.bottleneck import BottleneckModel
from trainer.tuning.plain import PlainModel, is_backbone
from trainer.tuning.ptuning import ENCODER_FILE, is_prompted

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_CONFIG, _WEIGHTS, _FACTS = "adapter_config.json", "adapter_model.safetensors", "focaltune.json"
_REMEDY = "copy the adapter again"
_FULL = ("config.json", "model*.safetensors")  # a large model comes in shards
_MAY_DIFFER = (  # they change nothing that a trained adapter computes; nor do dropouts
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision",
    "task_type",
)  # fmt: skip


def adapter_folder(
    path: Path, base_sha256: str, method: str = "lora", classes: Classes | None = None
) -> Path:
    """The weights that tuning.init_from names: a folder from `save_model`, or a run with one.

    Args:
        path: The folder.
        base_sha256: Of this run's base.
        method: Of the tuning.
        classes: That a classifier of this run tells apart.

    Raises:
        ModelError: The folder holds no weights, or they were trained on another base or for other
            classes.
    """
    own = (path / name for name in ("model", "adapter"))  # adapter: of versions before 0.3
    folder = next((one for one in own if one.is_dir()), path)
    wanted = _FULL if method == "full" else (_CONFIG, _WEIGHTS)
    missing = [pattern for pattern in wanted if not list(folder.glob(pattern))]
    if missing:
        raise ModelError(
            f"tuning.init_from: {folder} holds no {' and no '.join(missing)}; give a finished run"
            f" of tuning.method {method}, or a folder as its model/"
        )
    facts = _json(folder / _FACTS) if (folder / _FACTS).is_file() else {}
    if facts.get("base_sha256", base_sha256) != base_sha256:
        raise ModelError(
            f"tuning.init_from: {folder} was trained on another base; set model.path to that base"
        )
    if classes is not None:
        _refuse_other_classes(folder, facts, classes)
    return folder


def take_adapter(model: "PeftModel | PlainModel", folder: Path) -> None:
    """Replace the fresh trained weights by those in a folder."""
    with parsing(f"tuning.init_from: {folder} cannot be read", ModelError, _REMEDY):
        if isinstance(model, PlainModel):
            if isinstance(model, BottleneckModel):
                _refuse_other(folder, model.settings, vars(model.settings))
                _take_by_name(model.get_base_model(), folder, _weights(folder, _WEIGHTS))
            else:
                _take_whole(model.get_base_model(), folder)
            return
        settings = model.peft_config["default"]
        _refuse_other(folder, settings, settings.to_dict())
        _take_peft(model, folder)


def _take_whole(base: "PreTrainedModel", folder: Path) -> None:
    """Take a plain transformers folder, in which experts have names and shapes of their own."""
    kind: Any = type(base)
    fresh, seen = kind.from_pretrained(
        None, config=base.config, dtype=base.dtype, state_dict=_weights(folder, _FULL[1]),
        output_loading_info=True,
    )  # fmt: skip
    _refuse_missing(folder, set(seen["missing_keys"]), sorted(seen["unexpected_keys"]))
    weights = fresh.state_dict()
    if is_backbone(base):
        weights |= {f"{HEAD}.{name}": v for name, v in _weights(folder, SCORE_FILE).items()}
    _take_by_name(base, folder, weights)


def _take_by_name(base: nn.Module, folder: Path, weights: Mapping[str, Tensor]) -> None:
    result = base.load_state_dict(weights, strict=False)
    trained = {name for name, parameter in base.named_parameters() if parameter.requires_grad}
    _refuse_missing(folder, trained & set(result.missing_keys), result.unexpected_keys)


def _take_peft(model: "PeftModel", folder: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = _weights(folder, _WEIGHTS)
    if is_prompted(model) and not (folder / ENCODER_FILE).is_file():
        raise ModelError(
            f"tuning.init_from: {folder} holds no {ENCODER_FILE}: without their encoder virtual"
            " tokens can be used, but not trained further; give a run's folder"
        )
    result: Any = set_peft_model_state_dict(model, weights)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing, names = set(result.missing_keys), names_of(model)
    absent = {name for name in trained if missing.issuperset(names[name])}
    if is_prompted(model):
        model.prompt_encoder["default"].load_state_dict(load_file(folder / ENCODER_FILE))
        absent = {name for name in absent if not name.startswith("prompt_encoder.")}
    _refuse_missing(folder, absent, [n for n in result.unexpected_keys if n != "prompt_embeddings"])


def _refuse_other(folder: Path, settings: Any, fresh: Mapping[str, Any]) -> None:
    """Refuse an adapter of other settings; what its file lacks has the default of its class."""
    defaults = {one.name: one.default for one in fields(settings) if one.default is not MISSING}
    saved = defaults | _json(folder / _CONFIG)
    for key in fresh:
        if key in _MAY_DIFFER or key.endswith("dropout"):
            continue
        before, now = _comparable(saved.get(key)), _comparable(fresh[key])
        if before != now:
            raise ModelError(
                f"tuning.init_from: {folder} has {key} {before}, this recipe {now}; an adapter is"
                " continued with its own"
            )


def _refuse_other_classes(folder: Path, facts: Mapping[str, Any], classes: Classes) -> None:
    """Class ids have a meaning: the same number of other classes would fit without a word."""
    names, problem = list(classes.names), classes.problem_type
    saved, saved_problem = facts.get("classes") or names, facts.get("problem_type", problem)
    if (saved, saved_problem) != (names, problem):
        own = ", ".join(f"{name}: {name}" for name in map(str, saved))
        raise ModelError(
            f"tuning.init_from: {folder} tells apart {listed(map(str, saved))} ({saved_problem}),"
            f" this data {listed(names)} ({problem}); a head is continued with its own classes in"
            f" their order: map the labels to them, data.labels={{{own}}}, or begin a head of its"
            " own without tuning.init_from"
        )


def _refuse_missing(folder: Path, missing: set[str], unexpected: list[str]) -> None:
    odd = [*sorted(missing), *unexpected]
    if odd:
        raise ModelError(f"tuning.init_from: {folder}: {len(odd)} weights differ, first {odd[0]}")


def _weights(folder: Path, pattern: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    whole: dict[str, Tensor] = {}
    for path in sorted(folder.glob(pattern)):
        with parsing(f"{path}: not a safetensors file", ModelError, _REMEDY):
            whole |= load_file(path)
    return whole


def _json(path: Path) -> dict[str, Any]:
    return json_object(path, ModelError, _REMEDY)


def _comparable(value: Any) -> Any:
    """One form for module names, which come as lists or sets, with duplicates, or as null.

    Other lists keep their order: the rows of trainable_tokens lie in that of token_indices.
    """
    plain = getattr(value, "value", value)  # PEFT's enumerations
    if plain == "" or (isinstance(plain, list | set | tuple | dict) and not plain):
        return None
    if isinstance(plain, list | set | tuple):
        is_names = all(isinstance(one, str) for one in plain)
        return sorted(set(plain)) if is_names else list(plain)
    return plain
