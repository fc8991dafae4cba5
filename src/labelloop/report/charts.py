"""Charts as inline SVG: text stays text, nothing is fetched, equal numbers give equal bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

GRID, AXIS, TEXT = "#e4e8ec", "#9aa5b1", "#52606d"
POINTS = 400
"""Curves with more points are thinned to about so many."""


@dataclass(frozen=True)
class Line:
    """A curve: its name, color and points; points that are not finite leave a gap."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]


def curves(lines: Sequence[Line], label: str, size: tuple[int, int] = (440, 204), axis: str = "epoch") -> Markup:
    """Draw curves over ``axis`` (whole numbers), with a legend above and ``label`` (quantity and unit) as heading."""
    width, height = size
    left, right, top, bottom = 46, 16, 30, 40
    shown = [line for line in lines if any(map(math.isfinite, line.y))]
    values = [v for line in shown for v in line.y if math.isfinite(v)]
    if not values:
        return Markup("")
    ticks = nice_ticks(min(values), max(values))
    last = max(max(line.x) for line in shown)
    first = min(min(line.x) for line in shown)
    to_x = _scale(first, last, left, width - right)
    to_y = _scale(ticks[0], ticks[-1], height - bottom, top)
    parts = [_text(0, 12, label, weight=600)]
    for tick in ticks:
        parts.append(_rule(left, to_y(tick), width - right, to_y(tick), GRID))
        parts.append(_text(left - 6, to_y(tick) + 4, f"{tick:g}", "end"))
    for tick in [t for t in nice_ticks(first, last, 5) if first <= t <= last and t == round(t)]:
        parts.append(_text(to_x(tick), height - bottom + 18, f"{tick:g}", "middle"))
    parts.append(_text((left + width - right) / 2, height - 6, axis, "middle"))
    at = width - right
    for line in reversed([line for line in shown if line.name]):
        parts.append(_text(at, 12, line.name, "end", line.color, 600))
        at -= 8 * len(line.name) + 14
    for line in shown:
        parts.append(_path(line, to_x, to_y))
    return _svg(width, height, parts, f"{label} by {axis}")


def strips(rows: Sequence[tuple[str, str, Mapping[str, Mapping[str, float]]]], label: str, unit: str) -> Markup:
    """Draw one row a class with a dot for each case and a tick at the median, one lane for each model.

    Args:
        rows: (name, color, {model: {case: value}}); the last model is drawn in ``color``, the others in gray.
        label: heading.
        unit: unit of the values, said at the axis and in the tooltips.
    """
    values = [v for _, _, models in rows for cases in models.values() for v in cases.values()]
    if not values:
        return Markup("")
    lanes = max(len(models) for _, _, models in rows)
    lane, pad, left, right, top, width = 13, 10, 150, 18, 30, 760
    step = lanes * lane + pad
    height = top + step * len(rows) + 30
    ticks = nice_ticks(min(values), max(values), 6)
    to_x = _scale(ticks[0], ticks[-1], left, width - right)
    parts = [_text(0, 12, f"{label}, {unit}", weight=600)]
    for tick in ticks:
        parts.append(_rule(to_x(tick), top - 8, to_x(tick), height - 26, GRID))
        parts.append(_text(to_x(tick), height - 8, f"{tick:g}", "middle"))
    for number, (name, color, models) in enumerate(rows):
        base = top + number * step
        parts.append(_text(left - 12, base + lanes * lane / 2 + 4, name, "end", "#1f2933"))
        for index, (model, cases) in enumerate(models.items()):
            shade = color if index == len(models) - 1 else AXIS
            parts += _lane(model, cases, shade, to_x, base + (index + 0.5) * lane, unit)
    return _svg(width, height, parts, label)


def _lane(model: str, cases: Mapping[str, float], color: str, to_x, y: float, unit: str) -> list[Markup]:
    """Draw the dots of one model in one class; tooltips name the case."""
    parts = []
    for case, value in sorted(cases.items()):
        title = f"{model}, {case}: {value:.1f} {unit}"
        parts.append(
            Markup(
                '<circle cx="{:.1f}" cy="{:.1f}" r="4" fill="{}" fill-opacity=".55"><title>{}</title></circle>'
            ).format(to_x(value), y, color, title)
        )
    if cases:
        at = to_x(float(np.median(list(cases.values()))))
        parts.append(_rule(at, y - 6, at, y + 6, "#1f2933", 2))
    return parts


