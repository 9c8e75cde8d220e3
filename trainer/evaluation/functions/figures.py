"""ROC, precision-recall and loss curves as PNG bytes, the model against its baselines.

Figures are built on `matplotlib.figure.Figure` with the Agg canvas, so no global state of pyplot is
touched.

Shapes: N functions.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.evaluation.resampling import FloatArray, IntArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: distinct under every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DPI = 120
_REFERENCE: dict[str, Any] = {"color": "0.55", "linestyle": "--", "linewidth": 1}
SIZE_INCHES = (6.0, 5.0)


def roc_png(
    title: str, labels_N: IntArray, curves: Mapping[str, FloatArray], point: tuple[float, float]
) -> bytes:
    """Draw true against false positive rate of each predictor, with the diagonal of chance.

    Args:
        title: Above the axes.
        labels_N: 0 or 1; with one class the figure says that no curve is defined.
        curves: Legend text -> scores_N, drawn in order; the first is the model.
        point: (false positive rate, recall) of the model at its threshold.

    Returns:
        A PNG of 720 x 600 pixels; the same input gives the same bytes.
    """
    from sklearn.metrics import roc_curve

    figure, axes = _axes(title, "false positive rate", "true positive rate (recall)")
    if 0 < labels_N.sum() < len(labels_N):
        axes.plot([0, 1], [0, 1], **_REFERENCE, label="chance (AUC 0.500)")
        for colour, (name, scores_N) in zip(COLOURS, curves.items(), strict=False):
            x, y, _ = roc_curve(labels_N, scores_N)
            axes.plot(x, y, color=colour, linewidth=1.8, label=name)
    return _finished(figure, axes, point)


def pr_png(
    title: str, labels_N: IntArray, curves: Mapping[str, FloatArray], point: tuple[float, float]
) -> bytes:
    """Draw precision against recall of each predictor, with the share of positives as the prior's
    line.

    The steps are not interpolated: the area under them is the average precision.

    Args:
        title: Above the axes.
        labels_N: 0 or 1; with one class the figure says that no curve is defined.
        curves: Legend text -> scores_N, drawn in order; the first is the model.
        point: (recall, precision) of the model at its threshold.

    Returns:
        A PNG of 720 x 600 pixels; the same input gives the same bytes.
    """
    from sklearn.metrics import precision_recall_curve

    figure, axes = _axes(title, "recall", "precision")
    if 0 < labels_N.sum() < len(labels_N):
        share = float(labels_N.mean())
        axes.axhline(share, **_REFERENCE, label=f"prior (AP {share:.3f})")
        for colour, (name, scores_N) in zip(COLOURS, curves.items(), strict=False):
            y, x, _ = precision_recall_curve(labels_N, scores_N)
            # Recall falls along the arrays: "steps-post" draws each precision back to its recall.
            axes.plot(x, y, color=colour, linewidth=1.8, drawstyle="steps-post", label=name)
    return _finished(figure, axes, point)


def loss_png(
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    lines: Mapping[str, float],
) -> bytes:
    """Draw losses over steps, and levels to compare them with.

    Args:
        title: Above the axes.
        curves: Legend text -> (step, loss in nats) in order.
        lines: Legend text -> loss that does not change.

    Returns:
        A PNG of 720 x 600 pixels; the same input gives the same bytes.
    """
    figure, axes = _axes(title, "optimizer step", "loss (nats a token)", shares=False)
    for name, level in lines.items():
        axes.axhline(level, **_REFERENCE, label=f"{name} ({level:.3f})")
    for colour, (name, points) in zip(COLOURS, curves.items(), strict=False):
        steps, losses = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, losses, color=colour, linewidth=1.4, marker=".", label=name)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return png(figure)


def varies(scores_N: FloatArray) -> bool:
    """Whether a predictor ranks at all; a constant one only repeats the reference line."""
    return bool(np.ptp(scores_N) > 0)


def _axes(
    title: str, x_label: str, y_label: str, *, shares: bool = True
) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    if shares:
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(visible=True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finished(figure: "Figure", axes: "Axes", point: tuple[float, float]) -> bytes:
    """Mark the model's point and add the legend; without curves, say why there are none."""
    if not axes.lines:
        axes.text(0.5, 0.5, "undefined: one class only", ha="center", va="center", fontsize=12)
        return png(figure)
    axes.plot(
        *point,
        "o",
        color=COLOURS[0],
        markersize=7,
        markeredgecolor="white",
        label="model at its threshold",
    )
    # Below the axes, where no curve can lie under it.
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return png(figure)


def png(figure: "Figure") -> bytes:
    """A figure as a PNG; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # The library writes its version into the file by default.
    metadata: dict[str, Any] = {"Software": None, "Title": figure.axes[0].get_title()}
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata=metadata)
    return buffer.getvalue()
