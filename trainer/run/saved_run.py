"""A trained model on a file it never saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import Store

from data.prepared.prepare import Prepared, Split, read_split
from data.text import terminal
from trainer.config.sections import RunConfig
from trainer.evaluation.evaluation import evaluation_of
from trainer.evaluation.page.page import page_line
from trainer.evaluation.report import print_report
from trainer.evaluation.robustness.report import print_robustness
from trainer.processes.distributed import agreed, start, stop
from trainer.run.build import alone, scoring_model
from trainer.run.preparation import print_lines
from trainer.run.trained import Trained
from trainer.run_folder.folder import REPORT


@dataclass(frozen=True)
class FilesToScore:
    """Files of one split that a trained model scores.

    Attributes:
        paths: As `named_files` gives them.
        name: Of the report, and of the member of an archive.
        title: The files, for people.
        output: Receives report/.
        robustness: Functions are scored again after changes that keep what they do.
    """

    paths: Sequence[Path]
    name: str
    title: str
    output: Path
    robustness: bool = False


def evaluate_files(
    trained: Trained,
    prepared: Prepared,
    files: FilesToScore,
    store: Store | None = None,
    left_out: str = "",
) -> dict[str, Any] | None:
    """Score files with a trained model; writes report/<name>.* and prints its table.

    Rows are scored one by one, so that scores depend neither on the ranks nor on
    optim.micro_batch_size.

    Args:
        trained: Its recipe says how the files are read.
        prepared: The model's data, from which the baselines learn; or what is left of them.
        store: Where the ranks have met; None: one process alone.
        left_out: What the report lacks, and why.

    Returns:
        The report; None on other ranks than the first.

    Raises:
        ModelError: The weights do not load.
        DataError: A file cannot be read.
    """
    config, name = trained.config, files.name
    ranks = alone() if store is None else start(config.engine.timeout_seconds, store)
    split, digest = _split(config, prepared, files)
    settled, model = scoring_model(config, trained.folder, trained.classes, ranks, split.examples)
    facts = {"best_step": trained.facts["step"], "precision": settled.engine.precision}
    facts |= {"file": files.title, "task": config.task.name, f"sha256_{name}": digest}
    if left_out:
        facts["left_out"] = left_out
    if ranks.is_main:
        terminal.say(*([left_out] if left_out else []))
        files.output.mkdir(parents=True, exist_ok=True)
    config = config.changed("optim", micro_batch_size=1)
    config = config.changed("run", output_dir=str(files.output))
    evaluation = evaluation_of(config.task.name, prepared.classes)(
        config, prepared, ranks, model, None, baselines=trained.baselines
    )
    decision = trained.decision
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
    if reports:
        run = trained.run or files.output
        print_lines([page_line(files.output / REPORT, run)])
    return reports[0] if reports else None


def _split(config: RunConfig, prepared: Prepared, files: FilesToScore) -> tuple[Split, str]:
    """The files as a split, and their digest."""
    name = files.name
    if name == "test" and name in prepared.splits:  # it is the model's own, prepared already
        return prepared.splits[name], prepared.digests[name]
    split, facts = read_split(
        files.paths, name, config.data, prepared.tokenizer,
        language=config.is_language, classes=prepared.classes,
    )  # fmt: skip
    return split, facts["sha256"]