@dataclass(frozen=True)
class Node:
    """A box of a flow chart, with the boxes it is made from."""

    label: str
    kind: str
    parents: tuple[str, ...]


KINDS = {"model": ("#e3f1f2", "#1b7f86"), "labels": ("#fdf3e1", "#c98a1b"), "data": ("#f1f3f5", "#7b8794")}


def flow(nodes: Mapping[str, Node]) -> Markup:
    """Draw boxes in columns by their distance from the start, joined by curves; nodes must not form a circle."""
    depth: dict[str, int] = {}
    for _ in nodes:
        for name, node in nodes.items():
            depth[name] = max((depth.get(p, 0) + 1 for p in node.parents if p in nodes), default=0)
    columns = [[n for n in nodes if depth[n] == level] for level in range(max(depth.values(), default=-1) + 1)]
    longest = max((len(node.label) for node in nodes.values()), default=0)
    box, high, gap, row = max(96, 7.4 * longest + 26), 38, 46, 56
    height = max(map(len, columns), default=0) * row + 8
    place = {}
    for level, column in enumerate(columns):
        start = (height - len(column) * row) / 2
        for index, name in enumerate(column):
            place[name] = (1 + level * (box + gap), start + index * row + (row - high) / 2)
    parts = []
    for name, node in nodes.items():
        for parent in (p for p in node.parents if p in nodes):
            (x0, y0), (x1, y1) = place[parent], place[name]
            parts.append(_link(x0 + box, y0 + high / 2, x1, y1 + high / 2))
    for name, node in nodes.items():
        parts.append(_box(place[name], box, high, node))
    width = len(columns) * (box + gap) - gap + 2
    return _svg(width, height, parts, "the chain of label sets and models", natural=True)


def _box(place: tuple[float, float], width: float, height: float, node: Node) -> Markup:
    x, y = place
    fill, edge = KINDS.get(node.kind, KINDS["data"])
    shape = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{}" fill="{}" stroke="{}"/>').format(
        x, y, width, height, height / 2 if node.kind == "model" else 6, fill, edge
    )
    return shape + _text(x + width / 2, y + height / 2 + 4.5, node.label, "middle", "#1f2933")


def _link(x0: float, y0: float, x1: float, y1: float) -> Markup:
    bend = max(20.0, (x1 - x0) / 2)
    line = f"M{x0:.1f},{y0:.1f} C{x0 + bend:.1f},{y0:.1f} {x1 - bend:.1f},{y1:.1f} {x1 - 7:.1f},{y1:.1f}"
    tip = f"M{x1 - 8:.1f},{y1 - 4:.1f} L{x1 - 1:.1f},{y1:.1f} L{x1 - 8:.1f},{y1 + 4:.1f} Z"
    return Markup('<path d="{}" fill="none" stroke="{}" stroke-width="1.4"/><path d="{}" fill="{}"/>').format(
        line, AXIS, tip, AXIS
    )


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers that enclose [low, high] in about ``count`` steps of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-9, abs(high) * 1e-6)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = last if last > first else first + 1
    return [round(i * step, 10) for i in range(first, last + 1)]


def _scale(low: float, high: float, start: float, stop: float):
    factor = (stop - start) / (high - low) if high > low else 0.0
    return lambda value: start + (value - low) * factor


def _path(line: Line, to_x, to_y) -> Markup:
    stride = max(1, len(line.x) // POINTS)
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    kept = points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])
    if len(kept) == 1:
        x, y = kept[0]
        return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>').format(to_x(x), to_y(y), line.color)
    text = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in kept)
    return Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="1.8" stroke-linejoin="round"/>').format(
        text, line.color
    )


def _rule(x0: float, y0: float, x1: float, y1: float, color: str, width: float = 1) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}"/>').format(
        x0, y0, x1, y1, color, width
    )


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = TEXT, weight: int = 400) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" fill="{}" font-weight="{}">{}</text>').format(
        x, y, anchor, color, weight, text
    )


def _svg(width: float, height: float, parts: Sequence[Markup], title: str, natural: bool = False) -> Markup:
    style = f' style="width:{width:.0f}px"' if natural else ""
    head = (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}"{style} role="img" aria-label="{escape(title)}" font-size="12.5">'
    )
    return Markup(head) + Markup("").join(parts) + Markup("</svg>")
