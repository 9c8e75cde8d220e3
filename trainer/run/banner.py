"""The lines that say what a run is about to do."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.batches.loader import TrainLoader
from data.config import DataConfig
from data.prepared.prepare import Prepared
from data.text.labels import Classes
from data.text.language import LanguageFacts
from trainer.config.methods import LORA, PROMPTS, adapter_size
from trainer.config.sections import RunConfig, TuningSection
from trainer.evaluation.page.page import page_line
from trainer.models.as_saved import DTYPES
from trainer.models.heads import PackedClassifier, PackedModel
from trainer.models.pooling import head_line
from trainer.models.quantized import quantization_line, quantized_layers
from trainer.models.text_model import text_model_line
from trainer.models.weights import not_loaded_line
from trainer.planning.resolved import Resolved
from trainer.processes.distributed import Ranks
from trainer.run.data_report import order_lines, remark_lines, small_lines
from trainer.run_folder.folder import MODEL, REPORT
from trainer.tuning.bottleneck import BottleneckModel
from trainer.tuning.layers import modules_reason
from trainer.tuning.targets import stacked_line

_MOST_CLASSES = 8  # of a line
_TOKENS_A_PARAMETER = 20  # Hoffmann et al. 2022, table 3, of parameters that are trained


def banner_lines(
    recipe: Resolved,
    ranks: Ranks,
    model: PackedModel,
    prepared: Prepared,
    loader: TrainLoader,
    total_steps: int,
) -> list[str]:
    """Device, choices with their reasons, model, data and steps."""
    config = recipe.config
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    packed = quantized_layers(model)  # whose numel is that of the packed weight
    total = sum(p.numel() for p in model.parameters()) + sum(
        layer.in_features * layer.out_features - layer.weight.numel() for layer in packed.values()
    )
    base = []
    if config.model.path and (line := not_loaded_line(Path(config.model.path))):
        base.append(f"  model      {line}")
    if line := text_model_line(config.model, model.model.get_base_model()):
        base.append(f"  model      {line}")
    if isinstance(model, PackedClassifier):
        base.append(f"  head       {head_line(model.model.get_base_model(), model.pooling)}")
    if config.tuning.base_quant_type is not None:
        line = quantization_line(model, config.tuning, DTYPES[config.base_dtype])
        base.append(f"  quantised  {line}")
    return [
        f"focaltune: {config.output_dir}",
        f"  device     {ranks.device.type} x {ranks.world_size}",
        f"  precision  {recipe.choice('engine.precision')}",
        f"  preset     {recipe.choice('engine.preset')}",
        f"  attention  {recipe.choice('model.attention')}",
        *base,
        f"  loss       {recipe.choice('loss.backend')}",
        *_method_lines(recipe, model, total),
        f"  trained    {trained:,} of {total:,} parameters ({trained / total:.2%},"
        f" {_method_name(config.tuning)})",
        *_data_lines(prepared),
        *_language_lines(config.data, prepared, trained),
        *_step_lines(loader, total_steps),
        *(
            [f"  batch      micro {recipe.choice('optim.micro_batch_size')}"]
            if "optim.micro_batch_size" in recipe.reasons
            else []
        ),
    ]


def time_line(seconds: float) -> str:
    """The estimated time, and how it was measured."""
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


def _method_lines(recipe: Resolved, model: PackedModel, num_parameters: int) -> Sequence[str]:
    """The layers that are adapted or not, the experts, and, for LoRA, what computes them."""
    tuning, tuned = recipe.tuning, model.model
    if tuning.method in ("full", "ptuning", *PROMPTS):
        return []
    reason = modules_reason(tuning, tuned.get_base_model().config.model_type)
    left_out = getattr(tuned, "left_out_line", "")
    but = " but those left out" if left_out else ""
    lines = [f"  modules    {', '.join(_modules(model))} ({reason}{but})"]
    if left_out:
        lines.append(f"  left out   {left_out}")
    if experts := stacked_line(tuned.get_base_model(), num_parameters, tuning):
        lines.append(f"  experts    {experts}")
    if tuning.method in LORA:
        lines.append(f"  lora       {recipe.choice('tuning.lora_backend')}")
    return lines


def _modules(model: PackedModel) -> list[str]:
    tuned: Any = model.model
    if isinstance(tuned, BottleneckModel):
        return list(tuned.settings.places)
    settings = tuned.peft_config["default"]
    return sorted(
        {*(settings.target_modules or ()), *(getattr(settings, "target_parameters", ()) or ())}
    )


def _method_name(tuning: TuningSection) -> str:
    """The method with its size and variant, e.g. "lora r 8, dora"."""
    size = f"r {tuning.lora_r}" if tuning.method in LORA else adapter_size(tuning)
    name = f"{tuning.method} {size}" if size else tuning.method
    return name if tuning.variant == "plain" else f"{name}, {tuning.variant}"


def _counts(counts: Sequence[int], classes: Classes) -> str:
    """Functions of each class that has some."""
    if classes.are_usual:
        return f"{counts[1]} vulnerable"
    some = [f"{count} {name}" for name, count in zip(classes.names, counts, strict=True) if count]
    more = f" and {len(some) - _MOST_CLASSES} more classes" if len(some) > _MOST_CLASSES else ""
    return f"{', '.join(some[:_MOST_CLASSES]) or 'none'}{more}"


def _data_lines(prepared: Prepared) -> Sequence[str]:
    lines, classes = list[str](), prepared.classes
    for name, split in prepared.splits.items():
        facts = split.tokens
        if isinstance(facts, LanguageFacts):
            lines.append(
                f"  {name:9}  {facts.num_records:,} records in {facts.num_examples:,} examples;"
                f" {facts.num_tokens:,} tokens, {facts.num_targets:,} of them targets;"
                f" {facts.num_long:,} long: {facts.policy}"
            )
            continue
        lines.append(
            f"  {name:9}  {facts.num_functions} functions, {_counts(facts.class_counts, classes)};"
            f" tokens mean {facts.tokens_mean:.0f}, median {facts.tokens_median:.0f},"
            f" max {facts.tokens_max}; {facts.num_long} long"
            f" ({_counts(facts.long_counts, classes)}): {facts.policy}"
        )
    return lines + [f"  data       {line}" for line in remark_lines(prepared)]


def _language_lines(data: DataConfig, prepared: Prepared, num_trained: int) -> Sequence[str]:
    """How rows are read, their order, and whether there is enough data."""
    facts, lines = prepared.splits["train"].tokens, []
    if not isinstance(facts, LanguageFacts):
        return []
    if not data.isolate:
        lines.append("  isolation  off: the examples of a row are one text, positions run on")
    if data.order == "sequential":
        num = len(prepared.splits["train"].files)
        lines.append(f"  order      {num:,} files one after the other, rows of each shuffled")
    if facts.num_tokens < _TOKENS_A_PARAMETER * num_trained:
        lines.append(
            f"  data       {facts.num_tokens:,} tokens are fewer than {_TOKENS_A_PARAMETER} x"
            f" {num_trained:,} trained parameters: watch validation for overfitting, or train"
            " fewer"
        )
    return lines


def _step_lines(loader: TrainLoader, total_steps: int) -> Sequence[str]:
    plan, batching = loader.plan, loader.batching
    kind = f"packed, {loader.fill:.1%} full" if batching.packing else "one example each"
    return [
        f"  rows       {plan.num_rows} of {batching.seq_length} tokens, {kind}",
        f"  steps      {total_steps} ({plan.steps_per_epoch} an epoch)",
        f"  batch      {loader.num_records / plan.steps_per_epoch:.1f} examples in"
        f" {plan.num_rows / plan.steps_per_epoch:.1f} rows a step on average"
        f" (recipe: {batching.global_batch_size} {batching.batch_unit}) ="
        f" {plan.micro_batch_size} rows a micro-batch x {plan.world_size} ranks x"
        f" {plan.gradient_accumulation_steps} accumulated,"
        f" {idle_share(loader):.0%} of micro-batches empty",
        *(f"  batch      {line}" for line in small_lines(loader)),
        *(f"  order      {line}" for line in order_lines(loader)),
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


def ending_lines(config: RunConfig) -> list[str]:
    """Write the page; where it, model and report are, and what can be done with them."""
    run = config.output_dir
    page = page_line(run / REPORT, run)
    run = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
    folder = shlex.quote(str(run))
    use = "chat.py {}" if config.is_language else "predict.py {} SOURCES"
    commands = ("evaluate.py {} FILE", use, "export.py {} NEW_FOLDER")
    return [
        f"model   {run / MODEL}",
        f"report  {run / REPORT / 'test.md'}",
        page,
        *(
            f"{'next' if number == 0 else '':6}  launcher/{command.format(folder)}"
            for number, command in enumerate(commands)
        ),
    ]
