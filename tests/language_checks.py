"""A tiny GPT-2 with TokenLoss under DeepSpeed, entered on every rank by tests/rank_pool.py."""

import json
from pathlib import Path

import torch
from torch import nn

from trainer.config.sections import LossSection

GAMMA = 2.0
LR = 0.5
STEPS = 2
CASES = [(tied, method) for tied in (True, False) for method in ("lora", "full")]


def build(is_tied: bool, method: str) -> nn.Module:
    """The model of a case, the same on every rank and in every process."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D

    from trainer.tuning.fused_lora import FusedLoraLinear

    torch.manual_seed(5)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=97, n_positions=16, n_embd=16, n_layer=1, n_head=2, n_inner=32,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.4,
            tie_word_embeddings=is_tied, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    if method == "full":
        return model
    settings = LoraConfig(
        r=2,
        target_modules=["c_attn", "c_fc", "c_proj"],
        init_lora_weights=False,
        fan_in_fan_out=True,
    )
    settings._register_custom_module({Conv1D: FusedLoraLinear})
    return get_peft_model(model, settings)


def batches(step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two micro-batches of unequal numbers of labels: input ids (2, 12) and targets (24,)."""
    generator = torch.Generator().manual_seed(step)
    result = []
    for ignored in (3, 17):
        input_ids = torch.randint(0, 97, (2, 12), generator=generator)
        targets = input_ids.roll(-1, 1).flatten()
        targets[torch.randperm(24, generator=generator)[:ignored]] = -100
        result.append((input_ids, targets))
    return result


def num_labels(step: int) -> int:
    return sum(int((targets != -100).sum()) for _, targets in batches(step))


class WithLoss(nn.Module):
    """Backbone and TokenLoss, as a language task will join them."""

    def __init__(self, model: nn.Module) -> None:
        from trainer.models.token_loss import TokenLoss

        super().__init__()
        self.model = model
        self.token_loss = TokenLoss(model, LossSection(gamma=GAMMA, backend="torch"))

    def forward(self, input_ids: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        backbone = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        hidden = backbone.transformer(input_ids).last_hidden_state.flatten(0, 1)
        read = (targets != -100).nonzero()[:, 0]
        return self.token_loss(hidden[read], targets[read])


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def language_losses(arguments: list[str]) -> int:
    """Two steps of every case under a ZeRO stage; rank 0 writes losses, gradients and weights."""
    import deepspeed

    from trainer.processes.distributed import start, stop

    folder, stage = Path(arguments[0]), int(arguments[1])
    ranks = start(60)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,  # DeepSpeed's default is 1
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            # A parameter is then gathered for each use and given up after it, as large ones are.
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
        },
        "steps_per_print": 10**9,
    }
    for is_tied, method in CASES:
        model = WithLoss(build(is_tied, method))
        optimizer = torch.optim.SGD(trained(model).values(), lr=LR)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        losses = [one_step(engine, step, ranks.rank, ranks.world_size) for step in range(STEPS)]
        weights = gathered(engine.module, stage)
        if ranks.is_main:
            name = folder / f"{method}-{'tied' if is_tied else 'untied'}.json"
            name.write_text(json.dumps({"losses": losses, "weights": weights}))
        engine.destroy()
    stop()
    return 0


def one_step(engine, step: int, rank: int, world_size: int) -> float:
    """All micro-batches of a rank and one update, as the training loop does them."""
    total = torch.zeros(())
    for input_ids, targets in batches(step)[rank::world_size]:
        loss, _ = engine(input_ids, targets)
        engine.backward(loss * (world_size / num_labels(step)), scale_wrt_gas=False)
        total += loss.detach()
    engine.step()
    torch.distributed.all_reduce(total)
    return float(total) / num_labels(step)


def gathered(module: nn.Module, stage: int) -> dict[str, list[float]]:
    """Trained weights after the updates: SGD makes them a sum of the gradients."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(trained(module).values()), enabled=stage == 3):
        return {name: p.detach().flatten().tolist() for name, p in trained(module).items()}
