"""The chain of a recipe as a picture: boxes in rows, each below those that it is made from."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

KINDS = {
    "truth": ("#f1f3f5", "#61707f"),
    "model": ("#e3f1f2", "#1b7f86"),
    "labels": ("#fdf3e1", "#a86f0f"),
    "predictions": ("#f1f3f5", "#61707f"),
}
"""Fill and edge of a box."""
INK, LINK = "#1f2933", "#7b8794"
HIGH, GAP_X, GAP_Y, PER_LETTER = 34, 18, 34, 7.6
"""Height of a box, room between boxes and between rows, width of a letter; in pixels."""
RECTANGLE = Markup('<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}" rx="{}" fill="{}" stroke="{}"/>')
WORDS = Markup('<text x="{:.1f}" y="{}" text-anchor="middle" fill="{}">{}</text>')
ARROW = Markup('<path d="{}" fill="none" stroke="{}" stroke-width="1.4"/><path d="{}" fill="{}"/>')


def draw_chain(boxes: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Draw the boxes of :func:`labelloop.run.chain.graph` as SVG; None without any."""
    if not boxes:
        return None
    place, width, height = _layout(boxes)
    parts = []
    for box in boxes:
        parts += [_arrow(place[parent], place[box["name"]]) for parent in box["parents"]]
    for box in boxes:
        x, y, wide = place[box["name"]]
        fill, edge = KINDS[box["kind"]]
        round_by = HIGH / 2 if box["kind"] == "model" else 6
        parts.append(RECTANGLE.format(x, y, wide, HIGH, round_by, fill, edge))
        parts.append(WORDS.format(x + wide / 2, y + 22, INK, box["title"]))
    head = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" style="width:{:.0f}px" role="img" font-size="13" aria-label="{}">')
    title = "the chain of label sets and models"
    return head.format(width, height, width, title) + Markup("").join(parts) + Markup("</svg>")


def _layout(boxes: Sequence[Mapping[str, Any]]) -> tuple[dict[str, tuple[float, int, float]], float, int]:
    """Return left, top and width of each box, and width and height of all; each box comes after its parents."""
    row: dict[str, int] = {}
    for box in boxes:
        row[box["name"]] = max((row[parent] + 1 for parent in box["parents"]), default=0)
    widths = {box["name"]: PER_LETTER * len(box["title"]) + 28 for box in boxes}
    rows = [list(names) for _, names in groupby(sorted(row, key=row.__getitem__), key=row.__getitem__)]
    lengths = [sum(widths[name] + GAP_X for name in names) - GAP_X for names in rows]
    whole = max(lengths) + 2
    place = {}
    for number, (names, length) in enumerate(zip(rows, lengths, strict=True)):
        x = (whole - length) / 2
        for name in names:
            place[name] = (x, 1 + number * (HIGH + GAP_Y), widths[name])
            x += widths[name] + GAP_X
    return place, whole, len(rows) * (HIGH + GAP_Y) - GAP_Y + 2


def _arrow(parent: tuple[float, int, float], child: tuple[float, int, float]) -> Markup:
    """Draw a curve from the lower edge of a box to the upper edge of one below it."""
    x0, y0, x1, y1 = parent[0] + parent[2] / 2, parent[1] + HIGH, child[0] + child[2] / 2, child[1]
    bend = max(GAP_Y / 2, (y1 - y0) / 2)
    line = f"M{x0:.1f},{y0} C{x0:.1f},{y0 + bend:.1f} {x1:.1f},{y1 - bend:.1f} {x1:.1f},{y1 - 7}"
    tip = f"M{x1 - 4:.1f},{y1 - 8} L{x1:.1f},{y1 - 1} L{x1 + 4:.1f},{y1 - 8} Z"
    return ARROW.format(line, LINK, tip, LINK)
