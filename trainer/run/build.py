"""A recipe resolved on this machine, and the model it leads to."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data.text import terminal
from data.text.labels import Classes
from data.text.tokenization import ExampleSet
from trainer.cluster.checks import FAULT, architecture_check
from trainer.config.methods import start_of, takes_part_of_base
from trainer.config.sections import RunConfig
from trainer.engine.engine import this_machine
from trainer.errors import MachineError
from trainer.models.as_saved import DTYPES, in_dtype_of_run
from trainer.models.files import base_digest
from trainer.models.heads import PackedClassifier, PackedLanguageModel, PackedModel
from trainer.models.load import CPU, VULNERABILITY, load_base, load_quantized_base
from trainer.models.proof import Settings, choose_strategy
from trainer.models.quantized_methods import prove_quantised
from trainer.planning.plan import read_shape
from trainer.planning.resolve import resolve
from trainer.planning.resolved import Resolved
from trainer.processes.distributed import Ranks, agreed, refuse_unseen_gpus
from trainer.run_folder.folder import BASE, built, verify
from trainer.run_folder.start import read_start, write_start
from trainer.tuning import add_method
from trainer.tuning.continued import take_adapter
from trainer.tuning.plain import save_base
from trainer.tuning.starts import started, take_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resolve_here(
    config: RunConfig, device: torch.device, world_size: int = 1, classes: Classes = VULNERABILITY
) -> Resolved:
    """Settle every `auto` of a recipe on this machine; to read a finished run one rank is enough.

    Raises:
        ConfigError: A combination that the stack gets wrong, or a loss back end that is missing.
        MachineError: A combination that this machine cannot run, or torch on its GPU.
        ModelError: An attention back end that is missing.
    """
    machine = this_machine(device, world_size)
    if machine.device is not None and torch.version.cuda:
        built = torch.cuda.get_arch_list()
        check = architecture_check(machine.device.compute_capability, built)
        if check.verdict == FAULT:
            raise MachineError(f"{machine.device.name}: {check.found}; {check.remedy}")
    recipe = resolve(config, read_shape(config, len(classes.names)), machine)
    for fault in recipe.faults:
        raise fault
    return recipe


def write_random_base(config: RunConfig, classes: Classes = VULNERABILITY) -> None:
    """Keep a base of random weights in the run folder: the adapter needs it, and QLoRA reads it."""
    folder = config.output_dir / BASE
    if not config.model.config:
        return
    if folder.exists():
        verify(folder, "remove it, and the same command draws it again from run.seed")
        return
    with built(folder) as building:
        save_base(load_base(config, classes), building)


def build_model(
    config: RunConfig,
    classes: Classes = VULNERABILITY,
    device: torch.device = CPU,
    *,
    as_saved: bool = False,
) -> PackedModel:
    """Base, adapters and head of a settled recipe, trained parameters in the run's precision.

    Random weights to quantise are in the run folder, and so is what adapters begin with
    (`draw_start_of`).

    Args:
        device: Where the model is to be; a quantised base is on the GPU, if there is one.
        as_saved: The engine cuts the base up, and casts it then (`load_base`).

    Raises:
        ModelError: The base does not load or the adapters do not fit it.
    """
    base = _load(config, classes, device, as_saved=as_saved)
    if config.model.config:
        base.name_or_path = str(config.output_dir / BASE)  # what the adapter's config names
    tuning, start = config.tuning, {}
    if start_of(tuning) is not None:
        start = read_start(config.output_dir)
        tuning = started(tuning, start)
    with in_dtype_of_run(config, base):
        tuned = add_method(base, tuning)
    take_start(tuned, start, is_part=takes_part_of_base(tuning))
    model: PackedModel
    if config.is_language:
        detach_modulator = config.replication.detach_modulator
        model = PackedLanguageModel(tuned, config.loss, detach_modulator)
    else:
        model = PackedClassifier(tuned)
    is_whole = config.tuning.method == "full" and config.base_dtype == "fp32"  # once it is cut
    if config.engine.precision == "fp32" and not is_whole:  # also over a 16-bit frozen base
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return model if device.type == "cpu" else model.to(device)


def run_model(
    recipe: Resolved,
    classes: Classes,
    ranks: Ranks,
    initial: Path | None,
    examples: ExampleSet,
) -> PackedModel:
    """The model of a run with the adapter it begins with, where the engine takes it from.

    Args:
        initial: Of tuning.init_from, or nothing.
        examples: The training split, at which some starts of adapters look.
    """
    config = recipe.config

    def keep() -> None:
        if ranks.is_main:
            write_random_base(config, classes)
            draw_start_of(config, classes, examples, ranks.device)

    agreed(ranks, keep)
    is_cut = recipe.preset.stage == 3  # from the host, a weight at a time
    place = CPU if is_cut else ranks.device
    model = agreed(ranks, lambda: build_model(config, classes, place, as_saved=is_cut))
    if initial is not None:
        agreed(ranks, lambda: take_adapter(model.model, initial))
    return model


def draw_start_of(
    config: RunConfig, classes: Classes, examples: ExampleSet, device: torch.device
) -> None:
    """Keep in the run folder how adapters begin, where the recipe names a start that is drawn."""
    write_start(
        config, classes, examples, device, lambda: _load(config, classes, CPU, as_saved=False)
    )


def trained_model(
    config: RunConfig, folder: Path, classes: Classes, device: torch.device = CPU
) -> PackedModel:
    """The model of a settled recipe with a folder's trained weights, in the engine's dtypes.

    Args:
        folder: From `save_model`; that of a whole model is model.path too.
    """
    model = build_model(config, classes, device)
    if config.tuning.method != "full":
        take_adapter(model.model, folder)
    for parameter in model.parameters():
        if parameter.requires_grad:  # the frozen base keeps its own dtype
            parameter.data = parameter.data.to(DTYPES[config.engine.precision])
    return model


def scoring_model(
    config: RunConfig, folder: Path, classes: Classes, ranks: Ranks, examples: ExampleSet | None
) -> tuple[RunConfig, PackedModel]:
    """The settled recipe of a trained model and the model on a rank's device, ready to score.

    Args:
        examples: What it will score, with which packing is proved; None: nothing.

    Raises:
        ModelError: Base or weights do not load, or packed records do not get the model's scores.
    """
    device = ranks.device
    if ranks.is_main:
        terminal.say(f"  device     {device.type} x {ranks.world_size}", *_unseen(device))
    with terminal.step("loading the model"):
        recipe = resolve_here(config, device, classes=classes)
        model = trained_model(recipe.config, folder, classes, device).to(device).eval()
        if examples is not None:
            choose_strategy(model, model, examples, proof_settings(recipe), device)
    return recipe.config, model


def alone() -> Ranks:
    """This process as the only rank, on the first GPU or the CPU."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed says what it looked for
    return Ranks(rank=0, local_rank=0, world_size=1, device=device)


