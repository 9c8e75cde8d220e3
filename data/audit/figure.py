"""The lengths of a dataset as a picture, a panel for each split; how every picture is written."""

import re
from collections.abc import Mapping
from io import StringIO
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np

from data.audit.facts import AuditFacts, SplitPopulation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: distinct under every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH_INCHES = 4.6
_PIXELS = 96 / 72  # of a point
_MOST_SHRUNK = 450  # points; wider pictures are scrolled, or their letters would be too small
_STYLE = (
    ".chart{color:#222;fill:currentColor}.chart *{stroke-linejoin:round}"
    "@media(prefers-color-scheme:dark){.chart{color:#ddd}}"
)
PANEL_INCHES = 1.9


def lengths_svg(facts: AuditFacts) -> bytes:
    """Draw the share of each class by length; the same facts give the same bytes.

    Of many classes the most frequent ones of the first split are drawn.
    """
    from matplotlib.figure import Figure

    drawn = [split for split in facts.splits if split.histogram]
    size = WIDTH_INCHES, 1.0 + PANEL_INCHES * len(drawn)
    figure = Figure(figsize=size, layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(drawn), 1, sharex=True, sharey=True))
    counts = facts.splits[0].counts
    often = sorted(counts, key=lambda name: -counts[name])[: len(COLOURS)]
    colours = dict(zip([n for n in facts.classes if n in often], COLOURS, strict=False))
    for axes, split in zip(panels, drawn, strict=True):
        _panel(axes, split, colours, facts)
    panels[-1].set_xlabel("tokens of a function")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9)
    return svg(figure, "Lengths")


def svg(figure: "Figure", title: str = "") -> bytes:
    """A figure as an SVG that can stand in a page with others, and makes no request.

    It has no ground, its black is the colour of the text around it, and its letters are text, so
    that it fits light and dark pages. The same figure gives the same bytes.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text():  # a name; numbers at an axis have none yet
            text.set_parse_math(False)
    for legend in figure.legends:
        legend.set_frame_on(False)
    figure.set_facecolor("none")
    for axes in figure.axes:
        axes.set_facecolor("none")
    title = title or figure.get_suptitle() or figure.axes[0].get_title()
    buffer = StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) | {"Title": title}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    _, _, drawn = buffer.getvalue().partition("</style>\n </defs>\n")
    drawn = drawn.replace("#000000", "currentColor")
    drawn = re.sub(r' id="[\w.]+_\d+"', "", drawn)  # numbered alike in every picture
    drawn = re.sub(r"font-family: [^;\"]+", "font-family: sans-serif", drawn)
    width, height = (72 * inches for inches in figure.get_size_inches())
    size = f'width="{width * _PIXELS:.0f}" height="{height * _PIXELS:.0f}"'
    kind = "chart" if width <= _MOST_SHRUNK else "chart wide"
    head = f'<svg class="{kind}" role="img" {size} viewBox="0 0 {width:.4g} {height:.4g}"'
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    named = f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"{head} {spaces}>{named}\n{drawn}".encode()


def add_style(axes: "Axes") -> None:
    """A grid behind what is drawn, and no box around it."""
    axes.grid(visible=True, color="black", alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _panel(
    axes: "Axes", split: SplitPopulation, colours: Mapping[str, str], facts: AuditFacts
) -> None:
    from matplotlib.ticker import LogLocator

    edges, seq_length = facts.length_edges, facts.seq_length
    for name, colour in colours.items():
        counts = np.array(split.histogram[name], dtype=np.float64)
        share = counts / max(counts.sum(), 1.0)
        axes.stairs(share, edges, color=colour, fill=True, alpha=0.18)
        axes.stairs(
            share, edges, color=colour, linewidth=1.6, label=" " * name.startswith("_") + name
        )  # or it is left out
    if seq_length is not None:
        axes.axvline(
            seq_length,
            color="0.55",
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
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_ylabel("share of class", fontsize=8)
    axes.tick_params(labelsize=8)
    add_style(axes)
