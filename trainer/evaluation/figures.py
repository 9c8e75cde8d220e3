"""Pictures as SVG: curves, losses and differences; the axes and colours of every picture.

Pictures are built on `matplotlib.figure.Figure` with its own canvas, so no global state of pyplot
is touched.

Shapes: N functions.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle, product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from data.audit.figure import COLOURS, add_style, svg
from trainer.evaluation.resampling import FloatArray, IntArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REFERENCE: dict[str, Any] = {"color": "0.55", "linestyle": "--", "linewidth": 1}
_MOST_LETTERS = 24  # of a class beside a picture
_SHARE = (-0.02, 1.02)  # limits of an axis from 0 to 1
_WIDTH, _HEIGHT = 4.3, 4.3  # inches; wider ones cannot be read on a phone
_MOST_MARKED = 100  # points of a curve: each is an element of the picture
_MOST_BLUE = 0.75  # of a cell: above it, black letters and white ones are hard to read


def panels(
    num: int, width: float, height: float, columns: int | None = None
) -> tuple["Figure", list["Axes"]]:
    """A figure with panels side by side, or in rows of some columns; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    columns = columns or num
    grid = figure.add_gridspec(-(-num // columns), columns)
    axes = [figure.add_subplot(grid[divmod(n, columns)]) for n in range(num)]
    for axis in axes:
        add_style(axis)
    return figure, axes


def roc_svg(
    title: str, labels_N: IntArray, curves: Mapping[str, FloatArray], point: tuple[float, float]
) -> bytes:
    """Draw true against false positive rate of each predictor, with the diagonal of chance.

    Args:
        labels_N: 0 or 1; with one class the picture says that no curve is defined.
        curves: Legend text -> scores_N, drawn in order; the first is the model.
        point: (false positive rate, recall) of the model at its threshold.
    """
    from sklearn.metrics import roc_curve

    figure, [axes] = panels(1, _WIDTH, _HEIGHT)
    axes.set(title=title, xlabel="false positive rate", ylabel="true positive rate (recall)")
    if 0 < labels_N.sum() < len(labels_N):
        axes.plot([0, 1], [0, 1], **_REFERENCE, label="chance (AUC 0.500)")
        for colour, (name, scores_N) in zip(COLOURS, curves.items(), strict=False):
            x, y, _ = roc_curve(labels_N, scores_N)
            axes.plot(x, y, color=colour, linewidth=1.8, label=name)
    return _ranking_svg(figure, axes, point)


def pr_svg(
    title: str, labels_N: IntArray, curves: Mapping[str, FloatArray], point: tuple[float, float]
) -> bytes:
    """Draw precision against recall, with the share of positives as the prior's line.

    The steps are not interpolated: the area under them is the average precision. Arguments are as
    in `roc_svg`, but `point` is (recall, precision).
    """
    from sklearn.metrics import precision_recall_curve

    figure, [axes] = panels(1, _WIDTH, _HEIGHT)
    axes.set(title=title, xlabel="recall", ylabel="precision")
    if 0 < labels_N.sum() < len(labels_N):
        share = float(labels_N.mean())
        axes.axhline(share, **_REFERENCE, label=f"prior (AP {share:.3f})")
        for colour, (name, scores_N) in zip(COLOURS, curves.items(), strict=False):
            y, x, _ = precision_recall_curve(labels_N, scores_N)
            # Recall falls along the arrays: "steps-post" draws each precision back to its recall.
            axes.plot(x, y, color=colour, linewidth=1.8, drawstyle="steps-post", label=name)
    return _ranking_svg(figure, axes, point)


def reliability_svg(title: str, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Draw the share of positives against the mean score of each tenth, with the ideal line.

    Args:
        curves: Legend text -> tenths with `num`, `score` and `share`.
    """
    figure, [axes] = panels(1, _WIDTH, _HEIGHT)
    axes.set(
        title=title, xlabel="mean score", ylabel="share of positives", xlim=_SHARE, ylim=_SHARE
    )
    axes.plot([0, 1], [0, 1], **_REFERENCE, label="score = share")
    for colour, (name, tenths) in zip(COLOURS, curves.items(), strict=False):
        x, y = ([tenth[key] for tenth in tenths] for key in ("score", "share"))
        axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=4, label=name)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return svg(figure)


def confusion_svg(title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> bytes:
    """Draw a confusion matrix: shares of each label's row as shades, counts as text."""
    from matplotlib.patches import Rectangle

    size = max(_WIDTH, 0.45 * len(names) + 2.5)
    figure, [axes] = panels(1, size, size)
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.grid(visible=False)
    places = range(len(names))
    short = [name if len(name) <= _MOST_LETTERS else f"{name[:_MOST_LETTERS]}…" for name in names]
    axes.set_xticks(places, short, rotation=45, ha="right", fontsize=9)
    axes.set_yticks(places, short, fontsize=9)
    ends = (-0.5, len(names) - 0.5)
    axes.set(title=title, xlabel="predicted", ylabel="label", xlim=ends, ylim=ends[::-1], aspect=1)
    for row, column in product(places, places):
        if counts[row][column]:
            cell = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=COLOURS[0], linewidth=0)
            cell.set_alpha(_MOST_BLUE * shares[row][column])
            axes.add_patch(cell)
            shown = str(counts[row][column])
            axes.text(column, row, shown, ha="center", va="center", fontsize=9)
    return svg(figure)


def curves_svg(
    title: str,
    unit: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    lines: Mapping[str, float] = MappingProxyType({}),
) -> bytes:
    """Draw values over steps, and constant ones to compare them with."""
    figure, [axes] = panels(1, _WIDTH, _HEIGHT)
    axes.set(title=title, xlabel="optimizer step", ylabel=unit)
    for name, level in lines.items():
        axes.axhline(level, **_REFERENCE, label=f"{name} ({level:.3f})")
    for colour, (name, points) in zip(cycle(COLOURS), curves.items(), strict=False):
        steps, losses = zip(*points, strict=True) if points else ((), ())
        marker = "." if len(points) <= _MOST_MARKED else ""
        axes.plot(steps, losses, color=colour, linewidth=1.4, marker=marker, label=name)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return svg(figure)


def differences_svg(
    title: str, measures: Mapping[str, Sequence[tuple[str, float, Sequence[float] | None]]]
) -> bytes:
    """Draw differences with their intervals against 0, a panel for each measure.

    Args:
        measures: Heading -> (name, difference, interval), the first one on top.
    """
    num_rows = max(1, *map(len, measures.values()))
    height = (1.6 + 0.3 * num_rows) * -(-len(measures) // 2)
    figure, axes = panels(len(measures), _WIDTH, height, columns=min(2, len(measures)))
    figure.suptitle(title)
    for axis, (heading, points) in zip(axes, measures.items(), strict=True):
        axis.axvline(0.0, **_REFERENCE)
        for place, (_, value, interval) in enumerate(points):
            low, high = interval or (value, value)
            colour = COLOURS[place % len(COLOURS)]
            axis.plot([low, high], [place, place], color=colour, linewidth=1.8)
            axis.plot(value, place, "o", color=colour, markersize=6)
        axis.set(xlabel="difference", ylim=(num_rows - 0.5, -0.5))
        axis.set_title(heading, fontsize=10)
        axis.set_yticks(range(len(points)), [name for name, *_ in points])
    return svg(figure)


def _ranking_svg(figure: "Figure", axes: "Axes", point: tuple[float, float]) -> bytes:
    """Mark the model's point and add the legend; without curves, say why there are none."""
    axes.set(xlim=_SHARE, ylim=_SHARE)
    if not axes.lines:
        axes.text(0.5, 0.5, "undefined: one class only", ha="center", va="center", fontsize=12)
        return svg(figure)
    axes.plot(
        *point, "o", color=COLOURS[0], markersize=7, markeredgecolor="white",
        label="model at its threshold",
    )  # fmt: skip
    # Below the axes, where it hides no curve.
    figure.legend(loc="outside lower center", fontsize=9)
    return svg(figure)
