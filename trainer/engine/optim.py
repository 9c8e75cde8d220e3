"""The optimizer's groups and the learning rate, a pure function of the number of updates."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from trainer.config.sections import OptimSection

RATE = "rate"  # of a group's learning rate to that of the others
_LORA_B = (".lora_B.", ".lora_embedding_B.")


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], optim: OptimSection
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) over the trainable of these parameters and their names.

    Weight decay applies to matrices: vectors are biases and norms. 8-bit moments are those of
    Dettmers et al. 2022, in blocks of 256 with a scale each; paged ones lie in memory that the
    driver moves to the host when the GPU is full (Dettmers et al. 2023). LoRA+ (Hayou et al. 2024)
    gives the B matrices a rate of their own.
    """
    matrices, faster, vectors = list[nn.Parameter](), list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in parameters:
        if parameter.requires_grad:
            is_faster = optim.lora_plus_ratio != 1 and any(part in name for part in _LORA_B)
            of_matrix = faster if is_faster else matrices
            (of_matrix if parameter.ndim > 1 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay, RATE: 1.0},
        {"params": faster, "weight_decay": optim.weight_decay, RATE: optim.lora_plus_ratio},
        {"params": vectors, "weight_decay": 0.0, RATE: 1.0},
    ]
    kept: list[dict[str, Any]] = [group for group in groups if group["params"]]
    betas = (optim.betas[0], optim.betas[1])
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(kept, lr=optim.lr, betas=betas, eps=optim.eps)
    import bitsandbytes

    classes = {
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw": bitsandbytes.optim.PagedAdamW32bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    }
    built: torch.optim.Optimizer = classes[optim.optimizer](
        kept, lr=optim.lr, betas=betas, eps=optim.eps
    )
    return built


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
