"""The optimizer's groups and the learning rate, a pure function of the number of updates."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from trainer.config.sections import OptimSection
from trainer.errors import ConfigError, MachineError
from trainer.planning.memory import PAGED_REMEDY

_LEAST_PAGED = 100_000  # elements; bitsandbytes keeps the moments of smaller ones on the GPU
RATE = "rate"  # of a group's learning rate to that of the others
_LORA_B = (".lora_B.", ".lora_embedding_B.")
_BLOCK = re.compile(r"\.(\d+)\.")
_Rated = tuple[str, nn.Parameter, float]


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], optim: OptimSection
) -> torch.optim.Optimizer:
    """optim.optimizer over the trainable of these parameters and their names, in their order.

    Weight decay applies to matrices: vectors are biases and norms. AdamW: Loshchilov & Hutter 2019.
    8-bit moments are those of Dettmers et al. 2022, in blocks of 256 with a scale each; paged ones
    lie in memory that the driver moves to the host when the GPU is full (Dettmers et al. 2023).
    Lion: Chen et al. 2023. Muon (Jordan et al. 2024) is for matrices within blocks, scaled to the
    size of AdamW's updates (Liu et al. 2025), so that its rate fits the rest, which AdamW updates.
    Adafactor (Shazeer & Stern 2018) is transformers', whose rate can be absolute: torch's is a
    multiple of a weight's own size, and LoRA's B begins at 0.

    Raises:
        ConfigError: muon, and nothing that is trained is a matrix within a block.
    """
    rated = _with_rates(parameters, optim)
    betas = (optim.betas[0], optim.betas[1])

    def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps)

    if optim.optimizer == "adamw":
        return adamw(_groups(rated, optim))
    if optim.optimizer == "sgd":
        return torch.optim.SGD(_groups(rated, optim), lr=optim.lr, momentum=betas[0])
    if optim.optimizer == "muon":
        inner = [one for one in rated if one[1].ndim == 2 and _BLOCK.search(one[0])]
        if not inner:
            raise ConfigError(
                "optim.optimizer muon: nothing that is trained is a matrix within a block of the"
                " model; take optim.optimizer=adamw"
            )
        ids = {id(parameter) for _, parameter, _ in inner}
        outer = [one for one in rated if id(one[1]) not in ids]
        muon = torch.optim.Muon(_groups(inner, optim), optim.lr, adjust_lr_fn="match_rms_adamw")
        return _Joint([muon, *([adamw(_groups(outer, optim))] if outer else [])])
    if optim.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        built: torch.optim.Optimizer = Adafactor(
            _groups(rated, optim), optim.lr, scale_parameter=False, relative_step=False
        )
        return built
    return _of_bitsandbytes(_groups(rated, optim), optim)


def refuse_too_much_paged(
    optimizer: torch.optim.Optimizer, optim: OptimSection, device: torch.device
) -> None:
    """Refuse paged moments that the GPU could not hold beside what is on it now.

    bitsandbytes asks for them in the first update, from 100,000 elements of a parameter on, and the
    driver grants more than there is: pages then go to the host and back in every step, or the
    process ends within the library.

    Raises:
        MachineError: More than is free.
    """
    if not optim.optimizer.startswith("paged") or device.type != "cuda":
        return
    width = 2.0 if optim.optimizer.endswith("8bit") else 8.0
    sizes = [p.numel() for group in optimizer.param_groups for p in group["params"]]
    needed = width * sum(size for size in sizes if size >= _LEAST_PAGED)
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise MachineError(
            f"optim.optimizer {optim.optimizer} asks for {needed / 2**30:.2f} GiB of paged memory,"
            f" and {free / 2**30:.2f} GiB of the GPU are free beside the model; {PAGED_REMEDY}"
        )


class _Joint(torch.optim.Optimizer):
    """Several optimizers, each over parameters of its own, as one: groups and state are shared."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update with every part."""
        assert closure is None
        for part in self._parts:
            part.step()


def _of_bitsandbytes(groups: list[dict[str, Any]], optim: OptimSection) -> torch.optim.Optimizer:
    from bitsandbytes import optim as library

    common = {"lr": optim.lr, "betas": tuple(optim.betas)}
    built: torch.optim.Optimizer
    if optim.optimizer.startswith("lion"):
        lion = {"lion": library.Lion32bit, "lion_8bit": library.Lion8bit}[optim.optimizer]
        built = lion(groups, **common)
        return built
    adamw = {
        "adamw_8bit": library.AdamW8bit,
        "paged_adamw": library.PagedAdamW32bit,
        "paged_adamw_8bit": library.PagedAdamW8bit,
    }[optim.optimizer]
    built = adamw(groups, eps=optim.eps, **common)
    return built


def _with_rates(
    parameters: Iterable[tuple[str, nn.Parameter]], optim: OptimSection
) -> list[_Rated]:
    """The trainable, each with its share of the learning rate by its block (Bao et al. 2022).

    Block l of L gets layer_decay ** (L - l), counted from 0. What comes before the first block, the
    embeddings, gets one power more; what comes after the last, norm and head, the whole rate.
    """
    named, depths, deepest = [], [], -1
    for name, parameter in parameters:
        found = _BLOCK.search(name)
        after = deepest + 1 if deepest >= 0 else -1
        depths.append(int(found[1]) if found else after)
        deepest = max(deepest, int(found[1]) if found else -1)
        named.append((name, parameter))
    return [
        (name, parameter, optim.layer_decay ** (deepest + 1 - depth))
        for (name, parameter), depth in zip(named, depths, strict=True)
        if parameter.requires_grad
    ]


def _groups(rated: Iterable[_Rated], optim: OptimSection) -> list[dict[str, Any]]:
    """Groups of equal weight decay and rate; LoRA+ (Hayou et al. 2024) makes B matrices faster."""
    found = defaultdict[tuple[bool, float], list[nn.Parameter]](list)
    for name, parameter, rate in rated:
        is_vector = parameter.ndim < 2
        is_faster = not is_vector and any(part in name for part in _LORA_B)
        found[is_vector, rate * (optim.lora_plus_ratio if is_faster else 1.0)].append(parameter)
    return [
        {"params": found[key], "weight_decay": 0.0 if key[0] else optim.weight_decay, RATE: key[1]}
        for key in sorted(found)
    ]


def learning_rate(optim: OptimSection, update: int, total_updates: int) -> float:
    """Rate of update number `update`, counted from 0.

    Warm-up rises linearly from lr / warmup_steps, so that no update is lost to a rate of 0; then
    cosine (Loshchilov & Hutter 2017) or a line falls towards lr x min_lr_ratio, which the update
    after the last would reach; wsd (Hu et al. 2024) falls as a line at the end alone.
    """
    warmup = num_warmup(optim, total_updates)
    if update < warmup:
        return optim.lr * (update + 1) / warmup
    if optim.schedule == "constant":
        return optim.lr
    first = warmup
    if optim.schedule == "wsd":
        first = max(warmup, total_updates - max(1, round(optim.decay_ratio * total_updates)))
    progress = min(1.0, max(0.0, (update - first) / max(1, total_updates - first)))
    if optim.schedule == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        height = 1 - progress
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * height)


def num_warmup(optim: OptimSection, total_updates: int) -> int:
    """Updates of the warm-up, by either of its keys."""
    if optim.warmup_ratio is None:
        return optim.warmup_steps
    return round(optim.warmup_ratio * total_updates)
