"""Where in an image to segment: boxes around what was found, in mm, and parts of a volume.

Boxes are ``(start, stop)`` per axis z, y, x of the canonical orientation (see :mod:`labelloop.images.volume`), so that
a margin above is above in the patient, however the image is stored.
"""

import math
from dataclasses import replace

import numpy as np

from labelloop.images.volume import Volume, canonical
from labelloop.inference.prepare import Frame
from labelloop.inference.steps import Locate

Range = tuple[int, int]
Box = tuple[Range, Range, Range]


def span(found: np.ndarray, spacing_mm: float = 1.0, gap_mm: float | None = None) -> Range | None:
    """Return the first and one past the last plane that was found; None when there is none.

    Args:
        found: bool, a plane each.
        spacing_mm: distance of planes.
        gap_mm: finds with more than this between them are not one part; of several parts the longest stays, of equally
            long ones the lowest. None: all that lies between the first and the last find (Mao, section 2.2).
    """
    places = np.flatnonzero(found)
    if not len(places):
        return None
    between = (np.diff(places) - 1) * spacing_mm
    breaks = np.flatnonzero(between > gap_mm) + 1 if gap_mm is not None else np.empty(0, int)
    parts = [(int(part[0]), int(part[-1]) + 1) for part in np.split(places, breaks)]
    return max(parts, key=lambda part: part[1] - part[0])


def grown(part: Range, margin_mm: float, spacing_mm: float, size: int) -> Range:
    """Return a range with at least ``margin_mm`` more on either side, as far as there are voxels."""
    margin = math.ceil(margin_mm / spacing_mm - 1e-6)
    return max(0, part[0] - margin), min(size, part[1] + margin)


def box_of_mask(mask: np.ndarray, spacing_zyx: tuple[float, float, float], step: Locate) -> Box | None:
    """Return the box around a mask, bool [z, y, x] in canonical orientation, with its margin; None for an empty mask.

    With ``axes: z`` the box is as wide and deep as the mask's array.
    """
    z = span(np.any(mask, (1, 2)), spacing_zyx[0], step.gap_mm)
    inside = mask[slice(*z)] if z else mask[:0]
    y, x = span(np.any(inside, (0, 2))), span(np.any(inside, (0, 1)))
    if z is None or y is None or x is None:
        return None
    parts = zip((z, y, x), spacing_zyx, mask.shape, strict=True)
    box = [grown(part, step.margin_mm, spacing, size) for part, spacing, size in parts]
    return (box[0], box[1], box[2]) if step.axes == "all" else (box[0], (0, mask.shape[1]), (0, mask.shape[2]))


def box_of_slices(found: np.ndarray, frame: Frame, step: Locate) -> Box | None:
    """Return the box around the axial slices that were found, with its margin: whole slices. None when none was.

    Args:
        found: bool, a plane of the network grid each.
        frame: where that grid lies; the box is one of its canonical grid.
    """
    depth, height, width = frame.oriented.shape
    spacing = frame.oriented.spacing_zyx[0]
    low, high = frame.crop[0]
    per_plane = (high - low) / len(found)
    z = span(found, per_plane * spacing, step.gap_mm)
    if z is None:
        return None
    stored = low + math.floor(z[0] * per_plane + 1e-6), low + math.ceil(z[1] * per_plane - 1e-6)
    return grown(stored, step.margin_mm, spacing, depth), (0, height), (0, width)


def height_mm(volume: Volume) -> float:
    """Return how far a volume reaches along the patient's z axis, in mm."""
    grid = canonical(volume).geometry
    return grid.shape[0] * grid.spacing_zyx[0]


def part_of(volume: Volume, box: Box) -> Volume:
    """Return the part of a canonical volume that lies in ``box``: a view, in its right place in the patient."""
    grid = volume.geometry
    start = np.array([part[0] for part in reversed(box)]) * np.asarray(grid.spacing)  # x, y, z
    origin = np.asarray(grid.origin) + np.asarray(grid.direction).reshape(3, 3) @ start
    x, y, z = (stop - begin for begin, stop in reversed(box))
    first, *more = (channel[tuple(slice(*part) for part in box)] for channel in volume.channels)
    return Volume(first, replace(grid, size=(x, y, z), origin=tuple(origin.tolist())), tuple(more))


def in_whole(box: Box, part: Box) -> Box:
    """Return a box of a part's own grid as one of the grid that the part was cut from."""
    z, y, x = ((start + first, stop + first) for (start, stop), (first, _) in zip(box, part, strict=True))
    return z, y, x
