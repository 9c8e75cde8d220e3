"""A finished run's best weights on a file it never saw."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.prepared.prepare import Prepared, read_split
from data.text.labels import Classes
from data.text.tokenization import ExampleSet
from trainer.config.sections import RunConfig
from trainer.errors import MachineError, ModelError
from trainer.evaluation.decision import Decision
from trainer.evaluation.evaluation import evaluation_of
from trainer.evaluation.report import print_report
from trainer.models.heads import PackedModel
from trainer.models.load import DTYPES
from trainer.models.proof import choose_strategy
from trainer.processes.distributed import Ranks, refuse_unseen_gpus
from trainer.run.build import build_model, proof_settings, resolve_here
from trainer.run.preparation import print_lines
from trainer.run_folder.checkpoint import Checkpoint, load_step, newest_checkpoint
from trainer.run_folder.folder import CHECKPOINTS
from trainer.run_folder.resume import refuse_other_run, run_identity


def evaluate_files(
    config: RunConfig,
    prepared: Prepared,
    paths: Sequence[Path],
    name: str,
    title: str,
    left_out: str = "",
) -> dict[str, Any]:
    """Score files with a run's best checkpoint; writes report/<name>.* and prints its table.

    Args:
        prepared: The run's data, from which the baselines learn; or what is left of them.
        paths: Files of a split with the run's field mapping; one for functions.
        name: Name of the report, and of the member of an archive.
        left_out: What the report lacks, and why.

    Raises:
        ModelError: No checkpoint with a validated best step.
        DataError: The file cannot be read.
    """
    if name in prepared.splits:  # the run has prepared its own
        split, digest = prepared.splits[name], prepared.digests[name]
    else:
        split, one = read_split(
            paths, name, config.data, prepared.tokenizer,
            language=config.is_language, classes=prepared.classes,
        )  # fmt: skip
        digest = one["sha256"]
    best, settled, model, alone = best_model(config, prepared, split.examples)
    state = best.trainer["state"]
    facts = {"best_step": state["best_step"], "precision": settled.engine.precision, "file": title}
    facts |= {"task": config.task.name, f"sha256_{name}": digest}
    if left_out:
        print_lines([left_out])
        facts["left_out"] = left_out
    evaluation = evaluation_of(config.task.name, prepared.classes)(
        config, prepared, alone, model, None
    )
    decision = Decision(state["threshold"], **state.get("decision", {}))
    report = evaluation.test(split, name, decision, facts)()
    print_report(report)
    return report


def best_model(
    config: RunConfig, prepared: Prepared, examples: ExampleSet | None
) -> tuple[Checkpoint, RunConfig, PackedModel, Ranks]:
    """The checkpoint of a run's best validation, the settled recipe and the model, on one rank.

    Args:
        examples: What it will score, with which packing is proved; None: nothing.

    Raises:
        ModelError: There is none, or it belongs to another base or other data.
    """
    checkpoints = config.output_dir / CHECKPOINTS
    newest, _ = newest_checkpoint(checkpoints)
    if newest is None or newest.trainer["state"]["best_step"] is None:
        raise ModelError(f"{config.output_dir} holds no validated checkpoint; let the run finish")
    refuse_other_run(newest, config, run_identity(config, prepared))
    best = load_step(checkpoints, newest.trainer["state"]["best_step"])
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    print_lines([f"  device     {device.type} x 1", *_unseen(device)])
    recipe = resolve_here(config, device)
    alone = Ranks(rank=0, local_rank=0, world_size=1, device=device)
    model = trained_model(recipe.config, best, prepared.classes).to(device).eval()
    if examples is not None:
        choose_strategy(model, model, examples, proof_settings(recipe), device)
    return best, recipe.config, model, alone


def _unseen(device: torch.device) -> list[str]:
    """A line where the machine has GPUs that torch does not see: the CPU takes long."""
    try:
        if device.type == "cpu":
            refuse_unseen_gpus(os.environ)
    except MachineError as error:
        return [f"on the CPU, because {error}"]
    return []


def trained_model(config: RunConfig, checkpoint: Checkpoint, classes: Classes) -> PackedModel:
    """The model of a settled recipe with a checkpoint's weights, in the engine's dtypes."""
    model, tensors = build_model(config, classes), checkpoint.tensors()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # the frozen base keeps its own dtype
            parameter.data = tensors[name].to(DTYPES[config.engine.precision])
    return model
