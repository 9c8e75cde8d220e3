"""The optimizer's groups and the learning rate, a pure function of the number of updates."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from trainer.config.sections import OptimSection

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


def build_optimizer(
    parameters: Iterable[nn.Parameter], optim: OptimSection
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) over the trainable parameters.

    Weight decay applies to matrices: vectors are biases and norms. 8-bit moments are those of
    Dettmers et al. 2022, in blocks of 256 with a scale each; paged ones lie in memory that the
    driver moves to the host when the GPU is full (Dettmers et al. 2023).
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim > 1]
    vectors = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(kept, lr=optim.lr, betas=_BETAS, eps=_EPSILON)
    import bitsandbytes

    classes = {
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw": bitsandbytes.optim.PagedAdamW32bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    }
    built: torch.optim.Optimizer = classes[optim.optimizer](
        kept, lr=optim.lr, betas=_BETAS, eps=_EPSILON
    )
    return built


def learning_rate(optim: OptimSection, update: int, total_updates: int) -> float:
    """Rate of update number `update`, counted from 0.

    Warm-up rises linearly from lr / warmup_steps, so that no update is lost to a rate of 0; then
    cosine (Loshchilov & Hutter 2017) or a line falls towards 0, which the update after the last
    would reach.
    """
    if update < optim.warmup_steps:
        return optim.lr * (update + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    remaining = max(1, total_updates - optim.warmup_steps)
    progress = min(1.0, (update - optim.warmup_steps) / remaining)
    if optim.schedule == "linear":
        return optim.lr * (1 - progress)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * progress))
