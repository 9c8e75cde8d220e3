"""A base whose weights stay in the dtype of their files, mapped, until each of them is needed.

A rank that casts a whole base holds a copy of it. Under ZeRO 3 a rank needs a part alone, so each
weight is cast when it is cut up.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from trainer.architectures.classes import head_modules
from trainer.config.sections import OWN_METHODS, RunConfig
from trainer.models.weights import tensor_dtypes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SAVED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # safetensors' names
_M_MMAP_THRESHOLD = -3  # of malloc.h


def saved_dtype(
    config: RunConfig,
    files: Sequence[Path],
    skeleton: Callable[[torch.dtype], "PreTrainedModel"],
) -> torch.dtype | None:
    """The dtype of files from which every weight can be cast later to the same values; else None.

    All of their numbers have to be of it, and no buffer or chosen layer of the model may depend on
    the dtype that it is made in.

    Args:
        skeleton: The model without weights, made in a dtype.
    """
    wanted, tuning = DTYPES[config.base_dtype], config.tuning
    if tuning.method not in OWN_METHODS or tuning.peft or tuning.variant == "dora":
        return None  # the method may compute with the weights
    kinds = {kind for kind in tensor_dtypes(files) if "F" in kind}
    saved = _SAVED.get(kinds.pop()) if len(kinds) == 1 else None
    if saved is None or saved == wanted:
        return None
    skeletons = [skeleton(dtype) for dtype in (wanted, saved)]
    now, later = ({n: b.dtype for n, b in one.named_buffers()} for one in skeletons)
    keeps = any(
        getattr(skeletons[0], f"_keep_in_fp32_modules{end}", None) for end in ("", "_strict")
    )
    return None if keeps or now != later else saved


def cast_to_run(config: RunConfig, base: nn.Module) -> Callable[[nn.Parameter], None]:
    """What gives a parameter the dtype that ZeRO 3 takes it in.

    That of the run for a weight of a base that was loaded `as_saved`, and one for all that is
    trained: in 16 bit PEFT keeps adapters in fp32, beside a head that is not.
    """
    saved = next((one.saved_dtype for one in base.modules() if hasattr(one, "saved_dtype")), None)
    is_full = config.tuning.method == "full"

    def cast(parameter: nn.Parameter) -> None:
        if parameter.dtype == saved and (is_full or not parameter.requires_grad):
            parameter.data = parameter.data.to(DTYPES[config.base_dtype])
        if parameter.requires_grad:
            parameter.data = parameter.data.to(DTYPES[config.engine.precision])

    return cast


@contextmanager
def in_dtype_of_run(config: RunConfig, base: "PreTrainedModel") -> Iterator[None]:
    """Show a base that was loaded `as_saved` in its later dtype, without values or memory.

    PEFT rounds adapters to the dtype of what they adapt. What it copies, because it is trained
    whole, has its values.
    """
    saved, wanted = getattr(base, "saved_dtype", None), DTYPES[config.base_dtype]
    names = [*head_modules(base), *config.tuning.modules_to_save] if saved else []
    for path, module in base.named_modules():
        if path in names or path.rpartition(".")[2] in names:
            module.to(wanted)
    kept = [(one, one.data) for one in base.parameters() if one.dtype == saved]
    for parameter, values in kept:
        parameter.data = values.new_empty(1).to(wanted).expand(values.shape)
    yield
    for parameter, values in kept:
        parameter.data = values


def return_freed_memory() -> None:
    """Have glibc give freed tensors back, of which it would keep those below 32 MiB.

    A process whose tensors are on a GPU allocates large ones on the host at its start alone.
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
