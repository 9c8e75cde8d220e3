"""What a run folder says of its run, for the page: settings, curves, data, time and machine."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.renamed import with_current_keys
from trainer.config.sections import RunConfig, default_of
from trainer.config.strict_yaml import read_yaml_file
from trainer.evaluation.figures import curves_svg
from trainer.evaluation.measures import MEASURES
from trainer.evaluation.page.html import as_html, inlined
from trainer.run_folder.folder import DATA, LOG, PASSPORT, RECIPE
from trainer.run_folder.metrics import curve, read_log, resources

if TYPE_CHECKING:
    from markupsafe import Markup

_PAPERS = {
    "versions": "Versions",
    "code": "Code",
    "hardware": "Machine",
    "settled": "Chosen for this run",
    "digests": "Digests",
    "sittings": "Starts of the run",
}
_SPLITS = ("train", "valid", "test")
_MOST_CLASSES = 20  # rows of the table of data
_GIB = 2**30

Rows = list[list[Any]]


@dataclass(frozen=True)
class About:
    """What the page says of a run.

    Attributes:
        lines: A word, and what is said of it.
        command: Starts the same run again.
        settings: Key, value and default of those that differ.
        facts: More, by title.
        charts: Curves over steps.
        training: Steps, time, memory and throughput.
        data: Header and rows: a column for each split.
        remarks: On the data.
        audit: The page of launcher/prepare.py --audit, where there is one.
    """

    lines: list[tuple[str, str]]
    command: str
    settings: Rows
    facts: Mapping[str, Rows]
    charts: "list[Markup]"
    training: Rows
    data: tuple[list[str], Rows]
    remarks: Sequence[str]
    audit: "Markup | str"


def about_run(run: Path) -> About:
    """Read what a run has left."""
    config = RunConfig.model_validate(with_current_keys(read_yaml_file(run / RECIPE)))
    papers, data, plan = (_json(run / name) for name in (PASSPORT, DATA, "plan.json"))
    train, valid = (read_log(run / LOG, kind) for kind in ("train", "valid"))
    training = list(_training(config, papers, plan, train))
    audit = run.with_name(f"{run.name}.audit")
    audited = audit / "audit.md"
    return About(
        lines=_lines(config, papers, training),
        command=papers.get("repeat", f"launcher/train.py {run / RECIPE}"),
        settings=_changed(config),
        facts={
            title: list(_flat(papers[key])) for key, title in _PAPERS.items() if papers.get(key)
        },
        charts=[inlined(chart.decode()) for chart in _charts(config, train, valid)],
        training=training,
        data=_data(data),
        remarks=data.get("remarks", []),
        audit=as_html(audited.read_text("utf-8"), audit) if audited.is_file() else "",
    )


def _json(path: Path) -> dict[str, Any]:
    """A file of the run; nothing where an older version left none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _lines(config: RunConfig, papers: Mapping[str, Any], training: Rows) -> list[tuple[str, str]]:
    """The run in short."""
    machine = ", ".join(papers.get("hardware", {}).get("devices", []))
    short = {word: str(value) for word, value in training}
    lines = [
        ("task", config.task.name),
        ("model", f"{config.model_folder.name}, {config.tuning.method}"),
        ("steps", short.get("steps", "")),
        ("time", short.get("time of training steps", "")),
        ("machine", machine),
    ]
    return [(word, said) for word, said in lines if said]


def _changed(config: RunConfig) -> Rows:
    rows = [
        (f"{section}.{key}", value, default_of(section, key))
        for section, block in config.to_json().items()
        for key, value in block.items()
    ]
    return [[key, *map(_shown, both)] for key, *both in rows if both[0] != both[1]]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _flat(facts: Any, before: str = "") -> Iterator[list[str]]:
    """Nested facts as rows of a dotted name and a value."""
    if not isinstance(facts, Mapping | list) or not facts:
        yield [before, _shown(facts)]
        return
    for key, value in facts.items() if isinstance(facts, Mapping) else enumerate(facts, 1):
        yield from _flat(value, f"{before}.{key}" if before else str(key))


