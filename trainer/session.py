"""A run with its data and its folder: validate, save, restore, finish."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.batch import collate
from data.prepare import Prepared
from trainer.build import Choices
from trainer.checkpoint import (
    Checkpoint,
    checkpoint_name,
    load_checkpoint,
    rotate,
    write_checkpoint,
)
from trainer.distributed import agreed
from trainer.errors import MachineError
from trainer.evaluation.classification import best_threshold, classification_metrics
from trainer.evaluation.split_report import write_split_report
from trainer.evaluation.validation import population, score_functions
from trainer.export import adapter_facts, save_adapter
from trainer.loop import Run
from trainer.models.heads import PackedClassifier
from trainer.run_folder import ADAPTER, CHECKPOINTS, REPORT
from trainer.state import (
    TrainState,
    gather_state,
    optimizer_counters,
    restore_state,
    restore_weights,
)


@dataclass
class Session:
    """A run with its data and its folder; methods are the moments of its life."""

    run: Run
    prepared: Prepared
    model: PackedClassifier
    choices: Choices
    identity: dict[str, Any]
    state: TrainState

    @property
    def prior(self) -> float:
        """Share of vulnerable functions in training."""
        targets = self.prepared.splits["train"].targets
        return sum(targets) / len(targets)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.run.config.output_dir / CHECKPOINTS

    def validate(self) -> None:
        """Score the whole validation split and keep the best step and its threshold."""
        run, state, valid = self.run, self.state, self.prepared.splits["valid"]
        scores = score_functions(run.engine, valid.examples, self.prior, run.config, run.ranks)
        scored = population(valid.examples, run.config.eval.compat_population)
        scores, targets = scores[scored], np.array(valid.targets)[scored]
        threshold = best_threshold(scores, targets)
        metrics = classification_metrics(scores, targets, threshold)
        is_best = metrics.roc_auc is None or metrics.roc_auc > (state.best_roc_auc or 0.0)
        if is_best or state.best_step is None:
            state.best_step, state.best_roc_auc = state.step, metrics.roc_auc
            state.threshold = threshold
        if run.log is not None:
            values = {k: getattr(metrics, k) for k in ("roc_auc", "pr_auc", "f1", "mcc")}
            run.log.validation({"step": state.step, **values, "threshold": threshold})

    def save(self) -> None:
        """Gather on all ranks, write on one, fail on all when it fails.

        Raises:
            MachineError: The checkpoint could not be written; older ones are intact.
        """
        tensors = gather_state(self.run.engine, keep=self.run.ranks.is_main)
        trainer = {
            "state": self.state.to_json(),
            "counters": optimizer_counters(self.run.engine),
            "recipe": self.run.config.to_json(),
            "world_size": self.run.ranks.world_size,
            "zero_stage": self.choices.zero_stage,
        }

        def write() -> None:
            if not self.run.ranks.is_main:
                return
            try:
                write_checkpoint(self.checkpoints, self.state.step, tensors, trainer, self.identity)
                rotate(self.checkpoints, self.run.config.save.keep, self.state.best_step)
            except OSError as error:
                raise MachineError(
                    f"the checkpoint of step {self.state.step} was not written: {error}; older ones"
                    f" in {self.checkpoints} are intact: make room, the same command continues"
                ) from error

        agreed(self.run.ranks, write)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue exactly where a checkpoint was written, under any world size or ZeRO stage."""
        run = self.run

        def empty_step() -> None:
            loss = run.task.loss_sum(
                run.engine, collate(run.loader.examples, []).to(run.ranks.device)
            )
            run.engine.backward(loss.sum, scale_wrt_gas=False)
            run.engine.step()

        run.engine.train()
        restore_state(run.engine, checkpoint.tensors(), checkpoint.trainer["counters"], empty_step)
        run.engine.global_steps = self.state.step
        run.engine.skipped_steps = self.state.skipped_steps

    def finish(self) -> dict[str, Any] | None:
        """Take the best weights, export the adapter, score the test split; the report on rank 0."""
        run, config = self.run, self.run.config
        if self.state.best_step is None:
            self.validate()
            self.save()
        assert self.state.best_step is not None  # a validation sets it
        best = load_checkpoint(self.checkpoints / checkpoint_name(self.state.best_step))
        weights = best.tensors()
        restore_weights(run.engine, weights)
        test = self.prepared.splits["test"]
        scores = score_functions(run.engine, test.examples, self.prior, config, run.ranks)

        def export_and_report() -> dict[str, Any] | None:
            if not run.ranks.is_main:
                return None
            adapter = config.output_dir / ADAPTER
            state = self.state
            facts = adapter_facts(
                config, self.prepared, state.threshold, state.best_step, state.best_roc_auc
            )
            save_adapter(self.model.model, weights, adapter, facts)
            return write_split_report(
                config.output_dir / REPORT,
                "test",
                test,
                scores,
                self.state.threshold,
                self.prepared.splits["train"],
                self.prepared.splits["valid"],
                self.report_facts(),
                compat_population=config.eval.compat_population,
            )

        return agreed(run.ranks, export_and_report)

    def report_facts(self) -> dict[str, Any]:
        """What the report's numbers rest on."""
        return {
            "best_step": self.state.best_step,
            "steps": self.run.total_steps,
            "precision": self.choices.precision,
            "gamma": self.run.config.loss.gamma,
            "alpha": self.run.config.loss.alpha,
            "group_weights": self.run.config.loss.group_weights,
            "class_weights": self.run.config.loss.class_weights,
            "sampling": self.run.config.data.sampling,
            "long_functions": self.run.config.data.long_functions,
            "window_score": self.run.config.eval.window_score,
            "leaks": self.prepared.leaks,
            "leaks_allowed": self.run.config.data.allow_leaks,
            **{f"sha256_{name}": digest for name, digest in self.prepared.digests.items()},
        }
