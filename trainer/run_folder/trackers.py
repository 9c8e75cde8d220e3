"""Where a run's numbers go beside its log: TensorBoard, W&B and MLflow, each through its library.

All get the same names, values and steps. W&B and MLflow stay on this machine unless the user's
environment says otherwise: WANDB_MODE, MLFLOW_TRACKING_URI.
"""

import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from data.errors import json_object
from trainer.config.sections import RunConfig, default_of, plain
from trainer.errors import MachineError
from trainer.run_folder.folder import write_json

RUNS = "trackers.json"  # of a run folder: the names of its runs elsewhere
PROJECT = "focaltune"  # of W&B, and MLflow's experiment, unless their variables name others
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
_INSTALL = ".venv/bin/pip install -c constraints.txt -e '.[trackers]'"
_MOST_PARAMS, _MOST_VALUE = 100, 500  # that MLflow takes at once, and characters of one


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker gets to know of a run.

    Attributes:
        folder: The run folder.
        settings: The recipe, as section.key -> value.
        first_step: After which the run begins or continues.
    """

    folder: Path
    settings: Mapping[str, Any]
    first_step: int = 0

    def kept(self, name: str, value: str = "") -> str:
        """The name of this run in a tracker, which stays when the run continues; "" for none."""
        path = self.folder / RUNS
        remedy = "delete it: the run begins anew in its trackers"
        names = json_object(path, MachineError, remedy) if path.is_file() else {}
        if value:
            write_json(path, names | {name: value})
        return value or str(names.get(name, ""))


class Tracker(ABC):
    """Gets the numbers of a run in order, each step once.

    Attributes:
        forgets: Removes what came after `first_step` and gets these steps again; others have them.
        where: The run, for people.
    """

    forgets: ClassVar[bool] = False
    where: str

    @abstractmethod
    def __init__(self, run: TrackedRun) -> None:
        """Begin, or continue the same run."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Values by name, e.g. train/loss."""

    @abstractmethod
    def text(self, name: str, page: str, step: int) -> None:
        """A page of Markdown."""

    def pr_curve(  # noqa: B027  # most have no such chart
        self, name: str, labels_N: npt.ArrayLike, scores_N: npt.ArrayLike, step: int
    ) -> None:
        """Precision over recall."""

    @abstractmethod
    def finish(self, metrics: Mapping[str, float], step: int) -> None:
        """The metrics of the test split, beside the settings."""

    @abstractmethod
    def close(self, *, has_finished: bool) -> None:
        """Send the rest; the run has its report, or it was stopped."""