def _training(
    config: RunConfig,
    papers: Mapping[str, Any],
    plan: Mapping[str, Any],
    train: Sequence[Mapping[str, Any]],
) -> Iterator[list[Any]]:
    """Steps, time, memory and throughput, each from the file that holds it."""
    used = resources(train)
    if train:
        yield ["steps", f"{train[-1]['step']:,} ({train[-1]['epoch']:.3g} epochs)"]
    if "train_seconds" in used:
        yield ["time of training steps", _duration(used["train_seconds"])]
    if "hours" in papers:
        yield ["time of the whole run", _duration(3600 * papers["hours"])]
        if papers["gpu_hours"]:
            yield ["GPU hours", f"{papers['gpu_hours']:.3g}"]
    for what in ("tokens", "records"):
        if (speed := used.get(f"{what}_per_second")) is not None:
            yield [f"{what} a second, median", f"{speed:,.0f}"]
    if "memory_gib" in used:
        yield ["peak memory of a rank", f"{used['memory_gib']:.3g} GiB"]
    if plan:
        yield ["memory planned for a step", f"{plan['memory']['total'] / _GIB:.3g} GiB"]
        share = plan["num_trained"] / plan["num_parameters"]
        of_all = f"{plan['num_trained']:,} of {plan['num_parameters']:,}"
        yield ["trained parameters", f"{of_all} ({share:.2%})"]
    if steps := plan.get("steps"):
        rows = f"{steps['num_rows']:,} of {config.data.seq_length:,} tokens"
        yield ["rows", f"{rows}, {steps['packing_fill']:.1%} full"]
        yield ["steps of an epoch", f"{steps['steps_per_epoch']:,}"]
        size = (
            f"{steps['micro_batch_size']} rows x {steps['world_size']} ranks x"
            f" {steps['gradient_accumulation_steps']} accumulated"
        )
        yield ["batch", size]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _data(data: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """Counts of every split; a row that is 0 in all of them is left out."""
    splits = data.get("splits", {})
    columns = {name: dict(_counts(splits[name], data)) for name in _SPLITS if name in splits}
    words = dict.fromkeys(word for column in columns.values() for word in column)
    rows = [[word, *(column.get(word, 0) for column in columns.values())] for word in words]
    shown = [[word, *map(_shown, counts)] for word, *counts in rows if any(counts)]
    return ["", *columns], shown


def _counts(facts: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Numbers of a split: its rows, its functions or records, and their tokens."""
    tokens = facts.get("tokens", {})
    for key, value in {**facts, **tokens}.items():
        if isinstance(value, int | float):
            yield key.removeprefix("num_").replace("_", " "), value
    names = data.get("classes", {}).get("names", [])
    for name, count in [*zip(names, tokens.get("class_counts", []), strict=False)][:_MOST_CLASSES]:
        yield f"label: {name}", count


def _charts(
    config: RunConfig, train: Sequence[Mapping[str, Any]], valid: Sequence[Mapping[str, Any]]
) -> Iterator[bytes]:
    """Losses, unless the report has them; what validation measured; throughput."""
    if not config.is_language:
        losses = {"training": curve(train, "loss"), "validation": curve(valid, "loss")}
        yield curves_svg("Loss over steps", "loss", losses)
    shares = {
        MEASURES[key].heading: points
        for key in MEASURES
        if (points := curve(valid, key)) and all(0 <= value <= 1 for _, value in points)
    }
    shares.pop(MEASURES["loss"].heading, None)
    if shares:
        yield curves_svg("Validation over steps", "value", shares)
    if train:
        speed = {"tokens a second": curve(train, "tokens_per_second")}
        yield curves_svg("Throughput over steps", "tokens a second", speed)
