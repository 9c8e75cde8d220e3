"""A run with its data and its folder: validate, save, restore, finish."""

from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.batches.batch import collate
from data.batches.loader import TrainLoader
from data.prepared.prepare import Prepared
from data.text.terminal import step
from trainer.config.sections import RunConfig
from trainer.engine.state import (
    TrainState,
    gathered_state,
    optimizer_counters,
    restore_state,
    restore_weights,
    state_shapes,
)
from trainer.errors import MachineError
from trainer.evaluation.best_step import best_value, deciding, measured_kind
from trainer.evaluation.decision import Decision
from trainer.evaluation.scoring import Evaluation
from trainer.losses.tasks import Task
from trainer.models.heads import PackedModel
from trainer.planning.resolved import Resolved
from trainer.processes.distributed import Ranks, agreed
from trainer.run.passport import Passport
from trainer.run_folder.checkpoint import Checkpoint, load_step, rotate, write_checkpoint
from trainer.run_folder.folder import BASELINES, CHECKPOINTS, MODEL, REPORT, link_as_before
from trainer.run_folder.metrics import RunLog
from trainer.run_folder.model import model_facts, save_model

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_LANGUAGE_FACTS = ("template", "supervise", "isolate", "order")


@dataclass(frozen=True)
class Run:
    """What a training run is made of; only rank 0 has a log."""

    config: RunConfig
    ranks: Ranks
    engine: "DeepSpeedEngine"
    task: Task
    loader: TrainLoader
    total_steps: int
    log: RunLog | None

    @property
    def steps_ahead(self) -> int:
        """How much further the schedule is than the steps, after epochs of another batch size."""
        return 0 if self.config.optim.max_steps else self.loader.steps_ahead

    def say(self, *lines: str) -> None:
        """Print lines on rank 0."""
        if self.log is not None:
            self.log.say(*lines)


@dataclass
class Session:
    """A run with its data and its folder."""

    run: Run
    prepared: Prepared
    model: PackedModel
    recipe: Resolved
    identity: dict[str, Any]
    state: TrainState
    evaluation: Evaluation
    passport: Passport | None = None  # on rank 0

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.run.config.output_dir / CHECKPOINTS

    @property
    def early_stop(self) -> str:
        """Why training ends here, before its last step, by eval.patience; "" while it goes on."""
        state, wanted = self.state, self.run.config.eval
        if wanted.patience is None or state.num_worse < wanted.patience:
            return ""
        if state.step >= self.run.total_steps:
            return ""
        of = measured_kind(self.run.config.task.name, self.prepared.classes)
        name, measure = deciding(of, wanted.metric)
        [value] = best_value(of, state.best_score, wanted.metric).values()
        return (
            f"stopped early after step {state.step} of {self.run.total_steps}: in"
            f" {state.num_worse} validations {name} was never better than {measure.text(value)}, at"
            f" step {state.best_step} (eval.patience)"
        )

    def validate(self) -> None:
        """Score the whole validation split; keep the best step and its threshold, or count on."""
        state, found = self.state, self.evaluation.validate(self.state.step)
        is_best = found.score is None or state.best_score is None or found.score > state.best_score
        state.num_worse += 1
        if is_best or state.best_step is None:
            state.best_step, state.best_score, state.num_worse = state.step, found.score, 0
            state.threshold = found.decision.threshold
            state.decision = found.decision.to_json()

    def save(self) -> None:
        """Gather on all ranks, write on one, fail on all when it fails.

        Raises:
            MachineError: The checkpoint could not be written; older ones are intact.
        """
        engine, is_main = self.run.engine, self.run.ranks.is_main
        trainer = {
            "state": self.state.to_json(),
            "counters": optimizer_counters(engine),
            "recipe": self.run.config.to_json(),
            "world_size": self.run.ranks.world_size,
            "micro_batch_size": self.recipe.config.optim.micro_rows,
            "zero_stage": self.recipe.preset.stage,
            "files": self._files(),
            "start": asdict(self.run.loader.start),
        }

        def write() -> None:
            state = gathered_state(engine, keep=is_main)
            if not is_main:
                deque(state, maxlen=0)
                return
            try:
                write_checkpoint(
                    self.checkpoints, self.state.step, state_shapes(engine), state, trainer,
                    self.identity,
                )  # fmt: skip
                rotate(self.checkpoints, self.run.config.save.keep, self.state.best_step)
                if self.passport is not None:
                    self.passport.write(self.state.step)
            except OSError as error:
                raise MachineError(
                    f"the checkpoint of step {self.state.step} was not written: {error}; older ones"
                    f" in {self.checkpoints} are intact: make room, the same command continues"
                ) from error

        with step(f"saving step {self.state.step}"):
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
        """Take the best weights, score the test split, save the model; the report on rank 0."""
        run, config = self.run, self.run.config
        if self.state.best_step is None:
            self.validate()
            self.save()
        assert self.state.best_step is not None  # a validation sets it
        weights = load_step(self.checkpoints, self.state.best_step).tensors()
        restore_weights(run.engine, weights)
        write_report = self.evaluation.test(
            self.prepared.splits["test"],
            "test",
            Decision(self.state.threshold, **self.state.decision),
            self.report_facts(),
        )

        def report_and_export() -> dict[str, Any] | None:
            if not run.ranks.is_main:
                return None
            kind = measured_kind(config.task.name, self.prepared.classes)
            best = best_value(kind, self.state.best_score, config.eval.metric)
            report = write_report()
            facts = model_facts(config, self.prepared, self.state, best, report)
            save_model(self.model.model, weights, config.output_dir / MODEL, facts, config)
            self.evaluation.leave(config.output_dir / BASELINES)
            link_as_before(config.output_dir)
            if self.passport is not None:
                self.passport.write(self.state.step, report["predictors"]["model"])
            if run.log is not None:
                run.log.finish(report, config.output_dir / REPORT, self.state.step)
            return report

        with step("writing report and model"):
            return agreed(run.ranks, report_and_export)

    def report_facts(self) -> dict[str, Any]:
        """What the report's numbers rest on."""
        config = self.run.config
        data, loss = config.data, config.loss
        of_task: dict[str, Any] = {
            "alpha": loss.alpha,
            "group_weights": loss.group_weights,
            "class_weights": loss.class_weights,
            "sampling": data.sampling,
            "window_score": config.eval.window_score,
        }
        if config.is_language:
            of_task = {key: getattr(data, key) for key in _LANGUAGE_FACTS}
            of_task["began_with"] = config.tuning.init_from or (
                "untrained virtual tokens" if config.tuning.method == "ptuning" else "the base"
            )
        if self.prepared.facts.get("held_out"):
            of_task["division"] = self.prepared.facts["held_out"] | self.prepared.facts.get(
                "division", {}
            )
        if self.early_stop:
            of_task["stopped_early"] = self.early_stop
        return {
            "task": config.task.name,
            "best_step": self.state.best_step,
            "steps": self.state.step,
            "precision": self.recipe.config.engine.precision,
            "gamma": loss.gamma,
            **of_task,
            "long_functions": data.long_functions,
            "leaks": self.prepared.leaks,
            "leaks_allowed": data.allow_leaks,
            **{f"sha256_{name}": digest for name, digest in self.prepared.digests.items()},
        }

    def _files(self) -> dict[str, list[str]] | None:
        """Finished and current files, with data.order=sequential."""
        loader = self.run.loader
        if loader.files is None:
            return None
        done, current = loader.files_at(max(0, self.state.step - 1))
        return {"done": done, "current": current}
