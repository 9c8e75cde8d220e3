"""A finished run's best weights on a file it never saw."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.distributed_c10d import Store

from data.config import DataConfig
from data.prepared.prepare import Prepared, read_split
from data.text.labels import Classes
from data.text.tokenization import ExampleSet
from trainer.config.sections import RunConfig
from trainer.errors import MachineError, ModelError
from trainer.evaluation.decision import Decision
from trainer.evaluation.evaluation import evaluation_of
from trainer.evaluation.report import print_report
from trainer.evaluation.robustness.report import print_robustness
from trainer.models.heads import PackedModel
from trainer.models.load import DTYPES
from trainer.models.proof import choose_strategy
from trainer.processes.distributed import Ranks, agreed, refuse_unseen_gpus, start, stop
from trainer.run.build import build_model, proof_settings, resolve_here
from trainer.run.preparation import print_lines
from trainer.run_folder.checkpoint import Checkpoint, load_step, newest_checkpoint
from trainer.run_folder.folder import CHECKPOINTS
from trainer.run_folder.resume import refuse_other_run, run_identity


@dataclass(frozen=True)
class FilesToScore:
    """Files of one split that a finished run scores.

    Attributes:
        paths: As `named_files` gives them.
        name: Of the report, and of the member of an archive.
        title: The files, for people.
        read_as: The run's settings of data, with the files' own fields.
        robustness: Functions are scored again after changes that keep what they do.
    """

    paths: Sequence[Path]
    name: str
    title: str
    read_as: DataConfig
    robustness: bool = False


def evaluate_files(
    config: RunConfig,
    prepared: Prepared,
    files: FilesToScore,
    store: Store | None = None,
    left_out: str = "",
) -> dict[str, Any] | None:
    """Score files with a run's best checkpoint; writes report/<name>.* and prints its table.

    Rows are scored one by one, so that scores depend neither on the ranks nor on
    optim.micro_batch_size.

    Args:
        prepared: The run's data, from which the baselines learn; or what is left of them.
        store: Where the ranks have met; None: one process alone.
        left_out: What the report lacks, and why.

    Returns:
        The report; None on other ranks than the first.

    Raises:
        ModelError: No checkpoint with a validated best step.
        DataError: A file cannot be read.
    """
    ranks = alone() if store is None else start(config.engine.timeout_seconds, store)
    name = files.name
    if name in prepared.splits:  # the run has prepared its own
        split, digest = prepared.splits[name], prepared.digests[name]
    else:
        split, one = read_split(
            files.paths, name, files.read_as, prepared.tokenizer,
            language=config.is_language, classes=prepared.classes,
        )  # fmt: skip
        digest = one["sha256"]
    best, settled, model = best_model(config, prepared, split.examples, ranks)
    state = best.trainer["state"]
    facts = {"best_step": state["best_step"], "precision": settled.engine.precision}
    facts |= {"file": files.title, "task": config.task.name, f"sha256_{name}": digest}
    if left_out:
        facts["left_out"] = left_out
        if ranks.is_main:
            print_lines([left_out])
    evaluation = evaluation_of(config.task.name, prepared.classes)(
        config.changed("optim", micro_batch_size=1), prepared, ranks, model, None, is_shown=True
    )
    decision = Decision(state["threshold"], **state.get("decision", {}))
    writers = [evaluation.test(split, name, decision, facts)]
    if files.robustness:
        from trainer.evaluation.robustness.rescoring import evaluate_robustness

        writers.append(evaluate_robustness(evaluation, split, name, decision, facts))
    if store is None:
        reports = [write() for write in writers]
    else:
        reports = agreed(ranks, lambda: [write() for write in writers if ranks.is_main])
        stop()
    for report, show in zip(reports, (print_report, print_robustness), strict=False):
        show(report)
    return reports[0] if reports else None


def best_model(
    config: RunConfig, prepared: Prepared, examples: ExampleSet | None, ranks: Ranks
) -> tuple[Checkpoint, RunConfig, PackedModel]:
    """The checkpoint of a run's best validation, the settled recipe and the model, on every rank.

    Args:
        examples: What it will score, with which packing is proved; None: nothing.
        ranks: Those that hold the model.

    Raises:
        ModelError: There is none, or it belongs to another base or other data.
    """
    checkpoints = config.output_dir / CHECKPOINTS
    newest, _ = newest_checkpoint(checkpoints)
    if newest is None or newest.trainer["state"]["best_step"] is None:
        raise ModelError(f"{config.output_dir} holds no validated checkpoint; let the run finish")
    refuse_other_run(newest, config, run_identity(config, prepared))
    best = load_step(checkpoints, newest.trainer["state"]["best_step"])
    device = ranks.device
    if ranks.is_main:
        print_lines([f"  device     {device.type} x {ranks.world_size}", *_unseen(device)])
    recipe = resolve_here(config, device, classes=prepared.classes)
    model = trained_model(recipe.config, best, prepared.classes).to(device).eval()
    if examples is not None:
        choose_strategy(model, model, examples, proof_settings(recipe), device)
    return best, recipe.config, model


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


def trained_model(config: RunConfig, checkpoint: Checkpoint, classes: Classes) -> PackedModel:
    """The model of a settled recipe with a checkpoint's weights, in the engine's dtypes."""
    model, tensors = build_model(config, classes), checkpoint.tensors()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # the frozen base keeps its own dtype
            parameter.data = tensors[name].to(DTYPES[config.engine.precision])
    return model
