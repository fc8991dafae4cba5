"""Pictures of a case as a radiologist hangs it: the patient's right on the left, outlines in the class colors.

Axial slices show the front of the body at the top, coronal slices the head. Pixels are square in millimetres whatever
the voxels are: the image is resampled bicubically, outlines through signed distances, so that 5 mm slices give smooth
lines. Equal inputs give equal bytes; how a file stores its axes does not matter.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from labelloop.base.classes import BACKGROUND, IGNORED, ClassScheme
from labelloop.base.components import connected_components
from labelloop.base.sequences import flat
from labelloop.images.boxes import Box
from labelloop.images.volume import Volume, canonical

AXES = {"axial": 0, "coronal": 1}
CT_WINDOW = (-160.0, 240.0)
"""HU shown as black and white: the usual soft tissue window, level 40, width 400."""
MR_PERCENTILES = (1.0, 99.0)
MARGIN_MM = 60.0
"""What is shown around the labels; about the distance from the organs to the skin."""
SMOOTHING_VOXELS = 0.6
"""Standard deviation by which outlines are smoothed, in voxels of the finer direction."""
DPI = 100
GUTTER = 6
INK = "#101418"
NOTED = "#ffd166"
"""Color of what a picture is about: reasons, and the box around what they name."""
LEAST_FRAME = 9.0
"""Half of the smallest side of a box that is drawn, in pixels."""
SHADE = "#b8c0c8"
"""Color in which ignored voxels are hatched."""
HATCHED = "ignored"
"""What such voxels are called in a legend."""
CLASSES, HEIGHT = "labelloop classes", "labelloop height"
"""Text that the PNG of a case carries: the classes that are outlined, and its height without legend and note."""
QUALITY = 82
"""Of the WebP of a page, 0 to 100: a tenth of the PNG, and lines stay sharp."""
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@dataclass(frozen=True)
class Panel:
    """One slice to draw: gray values in [0, 1], label ids as outlines and as dashed outlines, pixels in mm."""

    view: str
    caption: str
    gray: np.ndarray
    solid: np.ndarray
    dashed: np.ndarray | None
    spacing: tuple[float, float]
    strong: frozenset[int] | None = None
    """Ids that are drawn strongly, all others faintly; None: all strongly."""
    framed: tuple[slice, slice] | None = None
    """Rows and columns around which a box is drawn."""

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width in mm."""
        rows, columns = self.gray.shape
        return rows * self.spacing[0], columns * self.spacing[1]


def case_picture(
    image: Volume,
    labels: Volume,
    scheme: ClassScheme,
    truth: Volume | None = None,
    window: tuple[float, float] | None = CT_WINDOW,
    *,
    views: Sequence[str] = ("axial", "coronal"),
    focus: Iterable[str] | None = None,
    beside: bool = False,
    faint_others: bool = False,
    box: Box | None = None,
    note: Sequence[str] = (),
    legend: bool = False,
    panel_width: int = 720,
) -> bytes:
    """Draw the most telling slices of a case; return a PNG.

    The slice of a view is the one with most of the ``focus`` classes (by default the set ``tumor`` of the scheme),
    in the labels and the truth together; without any, the one with most foreground, or the
    middle one of an empty label map. Slices are counted from the feet and from the back.

    Args:
        image: intensities [z, y, x], HU for CT.
        labels: label ids of ``scheme`` on the grid of ``image``, drawn as colored outlines; ignored voxels are hatched.
        scheme: names and colors.
        truth: reference label ids on the same grid, drawn as white dashed outlines, or left of the labels (``beside``).
        window: intensities shown as black and white; None for percentiles 1 and 99 (MR).
        views: ``axial`` or ``coronal``, from left to right.
        focus: classes that choose the slice.
        beside: draw the truth in a panel of its own.
        faint_others: draw classes that are not in ``focus`` as thin lines. The last view then shows the largest part
            that is detached from the ``focus`` classes, if there is one.
        box: voxels (z, y, x) of the canonical grid that are looked at: each view shows their middle, and a dashed
            box around them.
        note: lines written under the picture, wrapped where they are too long.
        legend: name the colors of the classes that are outlined.
        panel_width: width of a panel in pixels.

    Raises:
        ValueError: when shapes differ, or for a view that does not exist.
    """
    image, labels, truth = canonical(image), canonical(labels), None if truth is None else canonical(truth)
    shapes = [v.array.shape for v in (image, labels, truth) if v is not None]
    if len(set(shapes)) > 1:
        raise ValueError(f"image, labels and truth of one picture must share their grid; shapes (z, y, x): {shapes}")
    if unknown := set(views) - set(AXES):
        raise ValueError(f"no view {sorted(unknown)}; there are {sorted(AXES)}")
    focus = scheme.sets.get("tumor", ()) if focus is None else tuple(focus)
    ids = [scheme.ids[name] for name in focus]
    panels = _panels(image, labels, truth, ids, window, views, beside, faint_others, box)
    if faint_others:
        panels = [replace(panel, strong=frozenset(ids)) for panel in panels]
    picture = _draw(panels, {c.id: c.color for c in scheme.classes}, panel_width)
    drawn = set(flat(_ids(panel.solid) for panel in panels))
    named = [(c.name, c.color) for c in scheme.classes if c.id in drawn]
    named += [(HATCHED, SHADE)] if any(map(_is_hatched, panels)) else []
    facts = {CLASSES: ";".join(name for name, _ in named), HEIGHT: str(picture.height)}
    if legend and named:
        picture = _with_legend(picture, [(name.replace("_", " "), color) for name, color in named])
    return _png(_with_note(picture, note) if note else picture, facts)


