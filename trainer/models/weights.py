"""What is loaded of a model folder: config.json and the weights it names, nothing beside them.

`from_pretrained` looks around in the folder it gets. It puts an adapter of adapter_config.json into
the base, takes settings of generation_config.json, which can make every later save fail, prefers
sharded tensors of other programs, and follows other files that config.json names. So it gets
a folder that holds only what is listed here.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data.errors import json_object, parsing
from trainer.errors import ModelError

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Keys of config.json for one caller's way of running the model, not for what the model is.
_NOT_OBEYED = (
    "attn_implementation", "_attn_implementation", "experts_implementation",  # model.attention
    "output_attentions", "output_hidden_states", "return_dict",  # they change what a layer returns
    "auto_map",  # code: files.py refuses a base that names some
)  # fmt: skip


def weight_files(folder: Path) -> list[Path]:
    """The files of a base's weights: model.safetensors, or the shards that its index lists.

    Raises:
        ModelError: There are none, both are there, or a shard is missing.
    """
    whole, index = folder / _WHOLE, folder / _INDEX
    if whole.is_file() and index.is_file():
        raise ModelError(
            f"{folder} holds {_WHOLE} and {_INDEX}, which names other files; move away the one that"
            " is not the model"
        )
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise ModelError(_no_weights(folder))
    names = _shard_names(index)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(
            f"{index}: {len(missing)} of {len(names)} shards are missing, first {missing[0]}; fetch"
            " the folder again"
        )
    return [folder / name for name in names]


@contextmanager
def named_files(source: Path, values: dict[str, Any], files: Sequence[Path]) -> Iterator[str]:
    """A temporary folder of config.json and links to the weights, for `from_pretrained`."""
    kept = {key: value for key, value in values.items() if key not in _NOT_OBEYED}
    with TemporaryDirectory(prefix="focaltune-model-") as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(kept), encoding="utf-8")
        if files and files[0].name != _WHOLE:
            files = [*files, source / _INDEX]
        for path in files:
            (Path(folder) / path.name).symlink_to(path.resolve())
        yield folder


def tensor_names(files: Sequence[Path]) -> set[str]:
    """Names of the tensors in files of weights."""
    from safetensors import safe_open

    names: set[str] = set()
    for path in files:
        with safe_open(path, "pt") as tensors:
            names.update(tensors.keys())
    return names


def tensor_dtypes(files: Sequence[Path]) -> set[str]:
    """Dtypes of the tensors in files of weights, as safetensors names them: BF16, F32, I64."""
    from safetensors import safe_open

    found: set[str] = set()
    for path in files:
        with safe_open(path, "pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return found


def refuse_not_finite(files: Sequence[Path]) -> None:
    """Name the first tensor that holds NaN or infinity: every loss would be NaN.

    Read from the files, before bitsandbytes could quantise it into numbers. The cost is that of
    reading them, 15 GB/s from memory.
    """
    import torch
    from safetensors import safe_open

    floats = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for path in files:
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 it is not a dict
                tensor = tensors.get_tensor(name)
                if tensor.dtype not in floats or not tensor.numel():
                    continue
                if not torch.stack(torch.aminmax(tensor)).isfinite().all():
                    count = int((~tensor.isfinite()).sum())
                    raise ModelError(
                        f"{path}: tensor {name!r} holds NaN or infinity in {count:,} of"
                        f" {tensor.numel():,} values; fetch the weights again or take another base"
                    )


def not_loaded_line(folder: Path) -> str | None:
    """Says that an adapter beside the weights is not loaded, and how to continue it."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    return (
        f"the base alone: {folder / ADAPTER_CONFIG} is not loaded; to train that adapter further"
        f" set tuning.init_from={folder}"
    )


def no_config_message(folder: Path) -> str:
    """Why a folder without config.json is not a base, and what it may be instead."""
    if (folder / ADAPTER_CONFIG).is_file():
        return (
            f"{folder} is an adapter ({ADAPTER_CONFIG}), not a base model: set model.path to its"
            f" base and tuning.init_from={folder}"
        )
    return f"{folder / CONFIG} does not exist; a base model needs its {CONFIG}"


def _no_weights(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if (folder / ADAPTER_CONFIG).is_file() and set(found) <= {"adapter_model.safetensors"}:
        return (
            f"{folder} holds an adapter and no weights of a base: set model.path to its base and"
            f" tuning.init_from={folder}"
        )
    if found:
        return (
            f"{folder} holds neither {_WHOLE} nor {_INDEX}, found {found[:4]}; fetch what is"
            " missing, or rename the file of the whole model"
        )
    return (
        f"{folder} holds no .safetensors file; convert its weights with"
        " save_pretrained(FOLDER, safe_serialization=True)"
    )


def _shard_names(index: Path) -> list[str]:
    remedy = "fetch it again"
    with parsing(f"{index}: weight_map must name the file of every tensor", ModelError, remedy):
        named = json_object(index, ModelError, remedy)["weight_map"].values()
        names = sorted({str(name) for name in named})
    for name in names:
        if Path(name).name != name or Path(name).suffix != ".safetensors":
            raise ModelError(
                f"{index}: a shard must be a .safetensors file of this folder, found {name!r};"
                f" {remedy}"
            )
    if not names:
        raise ModelError(f"{index} names no file of weights; {remedy}")
    return names
