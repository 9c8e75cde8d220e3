"""What a run is about to do, said once before it does it."""

from collections.abc import Sequence
from typing import Any

from data.loader import TrainLoader
from data.prepare import Prepared
from trainer.build import Choices
from trainer.config import RunConfig
from trainer.data_report import remark_lines
from trainer.distributed import Ranks
from trainer.models.heads import PackedClassifier
from trainer.models.load import base_dtype
from trainer.models.quantized import quantization_line, quantized_layers
from trainer.targets import adapter_size
from trainer.tuning.bottleneck import BottleneckModel
from trainer.tuning.layers import targets_reason
from trainer.tuning.lora import lora_backend


def banner_lines(
    config: RunConfig,
    ranks: Ranks,
    choices: Choices,
    model: PackedClassifier,
    prepared: Prepared,
    loader: TrainLoader,
    total_steps: int,
) -> list[str]:
    """Device, choices with their reasons, model, data and steps."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    packed = quantized_layers(model)  # whose numel is that of the packed weight
    total = sum(p.numel() for p in model.parameters()) + sum(
        layer.in_features * layer.out_features - layer.weight.numel() for layer in packed.values()
    )
    return [
        f"focaltune: {config.output_dir}",
        f"  device     {ranks.device.type} x {ranks.world_size}",
        f"  precision  {choices.precision} ({choices.precision_reason})",
        f"  preset     {choices.preset} ({choices.preset_reason})",
        f"  attention  {choices.attention} ({choices.attention_reason})",
        *_base_lines(config, choices, model),
        f"  loss       {choices.loss_backend} ({choices.loss_reason})",
        *_method_lines(config, model),
        f"  trained    {trained:,} of {total:,} parameters ({trained / total:.2%},"
        f" {_method_name(config)})",
        *_data_lines(prepared),
        *_step_lines(config, loader, total_steps),
    ]


def time_line(seconds: float) -> str:
    """The estimate, and what it rests on."""
    minutes, rest = divmod(round(seconds), 60)
    return f"  estimate   {minutes} min {rest:02d} s of training (one measured forward pass x 3)"


def idle_share(loader: TrainLoader) -> float:
    """Share of the ranks' micro-batches that hold no row: a rank then waits for the others."""
    plan = loader.plan
    micro_batches = plan.gradient_accumulation_steps * plan.world_size * plan.steps_per_epoch
    fewest, num_fuller = divmod(plan.num_rows, plan.steps_per_epoch)  # fuller by one row
    num_steps = {fewest: plan.steps_per_epoch - num_fuller, fewest + 1: num_fuller}
    used = sum(-(-rows // plan.micro_batch_size) * steps for rows, steps in num_steps.items())
    return 1 - used / micro_batches


def _method_lines(config: RunConfig, model: PackedClassifier) -> Sequence[str]:
    """The layers that are adapted and, for LoRA, what computes them."""
    tuning = config.tuning
    if tuning.method in ("full", "ptuning"):
        return []
    reason = targets_reason(tuning, model.model.get_base_model().config.model_type)
    lines = [f"  targets    {', '.join(_targets(model))} ({reason})"]
    if tuning.method in ("lora", "qlora"):
        lines.append("  lora       {} ({})".format(*lora_backend(model.model, tuning.lora_backend)))
    return lines


def _targets(model: PackedClassifier) -> list[str]:
    if isinstance(model.model, BottleneckModel):
        return list(model.model.settings.places)
    peft_model: Any = model.model
    return sorted(peft_model.peft_config["default"].target_modules)


def _method_name(config: RunConfig) -> str:
    """The method with its size and variant, e.g. "lora r 8, dora"."""
    tuning = config.tuning
    sizes = {"lora": f" r {tuning.lora_r}", "qlora": f" r {tuning.lora_r}"}
    size = sizes.get(tuning.method) or (f" {adapter_size(tuning)}" if adapter_size(tuning) else "")
    variant = "" if tuning.variant == "plain" else f", {tuning.variant}"
    return f"{tuning.method}{size}{variant}"


def _base_lines(config: RunConfig, choices: Choices, model: PackedClassifier) -> Sequence[str]:
    if config.tuning.base_quant_type is None:
        return []
    dtype = base_dtype(config, choices.precision)
    return [f"  quantised  {quantization_line(model, config.tuning, dtype)}"]


def _data_lines(prepared: Prepared) -> Sequence[str]:
    lines = []
    for name, split in prepared.splits.items():
        facts = split.tokens
        lines.append(
            f"  {name:9}  {facts.num_functions} functions, {facts.num_positive} vulnerable; tokens"
            f" mean {facts.tokens_mean:.0f}, median {facts.tokens_median:.0f},"
            f" max {facts.tokens_max}; {facts.num_long} long ({facts.long_positive} vulnerable):"
            f" {facts.policy}"
        )
    return lines + [f"  data       {line}" for line in remark_lines(prepared)]


def _step_lines(config: RunConfig, loader: TrainLoader, total_steps: int) -> Sequence[str]:
    plan, optim = loader.plan, config.optim
    kind = f"packed, {loader.fill:.1%} full" if config.data.packing else "one function each"
    return [
        f"  rows       {plan.num_rows} of {config.data.seq_length} tokens, {kind}",
        f"  steps      {total_steps} ({plan.steps_per_epoch} an epoch)",
        f"  batch      {loader.num_functions / plan.steps_per_epoch:.1f} functions in"
        f" {plan.num_rows / plan.steps_per_epoch:.1f} rows a step on average"
        f" (asked: {optim.global_batch_size} {optim.batch_unit}) = {plan.micro_batch_size} rows a"
        f" micro-batch x {plan.world_size} ranks x {plan.gradient_accumulation_steps} accumulated,"
        f" {idle_share(loader):.0%} of micro-batches empty",
        *_balance_lines(loader),
    ]


def _balance_lines(loader: TrainLoader) -> Sequence[str]:
    if loader.plan.world_size == 1:
        return []
    uneven = loader.mean_imbalance()
    return [
        f"  balance    the slowest rank computes {uneven.optimizer_step - 1:.1%} above the mean in"
        f" a step, {uneven.micro_step - 1:.1%} in a micro-step"
    ]
