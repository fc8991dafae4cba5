"""Charts as pictures in SVG, by matplotlib: text stays text, nothing is fetched, equal numbers give equal bytes."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labelloop.base.sequences import flat

GRID, AXIS, TEXT = "#e4e8ec", "#7b8794", "#3e4c59"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "labelloop", "font.size": 9.5,
    "font.sans-serif": ["Segoe UI", "Roboto", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.edgecolor": AXIS,
    "axes.labelcolor": TEXT, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlecolor": TEXT, "axes.axisbelow": True, "axes.grid": True, "grid.color": GRID, "xtick.color": TEXT,
    "ytick.color": TEXT, "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False,
    "legend.labelcolor": TEXT, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
}  # fmt: skip
PIXEL = 1 / 96
"""Inches of a pixel of a page."""
POINTS = 400
"""Curves with more points are thinned to about so many."""
MANY = 3000
"""More dots than these are drawn as pixels: a page of 1,000 test cases would grow by 10 MB."""
FLAT = 1e-3
"""Least height of a scale: the noise of a flat curve is not to fill it."""


@dataclass(frozen=True)
class Line:
    """A curve: its name (empty: not in the legend), color and points; points that are not finite leave a gap."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """A picture as data URI, and what it shows in words."""

    src: str
    words: str


def curves(lines: Sequence[Line], label: str, size: tuple[int, int] = (440, 220), axis: str = "epoch") -> Chart | None:
    """Draw curves over ``axis`` with ``label`` (quantity and unit) as heading; None without a finite point."""
    shown = [line for line in lines if any(map(math.isfinite, line.y))]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "y"}):
        axes = _axes(size)
        for line in shown:
            stride = max(1, len(line.x) // POINTS)
            kept = sorted({*range(0, len(line.x), stride), len(line.x) - 1})
            dot = "o" if sum(map(math.isfinite, line.y)) == 1 else ""
            x, y = [line.x[i] for i in kept], [line.y[i] for i in kept]
            axes.plot(x, y, color=line.color, label=line.name or "_", marker=dot, markersize=5)
        low, high = axes.get_ylim()
        if high - low < FLAT:
            axes.set_ylim((low + high - FLAT) / 2, (low + high + FLAT) / 2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel(axis)
        axes.set_title(label)
        named = sum(bool(line.name) for line in shown)
        if named:
            axes.legend(loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=named, borderaxespad=0, handlelength=1.2)
        return _chart(axes, f"{label} by {axis}")


def strips(rows: Sequence[tuple[str, str, Mapping[str, Mapping[str, float]]]], label: str, unit: str) -> Chart | None:
    """Draw one row a class with a dot for each case and a tick at the median, one lane for each model.

    Args:
        rows: (name, color, {model: {case: value}}); the last model is drawn in ``color``, the others in gray.
        label: heading.
        unit: unit of the values.
    """
    lanes = flat([(number, lane) for lane in range(len(models))] for number, (_, _, models) in enumerate(rows))
    dots = sum(len(cases) for cases in flat(models.values() for _, _, models in rows))
    if not dots:
        return None
    high = max(len(models) for _, _, models in rows)
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        axes = _axes((460, 60 + len(rows) * (13 * high + 10)))
        for row, lane in lanes:
            _, color, models = rows[row]
            values = sorted(list(models.values())[lane].values())
            y = row + (lane - (high - 1) / 2) * 0.56 / high
            shade = color if lane == len(models) - 1 else AXIS
            axes.scatter(values, [y] * len(values), s=26, color=shade, alpha=0.55, linewidths=0, rasterized=dots > MANY)
            if values:
                axes.plot([np.median(values)] * 2, [y - 0.45 / high, y + 0.45 / high], color="#1f2933", linewidth=1.8)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_title(f"{label}, {unit}", x=0)
        return _chart(axes, label)


def _axes(size: tuple[int, int]) -> Axes:
    figure = Figure((size[0] * PIXEL, size[1] * PIXEL), layout="constrained")
    return figure.add_subplot()


def _chart(axes: Axes, words: str) -> Chart:
    buffer = io.BytesIO()
    FigureCanvasSVG(axes.get_figure(root=True)).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return Chart(f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}", words)
