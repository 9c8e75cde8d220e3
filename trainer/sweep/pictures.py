"""The pictures of a sweep: a colour and a marker for each method, a marker size for each model."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data.audit.figure import svg
from trainer.evaluation.figures import panels
from trainer.evaluation.measures import with_interval
from trainer.sweep.findings import Comparison, Group
from trainer.sweep.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, its yellow darkened: distinct under every common colour blindness.
STYLES = {
    "full": ("#000000", "o"),
    "lora": ("#0072B2", "s"),
    "qlora": ("#56B4E9", "p"),
    "ia3": ("#D55E00", "^"),
    "ptuning": ("#CC79A7", "v"),
    "adapter_h": ("#009E73", "D"),
    "adapter_p": ("#E69F00", "P"),
    "parallel": ("#9A8700", "X"),
}

Value = Callable[[Result], float]


def draw(comparison: Comparison) -> dict[str, bytes]:
    """All pictures by their file names."""
    suites = {}
    if comparison.suites:
        suites = {
            "suites_by_trained.svg": _suites(comparison, "trainable parameters", _trained),
            "suites_by_loss.svg": _suites(comparison, f"{comparison.loss_name} (nats)", _loss),
        }
    return {
        "loss_by_size.svg": _loss_by_size(comparison),
        "loss_over_steps.svg": _loss_over_steps(comparison),
        "resources.svg": _resources(comparison),
        "metric_by_loss.svg": _metric_by_loss(comparison),
        "cost.svg": _cost_and_score(comparison),
        **suites,
    }


def _style(comparison: Comparison, method: str) -> tuple[str, str]:
    """Colour and marker: its own, or the next that no other method of the comparison has."""
    if method in STYLES:
        return STYLES[method]
    others = [one for one in comparison.methods if one not in STYLES]
    styles = list(STYLES.values())
    every = [
        (colour, styles[(place + turn) % len(styles)][1])
        for turn in range(len(styles))
        for place, (colour, _) in enumerate(styles)
    ]
    taken = {STYLES[one] for one in comparison.methods if one in STYLES}
    free = [style for style in every if style not in taken]
    return free[others.index(method) % len(free)]


def parameters(number: int) -> str:
    """A count for people, e.g. 1.14 B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _loss_by_size(comparison: Comparison) -> bytes:
    """Final train and test loss over the size of the base; bars: lowest and highest seed."""
    losses: dict[str, Value] = {"train loss, last tenth of the steps": lambda cell: cell.train_loss}
    if comparison.loss_name == "test loss":
        losses["test loss"] = _loss
    names = {size: _model_name(comparison, model) for model, size in comparison.models.items()}
    figure, axes = _panels("Final loss by size", len(losses))
    for axis, (name, value) in zip(axes, losses.items(), strict=True):
        for method in comparison.methods:
            _line(axis, comparison, method, value)
        axis.set(xscale="log", xlabel="parameters of the base", ylabel=f"{name} (nats)")
        axis.set_xticks(list(names), list(names.values()), fontsize=8)  # ticks only at the models
        axis.set_xticks([], minor=True)
    _method_legend(figure, axes[0])
    return svg(figure)


def _loss_over_steps(comparison: Comparison) -> bytes:
    """Training loss over steps, a panel for each model: running mean, then mean over seeds."""
    figure, axes = _panels(
        "Training loss, running mean over a tenth of the run", len(comparison.models)
    )
    for axis, model in zip(axes, comparison.models, strict=True):
        for group in comparison.groups:
            if group.model == model:
                colour, _ = _style(comparison, group.method)
                axis.plot(*group.mean_curve(), color=colour, linewidth=1.5, label=group.method)
        axis.set(title=_model_name(comparison, model), xlabel="optimizer step")
    axes[0].set_ylabel("loss (nats)")
    _method_legend(figure, axes[0])
    return svg(figure)


def _resources(comparison: Comparison) -> bytes:
    """Trainable share, time and peak memory of each method, a marker for each model."""
    resources: dict[str, Value] = {
        "trainable share of parameters (%)": lambda cell: 100 * cell.trained_share,
        **_costs(comparison),
    }
    figure, axes = _panels("Trainable share, time and peak memory", len(resources))
    methods = comparison.methods
    for axis, (name, value) in zip(axes, resources.items(), strict=True):
        _points(axis, comparison, value, lambda cell: methods.index(cell.method))
        axis.set(xlabel=name, yticks=range(len(methods)))
        axis.set_yticklabels(methods if axis is axes[0] else [])
        axis.set_ylim(len(methods) - 0.5, -0.5)
    axes[0].set_xscale("log")
    axes[0].xaxis.set_major_formatter("{x:g}")
    _legend(figure, comparison, with_methods=False)
    return svg(figure)


def _metric_by_loss(comparison: Comparison) -> bytes:
    """The task's metric over loss, a point for each cell, with their rank correlation."""
    metric, loss_name = comparison.metric, comparison.loss_name
    note = "".join(
        f"\nSpearman {with_interval(found.rho, found.interval, '+.2f')}"
        for found in comparison.relations[:1]
    )
    cells = [Group(g.method, g.model, (cell,)) for g in comparison.groups for cell in g.cells]
    figure, [axis] = _panels(f"Test {metric} against {loss_name}{note}", 1)
    _points(axis, comparison, _loss, _metric, cells)
    axis.set(xlabel=f"{loss_name} (nats)", ylabel=f"{metric} on test")
    _legend(figure, comparison)
    return svg(figure)