def for_page(png: bytes) -> tuple[bytes, list[str]]:
    """Return a picture of :func:`case_picture` as WebP, without what is written beneath, and the classes outlined.

    A page writes that in its own letters, which a small screen does not shrink. Any other PNG stays whole.
    """
    picture = Image.open(io.BytesIO(png))
    facts = {key: str(value) for key, value in picture.info.items()}
    height = int(facts.get(HEIGHT, picture.height))
    buffer = io.BytesIO()
    picture.convert("RGB").crop((0, 0, picture.width, height)).save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue(), [name for name in facts.get(CLASSES, "").split(";") if name]


def _with_note(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return ``picture`` with lines of text on a band beneath it, the first one larger."""
    size = max(14, picture.width // 50)
    fonts = [ImageFont.truetype(str(FONT), round(1.15 * size))] + [ImageFont.truetype(str(FONT), size)] * len(lines)
    wrapped = []
    for line, font in zip(lines, fonts, strict=False):
        wrapped += [(part, font) for part in _wrapped(line, font, picture.width - 2 * size)]
    step = round(1.5 * size)
    sheet = Image.new("RGB", (picture.width, picture.height + step * len(wrapped) + size), INK)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for number, (line, font) in enumerate(wrapped):
        color = "#ffffff" if font is fonts[0] else NOTED
        draw.text((size, picture.height + round((number + 0.85) * step)), line, color, font, anchor="lm")
    return sheet


def _wrapped(line: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a line at spaces so that each part is at most ``width`` pixels wide, where words allow it."""
    parts = [""]
    for word in line.split(" "):
        longer = f"{parts[-1]} {word}" if parts[-1] else word
        if parts[-1] and font.getlength(longer) > width:
            parts.append(word)
        else:
            parts[-1] = longer
    return parts


def _with_legend(picture: Image.Image, named: Sequence[tuple[str, str]]) -> Image.Image:
    """Return ``picture`` with ``named`` colors (name, color) on a band beneath it."""
    size = max(14, picture.width // 70)
    font, columns = ImageFont.truetype(str(FONT), size), max(1, picture.width // (14 * size))
    row, step = 2 * size, picture.width // columns
    sheet = Image.new("RGB", (picture.width, picture.height + row * -(-len(named) // columns)), INK)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for position, (name, color) in enumerate(named):
        x, y = position % columns * step + size, picture.height + position // columns * row + row // 2
        square = (x, y - size // 2, x + size, y + size // 2)
        draw.rounded_rectangle(square, size // 4, fill=color, outline="#ffffff")
        draw.text((x + 1.5 * size, y), name, "#ffffff", font, anchor="lm")
    return sheet


def contact_sheet(pictures: Sequence[tuple[str, bytes]], columns: int = 4, cell: int = 360) -> bytes:
    """Arrange (title, PNG) pictures in a grid of cells ``cell`` pixels wide; return a PNG.

    Raises:
        ValueError: when there is no picture.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    tiles = [(title, _fit(Image.open(io.BytesIO(data)).convert("RGB"), cell)) for title, data in pictures]
    columns = min(columns, len(tiles))
    band, gap = 28, 10
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.height for _, tile in row) + band + gap for row in rows]
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, sum(heights) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(str(FONT), 14)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, (title, tile) in enumerate(row):
            left = gap + column * (cell + gap)
            draw.text((left + 2, top + band // 2), title, INK, font, anchor="lm")
            sheet.paste(tile, (left, top + band))
        top += height
    return _png(sheet)


def _fit(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)


def _png(picture: Image.Image, facts: Mapping[str, str] | None = None) -> bytes:
    """Return a PNG that carries ``facts`` as text."""
    buffer, text = io.BytesIO(), PngInfo()
    for key, value in (facts or {}).items():
        text.add_text(key, value)
    picture.save(buffer, "PNG", pnginfo=text)  # optimize takes seven times as long for a tenth less
    return buffer.getvalue()


def _panels(
    image: Volume,
    labels: Volume,
    truth: Volume | None,
    focus: Sequence[int],
    window: tuple[float, float] | None,
    views: Sequence[str],
    beside: bool,
    detached: bool,
    framed: Box | None,
) -> list[Panel]:
    """Return the panels of canonical volumes."""
    spacing = image.geometry.spacing_zyx
    known = [v.array for v in (labels, truth) if v is not None]
    foreground = np.any([(a != BACKGROUND) & (a != IGNORED) for a in known], axis=0)
    wanted = np.any([np.isin(a, focus) for a in known], axis=0)
    telling = wanted if wanted.any() else foreground
    box = _box_around(foreground, spacing)
    low, high = window or np.percentile(image.array[box], MR_PERCENTILES)
    panels = []
    for view in views:
        axis = AXES[view]
        if detached and view == views[-1] and wanted.any():
            telling = _second_part(wanted)
        area = telling.sum(axis=tuple(a for a in range(3) if a != axis))
        index = int(area.argmax()) if area.any() else len(area) // 2
        if framed is not None:
            index = (framed[axis].start + framed[axis].stop - 1) // 2
        gray = _hang(image.array, axis, index, box).astype(np.float32)
        gray = np.clip((gray - low) / max(float(high - low), 1e-6), 0, 1)
        drawn = _hang(labels.array, axis, index, box)
        true = None if truth is None else _hang(truth.array, axis, index, box)
        caption = f"{view}, slice {index + 1} of {image.array.shape[axis]}"
        rows_mm, columns_mm = (s for a, s in enumerate(spacing) if a != axis)
        frame = _hung(framed, axis, box, gray.shape) if framed is not None else None
        panel = partial(Panel, view=view, gray=gray, spacing=(rows_mm, columns_mm), framed=frame)
        if beside and true is not None:
            panels.append(panel(caption=f"{caption} · truth", solid=true, dashed=None))
            panels.append(panel(caption=f"{caption} · prediction", solid=drawn, dashed=None))
        else:
            panels.append(panel(caption=caption, solid=drawn, dashed=true))
    return panels


def _second_part(mask: np.ndarray) -> np.ndarray:
    """Return the second largest connected part of a mask; the mask itself when it is in one part."""
    parts = connected_components(mask)
    sizes = np.bincount(parts.ravel())[1:]
    return parts == np.argsort(-sizes, kind="stable")[1] + 1 if len(sizes) > 1 else mask


def _box_around(foreground: np.ndarray, spacing: Sequence[float]) -> tuple[slice, ...]:
    """Return the box of the labels and :data:`MARGIN_MM` around it; everything when there are none."""
    box = []
    for axis in range(3):
        seen = np.flatnonzero(foreground.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = round(MARGIN_MM / spacing[axis])
        box.append(slice(max(0, seen[0] - margin), seen[-1] + 1 + margin) if seen.size else slice(None))
    return tuple(box)


def _hang(array: np.ndarray, axis: int, index: int, box: tuple[slice, ...]) -> np.ndarray:
    """Cut a canonical array (up, front, right) so that the head or front is on top and the right side on the left."""
    inside = tuple(index if a == axis else s for a, s in enumerate(box))
    return np.ascontiguousarray(array[inside][::-1, ::-1])


def _hung(framed: Box, axis: int, box: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns of voxels in a slice of this shape that :func:`_hang` cut, a voxel to each side."""
    sides = []
    for number, size in zip([a for a in range(3) if a != axis], shape, strict=True):
        first = box[number].start or 0
        start, stop = (end - first for end in (framed[number].start, framed[number].stop))
        sides.append(slice(max(0, size - stop - 1), min(size, size - start + 1)))
    return sides[0], sides[1]


def _draw(panels: Sequence[Panel], colors: Mapping[int, str], panel_width: int) -> Image.Image:
    """Draw panels side by side at one scale (pixels per mm), centered on black."""
    scale = panel_width / max(p.size_mm[1] for p in panels)
    sizes = [tuple(max(1, round(side * scale)) for side in p.size_mm) for p in panels]
    height = max(h for h, _ in sizes)
    width = sum(w for _, w in sizes) + GUTTER * (len(panels) - 1)
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    left = 0
    for panel, (h, w) in zip(panels, sizes, strict=True):
        axes = figure.add_axes((left / width, (height - h) // 2 / height, w / width, h / height))
        _draw_panel(axes, panel, colors, (h, w), scale)
        left += w + GUTTER
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _draw_panel(axes: Axes, panel: Panel, colors: Mapping[int, str], size: tuple[int, int], scale: float) -> None:
    height, width = size
    axes.set_axis_off()
    gray = np.clip(_resample(panel.gray, size), 0, 1)
    axes.imshow(gray, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="nearest")
    thick = max(1.2, width / 440)
    for ids in (panel.solid, panel.dashed):
        if ids is not None and (ids == IGNORED).any():
            _hatch(axes, ids == IGNORED, panel.spacing, size)
    strong = set(colors) if panel.strong is None else panel.strong
    for number in sorted(_ids(panel.solid), key=strong.__contains__):
        if number in strong:
            _outline(axes, panel.solid == number, panel.spacing, size, colors[number], thick)
        elif number in colors:
            _thin_outline(axes, panel.solid == number, panel.spacing, size, colors[number])
    if panel.dashed is not None:
        for number in _ids(panel.dashed):
            _dashes(axes, panel.dashed == number, panel.spacing, size, thick)
    if panel.framed is not None:
        _frame(axes, panel.framed, panel.gray.shape, size)
    axes.set(xlim=(0, width), ylim=(height, 0))
    _letters(axes, panel, size, scale)


def _is_hatched(panel: Panel) -> bool:
    return any(ids is not None and bool((ids == IGNORED).any()) for ids in (panel.solid, panel.dashed))


def _ids(array: np.ndarray) -> list[int]:
    return [int(i) for i in np.unique(array) if i not in (BACKGROUND, IGNORED)]


def _hatch(axes: Axes, mask: np.ndarray, spacing, size: tuple[int, int]) -> None:
    """Hatch a part of the picture, so that the image remains to be seen."""
    x, y, field = _field(mask, spacing, size)
    drawn = axes.contourf(x, y, field, levels=[0, np.inf], colors="none", hatches=["////"])
    drawn.set(edgecolor=SHADE, linewidth=0, alpha=0.6)


def _outline(axes: Axes, mask: np.ndarray, spacing, size: tuple[int, int], color: str, thick: float) -> None:
    """Draw a colored line on a thin casing over a light fill; dark colors get a wide white casing."""
    x, y, field = _field(mask, spacing, size)
    casing, extra = ("#ffffff", 2.4) if _luminance(color) < 0.15 else ("#000000", 1.3)
    axes.contourf(x, y, field, levels=[0, np.inf], colors=[color], alpha=0.1, antialiased=True)
    axes.contour(x, y, field, levels=[0], colors=[casing], linewidths=(thick + extra) * 72 / DPI, alpha=0.75)
    axes.contour(x, y, field, levels=[0], colors=[color], linewidths=(thick + 0.3) * 72 / DPI)


def _thin_outline(axes: Axes, mask: np.ndarray, spacing, size: tuple[int, int], color: str) -> None:
    x, y, field = _field(mask, spacing, size)
    shade = "#ffffff" if _luminance(color) < 0.05 else color
    axes.contour(x, y, field, levels=[0], colors=[shade], linewidths=0.9 * 72 / DPI, alpha=0.75)


def _dashes(axes: Axes, mask: np.ndarray, spacing, size: tuple[int, int], thick: float) -> None:
    x, y, field = _field(mask, spacing, size)
    style = [(0, (4.0, 3.0))]
    axes.contour(x, y, field, levels=[0], colors=["#ffffff"], linewidths=thick * 0.85 * 72 / DPI, linestyles=style)


def _frame(axes: Axes, framed: tuple[slice, slice], shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """Draw a dashed box around rows and columns of a slice of this shape, as large as can be seen."""
    low, high = [], []
    for side, voxels, pixels in zip(framed, shape, size, strict=True):
        middle, half = (side.start + side.stop) / 2, max((side.stop - side.start) / 2, LEAST_FRAME * voxels / pixels)
        low.append((middle - half) * pixels / voxels)
        high.append((middle + half) * pixels / voxels)
    rows, columns = ((low[a], high[a]) for a in (0, 1))
    corners = (columns[0], rows[0]), columns[1] - columns[0], rows[1] - rows[0]
    casing = [withStroke(linewidth=3.2, foreground="black", alpha=0.8)]
    axes.add_patch(Rectangle(*corners, fill=False, edgecolor=NOTED, linewidth=1.4, linestyle="--", path_effects=casing))


def _field(mask: np.ndarray, spacing, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x and y (pixels) and there the signed distance (mm, positive inside) to the border of ``mask``.

    Interpolating distances keeps thin organs, where smoothing a mask would erase them. A frame of two voxels around
    the mask closes outlines that the edge of the picture cuts.
    """
    frame, coordinates, sizes = 2, [], []
    padded = np.pad(mask, frame)
    box = ndimage.find_objects(padded.astype(np.uint8))[0]
    box = tuple(slice(s.start - frame, s.stop + frame) for s in box)
    inside = padded[box]
    distance = np.subtract(*(ndimage.distance_transform_edt(m, sampling=spacing) for m in (inside, ~inside)))
    for side, extent, pixels in zip(box, mask.shape, size, strict=True):
        count = max(2, round((side.stop - side.start) * pixels / extent))
        voxels = (np.arange(count) + 0.5) / count * (side.stop - side.start) + side.start - frame
        coordinates.append(voxels * pixels / extent)
        sizes.append(count)
    field = _resample(distance, (sizes[0], sizes[1]))
    smooth = SMOOTHING_VOXELS * min(spacing) * size[0] / (mask.shape[0] * spacing[0])
    return coordinates[1], coordinates[0], ndimage.gaussian_filter(field, smooth)


def _resample(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample a float32 picture to (height, width) bicubically; edges, not pixel centers, are aligned."""
    picture = Image.fromarray(np.ascontiguousarray(array, np.float32))
    return np.array(picture.resize(size[::-1], Image.Resampling.BICUBIC))


def _luminance(color: str) -> float:
    return float(np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)))


def _letters(axes: Axes, panel: Panel, size: tuple[int, int], scale: float) -> None:
    """Write R and L, the view and a scale bar of 5 cm (or 1 cm in small pictures)."""
    height, width = size
    points = max(11.0, width / 46)
    font = FontProperties(fname=str(FONT), size=points * 72 / DPI)
    large = FontProperties(fname=str(FONT), size=1.5 * points * 72 / DPI)
    edge = 0.8 * points
    shade: dict[str, Any]
    shade = {"color": "#f4f6f8", "path_effects": [withStroke(linewidth=2.6, foreground="black", alpha=0.8)]}
    axes.text(edge, height / 2, "R", fontproperties=large, ha="left", va="center", **shade)
    axes.text(width - edge, height / 2, "L", fontproperties=large, ha="right", va="center", **shade)
    axes.text(edge, edge, panel.caption, fontproperties=font, ha="left", va="top", **shade)
    length = 5 if 50 * scale < 0.4 * width else 1
    right, low = width - edge, height - edge
    stroke = withStroke(linewidth=3.5, foreground="black", alpha=0.8)
    axes.plot([right - 10 * length * scale, right], [low, low], color="#f4f6f8", linewidth=1.6, path_effects=[stroke])
    axes.text(right, low - 0.5 * points, f"{length} cm", fontproperties=font, ha="right", va="bottom", **shade)
