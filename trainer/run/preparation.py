"""A recipe's data: prepared, audited, and shared out to ranks."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from data.prepared.prepare import Prepared, open_splits, prepare
from data.readers.reading import listed
from data.text.escaping import print_text
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError
from trainer.evaluation.best_step import check_metric
from trainer.models.files import hidden_size, refuse_adapter

if TYPE_CHECKING:
    from data.batches.loader import Start, TrainLoader


def prepare_run(config: RunConfig) -> Prepared:
    """The data of a recipe, from the cache if it holds them.

    Raises:
        DataError: They cannot be used.
        ConfigError: loss.alpha or eval.metric does not fit their classes.
        ModelError: model.path is an adapter.
    """
    refuse_adapter(config.model)
    check_metric(config.eval.metric, config.task.name)
    prepared = prepare(
        config.data,
        config.tokenizer_folder,
        language=config.is_language,
        group_weights=config.loss.group_weights,
        class_weights=config.loss.class_weights,
    )
    check_metric(config.eval.metric, config.task.name, prepared.classes)
    names, alpha = prepared.classes.names, config.loss.alpha
    if alpha is not None and len(alpha) != len(names):
        raise ConfigError(
            f"loss.alpha has {len(alpha)} weights; give one for each of the {len(names)} classes,"
            f" in this order: {listed(names)}"
        )
    return prepared


def training_loader(
    config: RunConfig,
    prepared: Prepared,
    rank: int = 0,
    world_size: int = 1,
    *,
    packing: bool,
    start: "Start | None" = None,
) -> "TrainLoader":
    """The steps of the training split for a rank."""
    from data.batches.loader import Batching, TrainLoader

    data, optim, train = config.data, config.optim, prepared.splits["train"]
    batching = Batching(
        seq_length=data.seq_length,
        global_batch_size=optim.global_batch_size,
        batch_unit=optim.batch_unit,
        micro_batch_size=optim.micro_rows,
        seed=config.run.seed,
        packing=packing,
        packing_window=data.packing_window,
        isolate=data.isolate,
        sampling=data.sampling,
        hidden_size=hidden_size(config.model),
    )
    files = train.files if data.order == "sequential" else None
    return TrainLoader(train.examples, batching, rank, world_size, files, start, train.times_N)


def audit_run(config: RunConfig) -> list[str]:
    """Audit the splits of a recipe, leaking ones too, into <output_dir>.audit.

    Returns:
        The findings in short, and the files that hold the rest.

    Raises:
        ConfigError: The task is not classification.
    """
    if config.is_language:
        raise ConfigError(
            f"--audit looks at functions and their labels, task.name is {config.task.name}; --show"
            " N prints what is learned"
        )
    from data.audit import audit_splits, summary_lines, write_audit

    prepared = open_splits(config.data, config.tokenizer_folder)
    splits = prepared.splits
    facts = audit_splits(
        {name: split.samples for name, split in splits.items()},
        {name: np.maximum(split.code_lengths, 0) for name, split in splits.items()},
        prepared.classes,
        leak_groups=config.data.leak_groups,
        normalize_whitespace=config.data.normalize_whitespace,
        seq_length=config.data.seq_length,
    )
    folder = config.output_dir.with_name(f"{config.output_dir.name}.audit")
    written = write_audit(folder, facts)
    return [*summary_lines(facts), f"audit: {', '.join(map(str, written))}"]


def print_lines(lines: Iterable[str]) -> None:
    """Print lines as they are, one each, however wide the terminal is."""
    print_text(Console(), lines)