def _cost_and_score(comparison: Comparison) -> bytes:
    """The score over trained parameters, memory and time, with intervals and Pareto fronts."""
    groups, value = comparison.groups, comparison.value
    costs = {"trained parameters": _trained, **_costs(comparison)}
    measure = comparison.scored[comparison.score]
    figure, axes = _panels(f"Cost and {measure.title}, with the Pareto front", len(costs))
    for axis, (name, cost) in zip(axes, costs.items(), strict=True):
        for group in groups:
            paired = comparison.paired.get(group.model)
            ends = paired.intervals.get((group.method, comparison.score)) if paired else None
            if ends is not None:
                colour, _ = _style(comparison, group.method)
                axis.plot([group.mean(cost)] * 2, ends, color=colour, linewidth=1, zorder=1)
        front = comparison.front(groups, cost)
        points = [(group.mean(cost), group.mean(value)) for group in front]
        if points:
            axis.step(*zip(*points, strict=True), where="post", color="0.6", linewidth=1.2)
        _points(axis, comparison, cost, value)
        below = -1 if measure.higher_is_better else 1  # no point lies on that side of the front
        for point, group in zip(points, front, strict=True):
            axis.annotate(
                f"{group.method} {group.model}", point, xytext=(-6, -5 * below),
                textcoords="offset points", ha="right", va="top" if below > 0 else "bottom",
                fontsize=7,
            )  # fmt: skip
        axis.set(xlabel=name, ylabel=f"{measure.title} on test")
        _cost_scale(axis, [group.mean(cost) for group in groups])
    _legend(figure, comparison)
    return svg(figure)


def _suites(comparison: Comparison, heading: str, x: Value) -> bytes:
    """Score on each suite, a panel each: mean of the seeds that were measured."""
    figure, axes = _panels(f"Suites against {heading}", len(comparison.suites))
    for axis, name in zip(axes, comparison.suites, strict=True):
        parts = [tuple(c for c in g.cells if name in c.suites) for g in comparison.groups]
        groups = [Group(p[0].method, p[0].model, p) for p in parts if p]
        _points(axis, comparison, x, lambda cell: cell.suites[name], groups)  # noqa: B023
        axis.set(title=name, xlabel=heading, xscale="log" if x is _trained else "linear")
    axes[0].set_ylabel("percent")
    _legend(figure, comparison)
    return svg(figure)


def _costs(comparison: Comparison) -> Mapping[str, Value]:
    return {
        "training time (s)": lambda cell: cell.train_seconds,
        f"{comparison.memory_name} (GiB)": lambda cell: cell.peak_gib,
    }


def _trained(cell: Result) -> float:
    return cell.num_trained


def _loss(cell: Result) -> float:
    return cell.loss


def _metric(cell: Result) -> float:
    return float("nan") if cell.metric is None else cell.metric


def _panels(title: str, num: int) -> tuple["Figure", list["Axes"]]:
    figure, axes = panels(num, 7.0 if num == 1 else 4.2 * num, 5.2)
    figure.suptitle(title)
    return figure, axes


def _line(axis: "Axes", comparison: Comparison, method: str, value: Value) -> None:
    """The line of a method over the sizes of its models."""
    members = [group for group in comparison.groups if group.method == method]
    sizes = [group.cells[0].num_base for group in members]
    means = [group.mean(value) for group in members]
    errors = np.abs(np.array([group.ends(value) for group in members]).T - means)
    colour, marker = _style(comparison, method)
    axis.errorbar(
        sizes, means, yerr=errors, color=colour, marker=marker, markersize=6, linewidth=1.3,
        elinewidth=1, capsize=3, label=method,
    )  # fmt: skip


def _points(
    axis: "Axes",
    comparison: Comparison,
    x: Value,
    y: Value,
    groups: Sequence[Group] | None = None,
) -> None:
    """A point for each group, of the comparison where none are given."""
    areas = _areas(comparison)
    for group in groups or comparison.groups:
        colour, marker = _style(comparison, group.method)
        axis.scatter(
            group.mean(x), group.mean(y), areas[group.model], color=colour, marker=marker,
            alpha=0.75, edgecolors="white", linewidths=0.5, zorder=2,
        )  # fmt: skip


def _cost_scale(axis: "Axes", costs: Sequence[float]) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5, and room for names on the left."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = min(costs), max(costs)
    room = max(high / low, 2.0)
    axis.set_xscale("log")
    axis.set_xlim(low / room**0.4, high * room**0.15)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")


def _areas(comparison: Comparison) -> dict[str, int]:
    """Area of the marker of each model, the smallest model first."""
    return {model: 36 + 45 * place for place, model in enumerate(comparison.models)}


def _model_name(comparison: Comparison, model: str) -> str:
    return f"{model} ({parameters(comparison.models[model])})"


def _method_legend(figure: "Figure", axis: "Axes") -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)), fontsize=8)


def _legend(figure: "Figure", comparison: Comparison, *, with_methods: bool = True) -> None:
    """Sizes of the models' markers, after the methods' own markers."""
    from matplotlib.lines import Line2D

    sizes: list[Any] = [
        {"color": "0.5", "marker": "o", "markersize": area**0.5,
         "label": _model_name(comparison, model)}
        for model, area in _areas(comparison).items()
    ]  # fmt: skip
    styles = {method: _style(comparison, method) for method in comparison.methods}
    methods = [
        {"color": colour, "marker": marker, "label": method}
        for method, (colour, marker) in styles.items()
    ]
    shown = [*methods, *sizes] if with_methods else sizes
    handles = [Line2D([], [], linestyle="", **style) for style in shown]
    ncols = 5 if with_methods else len(handles)
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, fontsize=8)