class TensorBoard(Tracker):
    """Scalars in charts of our own layout, PR curves, text and hparams in RUN/tensorboard."""

    forgets = True

    def __init__(self, run: TrackedRun) -> None:
        """Open the folder."""
        from torch.utils.tensorboard import SummaryWriter

        curves = run.folder / "tensorboard"
        curves.mkdir(exist_ok=True)  # it would make a run folder that was removed again
        self.where, self._settings, self._validated = "", run.settings, set[str]()
        self._writer = SummaryWriter(str(curves), purge_step=run.first_step + 1)
        if not run.first_step:
            self._writer.add_custom_scalars(_LAYOUT)
            rows = "\n".join(f"    {key}: {value}" for key, value in run.settings.items())
            self._writer.add_text("recipe", rows, 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write and flush them."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
            if name.startswith("valid/"):
                self._validated.add(name.removeprefix("valid/"))
        self._writer.flush()

    def text(self, name: str, page: str, step: int) -> None:
        """Write it."""
        self._writer.add_text(name, page, step)

    def pr_curve(
        self, name: str, labels_N: npt.ArrayLike, scores_N: npt.ArrayLike, step: int
    ) -> None:
        """Write it at 127 thresholds."""
        self._writer.add_pr_curve(name, np.asarray(labels_N), np.asarray(scores_N), step)

    def finish(self, metrics: Mapping[str, float], step: int) -> None:
        """Write a row of the table of hparams; its metrics are scalars of the same run."""
        from torch.utils.tensorboard.summary import hparams

        settings = {k: v for k, v in self._settings.items() if _is_tuned(k, v)}
        shown = {k: v for k, v in metrics.items() if k.removeprefix("test/") in self._validated}
        for summary in hparams(settings, shown):
            self._writer._get_file_writer().add_summary(summary)
        self.scalars(metrics, step)

    def close(self, *, has_finished: bool) -> None:
        """Flush everything."""
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of W&B, offline in RUN/wandb unless WANDB_MODE says otherwise."""

    def __init__(self, run: TrackedRun) -> None:
        """Begin or continue it under its id; nothing of the machine or the sources is sent."""
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False,
            x_save_requirements=False, x_disable_stats=True, x_disable_meta=True,
            x_disable_machine_info=True,
            x_transaction_log_flush_interval=0.1,  # of 15 s: a kill would lose as much
        )  # fmt: skip
        name = run.kept("wandb") or run.kept("wandb", uuid.uuid4().hex[:12])
        self._html = wandb.Html
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), id=name, name=run.folder.name,
            dir=str(run.folder), resume="allow", config=dict(run.settings), settings=quiet,
            allow_val_change=True,
        )  # fmt: skip
        is_online = os.environ["WANDB_MODE"] == "online"
        self.where = f"wandb: {self._run.url if is_online else run.folder / 'wandb'}"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add them to the step."""
        self._run.log(dict(values), step=step)

    def text(self, name: str, page: str, step: int) -> None:
        """Add it as it is."""
        self._run.log({name: self._html(f"<pre>{escape(page)}</pre>", inject=False)}, step=step)

    def finish(self, metrics: Mapping[str, float], step: int) -> None:
        """They are the run's summary."""
        self._run.summary.update(dict(metrics))

    def close(self, *, has_finished: bool) -> None:
        """Send the rest."""
        self._run.finish(exit_code=int(not has_finished))


class MLflow(Tracker):
    """A run of MLflow, in RUN/mlruns unless MLFLOW_TRACKING_URI names another place."""

    def __init__(self, run: TrackedRun) -> None:
        """Begin or continue it under its id."""
        for name, value in _MLFLOW_USUAL.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self._metric = Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.folder / "mlruns").resolve().as_uri()
        self.where, self._client = f"mlflow: {without_secrets(uri)}", MlflowClient(tracking_uri=uri)
        self._run = run.kept("mlflow")
        if self._run:
            try:
                self._client.update_run(self._run, status="RUNNING")
                return
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        began = self._client.create_run(number, run_name=run.folder.name)
        self._run = run.kept("mlflow", began.info.run_id)
        params = [Param(key, str(value)[:_MOST_VALUE]) for key, value in run.settings.items()]
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._run, params=params[first : first + _MOST_PARAMS])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send them in one request."""
        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w .:/-]", "_", name): value for name, value in values.items()}
        metrics = [self._metric(name, value, now, step) for name, value in named.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def text(self, name: str, page: str, step: int) -> None:
        """Keep it as a file."""
        self._client.log_text(self._run, page, f"{name}-{step}.md")

    def finish(self, metrics: Mapping[str, float], step: int) -> None:
        """They are metrics of the last step."""
        self.scalars(metrics, step)

    def close(self, *, has_finished: bool) -> None:
        """Say that the run has ended."""
        self._client.set_terminated(self._run, "FINISHED" if has_finished else "KILLED")


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
_MLFLOW_USUAL = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # training waits meanwhile
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_TUNED = {  # columns of hparams, beside what a recipe changes
    *("tuning.method", "tuning.lora_r", "optim.lr", "optim.schedule", "optim.global_batch_size"),
    *("loss.gamma", "data.seq_length", "data.packing", "engine.precision", "run.seed"),
}
_OF_PLACES = {"run.output_dir", "run.resume", "run.accept_changes", "data.cache_dir"}
_LAYOUT = {
    "Training": {
        "loss": ["Multiline", ["^train/loss$", "^valid/loss$"]],
        "learning rate": ["Multiline", ["^train/lr$"]],
        "gradient norm": ["Multiline", ["^train/grad_norm$"]],
    },
    "Validation": {
        "measures": ["Multiline", ["^valid/(?!loss$|threshold$|perplexity$)"]],
        "threshold, perplexity": ["Multiline", ["^valid/(threshold|perplexity)$"]],
    },
    "Cost": {
        "tokens a second": ["Multiline", ["^train/tokens_per_second$"]],
        "memory in GiB": ["Multiline", ["^train/memory_gib$"]],
        "packing and balance": ["Multiline", ["^train/(packing_fill|imbalance_)"]],
    },
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not installed, before anything is loaded.

    Raises:
        MachineError: It says how to install it.
    """
    for name in names:
        package = _PACKAGES.get(name)
        spec = find_spec(package) if package else None
        if package and (spec is None or spec.origin is None):  # a folder of that name alone
            raise MachineError(
                f"log.trackers names {name}, which is not installed: {_INSTALL}; or leave it out"
            )


def _is_tuned(key: str, value: Any) -> bool:
    """Whether a setting tells runs apart: one that people tune, or not the default."""
    section, _, name = key.partition(".")
    if key in _TUNED or section not in RunConfig.model_fields:
        return True
    default = plain(default_of(section, name))
    return section != "log" and key not in _OF_PLACES and value != default


def without_secrets(text: str) -> str:
    """A text without passwords of addresses and without what variables of the environment hide."""
    text = re.sub(r"//[^/@\s]+@", "//", text)
    for name, value in os.environ.items():
        if re.search("KEY|TOKEN|PASSWORD|SECRET", name) and len(value) >= len("secret"):
            text = text.replace(value, f"${name}")
    return text
