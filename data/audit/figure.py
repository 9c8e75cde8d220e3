"""The lengths of a dataset as a PNG: a panel for each split, with both classes."""

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from data.audit.facts import AuditFacts, SplitPopulation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: distinct under every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DPI = 120
WIDTH_INCHES = 7.0
PANEL_INCHES = 1.9


def lengths_png(facts: AuditFacts) -> bytes:
    """Draw the share of each class by length; the same facts give the same bytes.

    Of many classes the most frequent ones of the first split are drawn.
    """
    from matplotlib.figure import Figure

    drawn = [split for split in facts.splits if split.histogram]
    figure = Figure(
        figsize=(WIDTH_INCHES, 1.0 + PANEL_INCHES * len(drawn)), dpi=DPI, layout="constrained"
    )
    panels = np.atleast_1d(figure.subplots(len(drawn), 1, sharex=True, sharey=True))
    counts = facts.splits[0].counts
    often = sorted(counts, key=lambda name: -counts[name])[: len(COLOURS)]
    colours = dict(zip([n for n in facts.classes if n in often], COLOURS, strict=False))
    for axes, split in zip(panels, drawn, strict=True):
        _panel(axes, split, colours, facts)
    panels[-1].set_xlabel("tokens of a function")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9)
    return png_bytes(figure, "Lengths")


def png_bytes(figure: "Figure", title: str) -> bytes:
    """A figure as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # None, or the library writes its version into the file.
    metadata: dict[str, Any] = {"Software": None, "Title": title}
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata=metadata)
    return buffer.getvalue()


def add_style(axes: "Axes") -> None:
    """A grid behind what is drawn, and no box around it."""
    axes.grid(visible=True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(name: str) -> str:
    """A name that matplotlib writes as it is: without formulas, and never left out."""
    return " " * name.startswith("_") + name.replace("$", r"\$")


def _panel(
    axes: "Axes", split: SplitPopulation, colours: Mapping[str, str], facts: AuditFacts
) -> None:
    from matplotlib.ticker import LogLocator

    edges, seq_length = facts.length_edges, facts.seq_length
    for name, colour in colours.items():
        counts = np.array(split.histogram[name], dtype=np.float64)
        share = counts / max(counts.sum(), 1.0)
        axes.stairs(share, edges, color=colour, fill=True, alpha=0.18)
        axes.stairs(share, edges, color=colour, linewidth=1.6, label=_plain(name))
    if seq_length is not None:
        axes.axvline(
            seq_length,
            color="0.25",
            linestyle="--",
            linewidth=1.2,
            label=f"seq_length {seq_length}",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=100))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    counted = [f"{split.counts[name]:,} {name}" for name in facts.informative if name in colours]
    more = ", ..." if len(counted) < len(facts.informative) else ""
    title = f"{split.name}: {split.num_functions:,} functions, {', '.join(counted)}{more}"
    axes.set_title(_plain(title), fontsize=9, loc="left")
    axes.set_ylabel("share of class", fontsize=8)
    axes.tick_params(labelsize=8)
    add_style(axes)
