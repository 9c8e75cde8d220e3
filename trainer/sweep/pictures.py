"""The pictures of a sweep: a colour and a marker for each method, a marker size for each model."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer.evaluation.figures import panels, png
from trainer.sweep.findings import Comparison, Group, front_of
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
_AREA, _MORE_AREA = 36, 45  # of the smallest model's marker, and of each larger one's
_SMOOTHED = 0.1  # share of the logged steps in a running mean


def draw(comparison: Comparison) -> dict[str, bytes]:
    """All pictures by their file names."""
    return {
        "loss_by_size.png": loss_by_size(comparison),
        "loss_over_steps.png": loss_over_steps(comparison),
        "resources.png": resources(comparison),
        "metric_by_trained.png": metric_by_trained(comparison),
        "metric_by_loss.png": metric_by_loss(comparison),
        "cost.png": cost_and_loss(comparison),
    }


def loss_by_size(comparison: Comparison) -> bytes:
    """Final train and test loss over the size of the base; bars: lowest and highest seed."""
    panels: dict[str, Callable[[Result], float]] = {
        "train loss, last tenth of the steps": lambda cell: cell.train_loss
    }
    groups = comparison.groups
    if comparison.loss_name == "test loss":
        panels["test loss"] = lambda cell: cell.loss
    figure, axes = _panels("Final loss by size", len(panels))
    for axis, (name, value) in zip(axes, panels.items(), strict=True):
        for method, members in _by(groups, "method").items():
            sizes = [group.cells[0].num_base for group in members]
            _line(axis, method, sizes, members, value)
        axis.set(xscale="log", xlabel="parameters of the base", ylabel=f"{name} (nats)")
        _name_sizes(axis, groups)
    _method_legend(figure, axes[0])
    return png(figure)


def loss_over_steps(comparison: Comparison) -> bytes:
    """Training loss over steps, a panel for each model: running mean, then mean over seeds."""
    models = _by(comparison.groups, "model")
    figure, axes = _panels("Training loss, running mean over a tenth of the run", len(models))
    for axis, members in zip(axes, models.values(), strict=True):
        for group in members:
            steps, losses = mean_curve(group)
            axis.plot(
                steps, losses, color=STYLES[group.method][0], linewidth=1.5, label=group.method
            )
        axis.set(title=_model_name(members), xlabel="optimizer step")
    axes[0].set_ylabel("loss (nats)")
    _method_legend(figure, axes[0])
    return png(figure)


def resources(comparison: Comparison) -> bytes:
    """Trainable share, time and peak memory of each method, a marker for each model."""
    panels: dict[str, Callable[[Result], float]] = {
        "trainable share of parameters (%)": lambda cell: 100 * cell.trained_share,
        "training time (s)": lambda cell: cell.train_seconds,
        f"{comparison.memory_name} (GiB)": lambda cell: cell.peak_gib,
    }
    figure, axes = _panels("Trainable share, time and peak memory", len(panels))
    groups, methods = comparison.groups, comparison.methods
    for axis, (name, value) in zip(axes, panels.items(), strict=True):
        for place, members in enumerate(_by(groups, "model").values()):
            for group in members:
                colour, marker = STYLES[group.method]
                axis.scatter(
                    group.mean(value), methods.index(group.method), _area(place), color=colour,
                    marker=marker, alpha=0.75, edgecolors="white", linewidths=0.5,
                )  # fmt: skip
        axis.set(xlabel=name, yticks=range(len(methods)))
        axis.set_yticklabels(methods if axis is axes[0] else [])
        axis.set_ylim(len(methods) - 0.5, -0.5)
    axes[0].set_xscale("log")
    axes[0].xaxis.set_major_formatter("{x:g}")
    _size_legend(figure, groups)
    return png(figure)


def metric_by_trained(comparison: Comparison) -> bytes:
    """The task's metric over trained parameters."""
    groups, metric = comparison.groups, comparison.metric
    figure, axes = _panels(f"Test {metric} against trainable parameters", 1)
    _points(axes[0], groups, lambda cell: cell.num_trained, _metric)
    axes[0].set(xscale="log", xlabel="trainable parameters", ylabel=f"{metric} on test")
    _both_legends(figure, groups)
    return png(figure)


def metric_by_loss(comparison: Comparison) -> bytes:
    """The task's metric over loss, a point for each cell, with their rank correlation."""
    groups, metric, loss_name = comparison.groups, comparison.metric, comparison.loss_name
    note = "".join(
        f"\nSpearman {with_interval(found.rho, found.interval)}"
        for found in comparison.relations[:1]
    )
    cells = [Group(g.method, g.model, (cell,)) for g in groups for cell in g.cells]
    figure, axes = _panels(f"Test {metric} against {loss_name}{note}", 1)
    _points(axes[0], cells, lambda cell: cell.loss, _metric)
    axes[0].set(xlabel=f"{loss_name} (nats)", ylabel=f"{metric} on test")
    _both_legends(figure, groups)
    return png(figure)


