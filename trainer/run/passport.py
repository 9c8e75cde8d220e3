"""run.json: what made a run, on what machines and for how long; and the run that repeats it."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from data.errors import json_object, parsing
from trainer.cluster.facts import common_facts, own_revision
from trainer.config.recipe import load_run_config
from trainer.config.sections import RunConfig
from trainer.errors import ConfigError, ModelError
from trainer.planning.resolved import Resolved
from trainer.processes.distributed import Ranks
from trainer.run_folder.folder import LOG, PASSPORT, RECIPE, write_json
from trainer.run_folder.metrics import read_log
from trainer.run_folder.resume import config_changes

FORMAT = 1
_DAMAGED = "delete it: only what it says of the run is lost"
_COMPARED = ("code", "versions", "hardware", "settled")
_HOUR = 3600.0


@dataclass(frozen=True)
class Passport:
    """run.json of a run that goes on; it is written again with every checkpoint.

    A sitting is one start of the run, from the start of its process to its last checkpoint or its
    end: what a kill cut off is not counted.

    Attributes:
        path: run.json.
        facts: Its content.
    """

    path: Path
    facts: dict[str, Any]

    def write(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Count the time up to here; with the metrics of the test split the run has ended."""
        sitting, hardware = self.facts["sittings"][-1], self.facts["hardware"]
        began, now = psutil.Process().create_time(), time.time()
        num_gpus = hardware["ranks"] if hardware["has_gpus"] else 0
        sitting |= {
            "began": _when(began),
            "ended": _when(now),
            "last_step": step,
            "hours": (now - began) / _HOUR,
            "gpu_hours": (now - began) / _HOUR * num_gpus,
        }
        for key in ("hours", "gpu_hours"):
            self.facts[key] = sum(each[key] for each in self.facts["sittings"])
        if metrics is not None:
            self.facts["test"] = dict(metrics)
        write_json(self.path, self.facts)


def open_passport(
    recipe: Resolved, ranks: Ranks, identity: Mapping[str, str], step: int
) -> tuple[Passport, list[str]]:
    """The passport of a run that begins or continues here and now, and a line about a damaged one.

    Args:
        identity: Digests of base and data.
        step: Steps that are done.
    """
    path, common = recipe.config.output_dir / PASSPORT, common_facts()
    sittings, damaged = list[Any](), list[str]()
    try:
        sittings = read_passport(path.parent).get("sittings", [])
    except ModelError as error:
        damaged = [f"{error}; this start is the first that a new one counts"]
    facts = {
        "format": FORMAT,
        "repeat": f"launcher/train.py --repeat {path.parent}",
        "code": {**own_revision(), "digest": common["code"]},
        "versions": {"python": common["python"], **common["versions"]},
        "hardware": {
            "ranks": ranks.world_size,
            "has_gpus": ranks.device.type != "cpu",
            "devices": sorted(set(ranks.devices)),
            "hosts": sorted(set(ranks.hosts)),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "digests": dict(identity),
        "settled": {key: recipe.value(key) for key in recipe.reasons},
        "sittings": [*sittings, {"first_step": step}],
    }
    return Passport(path, facts), damaged


def read_passport(run: Path) -> dict[str, Any]:
    """The content of a run's run.json; {} where an older version left none.

    Raises:
        ModelError: It cannot be read, or another version wrote it.
    """
    path = run / PASSPORT
    if not path.is_file():
        return {}
    facts = json_object(path, ModelError, _DAMAGED)
    if facts.get("format") != FORMAT:
        raise ModelError(f"{path} has format {facts.get('format')!r}, not {FORMAT}; {_DAMAGED}")
    with parsing(f"{path} is damaged", ModelError, _DAMAGED):
        for key in (*_COMPARED, "digests"):
            dict(facts[key])
        dict(facts.get("test", {}).get("metrics", {}))
        for sitting in facts["sittings"]:
            _ = sitting["hours"] + sitting["gpu_hours"]
    return facts


@dataclass(frozen=True)
class Original:
    """A run that is repeated.

    Attributes:
        run: Its folder.
        facts: Of its run.json; {} where an older version left none.
    """

    run: Path
    facts: Mapping[str, Any]

    def refuse_other(self, identity: Mapping[str, str]) -> None:
        """Refuse another base or other data.

        Raises:
            ModelError: It names them.
        """
        before = self.facts.get("digests", identity)
        odd = [key for key in identity if identity[key] != before.get(key)]
        if odd:
            raise ModelError(
                f"{', '.join(odd)} differ from what {self.run} was trained with, so this is no"
                " repeat of it: restore the files, or give their place (data.path=, model.path=);"
                f" to train with these, start {self.run / RECIPE} as a recipe"
            )

    def differences(self, facts: Mapping[str, Any]) -> list[str]:
        """What else differs between a run's facts and the original's."""
        if not self.facts:
            return [f"repeats {self.run}, which has no {PASSPORT}: only recipe and data are equal"]
        changes = [
            f"{section}.{key}: {self.facts[section].get(key)} -> {value}"
            for section in _COMPARED
            for key, value in facts[section].items()
            if value != self.facts[section].get(key) and key not in ("hosts", "version")
        ]
        if not changes:
            return [f"repeats {self.run} with the same code, versions, devices, base and data"]
        return [
            f"repeats {self.run} with the same recipe, base and data; what differs can change"
            " the last digits, and code can change more:",
            *(f"  {change}" for change in changes),
        ]

    def outcome(self, run: Path, test: Mapping[str, Any]) -> list[str]:
        """How near a finished repeat came: logged losses, and the metrics of the test split."""
        before, now = ({r["step"]: r["loss"] for r in read_log(f / LOG)} for f in (self.run, run))
        steps = sorted(before.keys() & now.keys())
        odd = [step for step in steps if before[step] != now[step]]
        lines = [f"the repeat's {len(steps)} logged losses are those of {self.run} to the last bit"]
        if odd:
            most = max(abs(before[step] - now[step]) for step in odd)
            lines = [
                f"of the repeat's {len(steps)} logged losses {len(odd)} differ from those of"
                f" {self.run}, first after step {odd[0]} ({before[odd[0]]:.9g} ->"
                f" {now[odd[0]]:.9g}), by {most:.3g} at most"
            ]
        if "test" not in self.facts:
            return lines
        measured, metrics = (each.get("metrics", each) for each in (self.facts["test"], test))
        others = [
            f"{key} {measured.get(key)} -> {value}"
            for key, value in metrics.items()
            if value != measured.get(key)
        ]
        return [*lines, f"test: {', '.join(others)}" if others else "test: the same measures"]


def original_run(run: Path, overrides: Sequence[str]) -> tuple[RunConfig, Original]:
    """The recipe of a run for a new folder, RUN.repeated unless run.output_dir names another.

    Raises:
        ConfigError: A key makes it another run, or the folder is that of the original.
        ModelError: The folder holds no run, or its run.json is damaged.
    """
    run = run.resolve()
    if not (run / RECIPE).is_file():
        raise ModelError(f"{run} holds no {RECIPE}, so no run; give the folder of one")
    beside = f"run.output_dir={run}.repeated"
    config = load_run_config(run / RECIPE, [beside, *overrides])
    if config.output_dir == run:
        raise ConfigError(f"run.output_dir {run} is the run itself; choose another folder")
    if changes := config_changes(load_run_config(run / RECIPE).to_json(), config.to_json()):
        raise ConfigError(
            f"a repeat has the recipe of {run}, and these keys make another run:\n  "
            + "\n  ".join(changes)
            + f"\nleave them out, or start {run / RECIPE} as a recipe"
        )
    return config, Original(run, read_passport(run))


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