def _unseen(device: torch.device) -> list[str]:
    """A line where the machine has GPUs that torch does not see: the CPU takes long."""
    try:
        if device.type == "cpu":
            refuse_unseen_gpus(os.environ)
    except MachineError as error:
        return [f"on the CPU, because {error}"]
    return []


def proof_settings(recipe: Resolved) -> Settings:
    """What of a resolved recipe the proof of its strategy depends on."""
    config, data = recipe.config, recipe.config.data
    return Settings(
        attention=config.model.attention,
        is_free=recipe.written.model.attention == "auto",
        seq_length=data.seq_length,
        packing=data.packing,
        isolate=data.isolate,
        precision=config.engine.precision,
        one_by_one=config.tuning.base_quant_type == "int8" and not data.packing,
        equal_passes=recipe.preset.stage == 3 and recipe.machine.num_ranks > 1,
    )


def _load(
    config: RunConfig, classes: Classes, device: torch.device, *, as_saved: bool
) -> "PreTrainedModel":
    if config.tuning.base_quant_type is None:
        return load_base(config, classes, device, as_saved=as_saved)
    prove_quantised(config.tuning)
    source = Path(config.model.path or config.output_dir / BASE)
    digest = base_digest(config.model, config.run.seed)
    return load_quantized_base(config, source, digest, classes)