def cost_and_loss(comparison: Comparison) -> bytes:
    """Loss over training time and over peak memory, with the Pareto fronts."""
    groups, loss_name = comparison.groups, comparison.loss_name
    panels: dict[str, Callable[[Result], float]] = {
        "training time (s)": lambda cell: cell.train_seconds,
        f"{comparison.memory_name} (GiB)": lambda cell: cell.peak_gib,
    }
    figure, axes = _panels("Cost and performance, with the Pareto front", len(panels))
    for axis, (name, cost) in zip(axes, panels.items(), strict=True):
        front = front_of(groups, cost)
        x, y = [g.mean(cost) for g in front], [g.mean(_loss) for g in front]
        axis.step(x, y, where="post", color="0.6", linewidth=1.2, zorder=1)
        _points(axis, groups, cost, _loss)
        for group in front:  # cheaper and better than a point of the front, nothing stands
            axis.annotate(
                f"{group.method} {group.model}", (group.mean(cost), group.mean(_loss)),
                xytext=(-6, -5), textcoords="offset points", ha="right", va="top", fontsize=7,
            )  # fmt: skip
        axis.set(xlabel=name, ylabel=f"{loss_name} (nats)")
        _cost_scale(axis, [group.mean(cost) for group in groups])
    _both_legends(figure, groups)
    return png(figure)


def mean_curve(group: Group) -> tuple[list[int], list[float]]:
    """Steps that every seed logged and the mean of their running means."""
    curves = [dict(cell.curve) for cell in group.cells]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    losses = np.mean([[curve[step] for step in steps] for curve in curves], axis=0)
    width = max(1, round(_SMOOTHED * len(steps)))
    return steps, [float(losses[max(0, n - width + 1) : n + 1].mean()) for n in range(len(steps))]


def with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    """A correlation for people, e.g. +0.60 [+0.20, +0.81]."""
    if value is None:
        return "undefined"
    ends = "" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"
    return f"{value:+.2f}{ends}"


def parameters(number: int) -> str:
    """A count for people, e.g. 1.14 B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _loss(cell: Result) -> float:
    return cell.loss


def _metric(cell: Result) -> float:
    return float("nan") if cell.metric is None else cell.metric


def _panels(title: str, num: int) -> tuple["Figure", list["Axes"]]:
    figure, axes = panels(num, 7.0 if num == 1 else 4.2 * num, 5.2)
    figure.suptitle(title)
    return figure, axes


def _by(groups: Sequence[Group], key: str) -> dict[str, list[Group]]:
    parts: dict[str, list[Group]] = {}
    for group in groups:
        parts.setdefault(getattr(group, key), []).append(group)
    return parts


def _line(
    axis: "Axes",
    method: str,
    sizes: Sequence[int],
    members: Sequence[Group],
    value: Callable[[Result], float],
) -> None:
    means = [group.mean(value) for group in members]
    ends = np.array([group.ends(value) for group in members]).T
    errors = np.abs(ends - np.array(means))
    colour, marker = STYLES[method]
    axis.errorbar(
        sizes, means, yerr=errors, color=colour, marker=marker, markersize=6, linewidth=1.3,
        elinewidth=1, capsize=3, label=method,
    )  # fmt: skip


def _points(
    axis: "Axes",
    groups: Sequence[Group],
    x: Callable[[Result], float],
    y: Callable[[Result], float],
) -> None:
    places = {model: place for place, model in enumerate(_by(groups, "model"))}
    for group in groups:
        colour, marker = STYLES[group.method]
        axis.scatter(
            group.mean(x), group.mean(y), _area(places[group.model]), color=colour, marker=marker,
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


def _area(place: int) -> int:
    return _AREA + _MORE_AREA * place


def _model_name(members: Sequence[Group]) -> str:
    return f"{members[0].model} ({parameters(members[0].cells[0].num_base)})"


def _name_sizes(axis: "Axes", groups: Sequence[Group]) -> None:
    """Ticks where the models are, and nowhere else."""
    sizes = {members[0].cells[0].num_base: members for members in _by(groups, "model").values()}
    axis.set_xticks(list(sizes), [_model_name(members) for members in sizes.values()], fontsize=8)
    axis.set_xticks([], minor=True)


def _method_legend(figure: "Figure", axis: "Axes") -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)


def _size_legend(figure: "Figure", groups: Sequence[Group]) -> None:
    from matplotlib.lines import Line2D

    handles = _size_handles(groups, Line2D)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)


def _both_legends(figure: "Figure", groups: Sequence[Group]) -> None:
    from matplotlib.lines import Line2D

    methods = [
        Line2D([], [], linestyle="", color=STYLES[m][0], marker=STYLES[m][1], label=m)
        for m in _by(groups, "method")
    ]
    handles = [*methods, *_size_handles(groups, Line2D)]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8)


def _size_handles(groups: Sequence[Group], line: type) -> list[object]:
    return [
        line(
            [], [], linestyle="", color="0.5", marker="o", markersize=_area(place) ** 0.5,
            label=_model_name(members),
        )
        for place, members in enumerate(_by(groups, "model").values())
    ]  # fmt: skip
