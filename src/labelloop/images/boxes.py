"""Where in a patient something was found: a box, as text that holds for every grid of the image.

``"x y z dx dy dz"``: the center in mm (LPS, as DICOM and ITK count), and the sides along the image's axes that are
nearest to left-right, front-back and up-down, in mm. Empty text: no place.
"""

import logging
from collections.abc import Sequence

import numpy as np

from labelloop.images.volume import Geometry

log = logging.getLogger(__name__)
Box = tuple[slice, slice, slice]


def box_text(box: Sequence[slice] | None, geometry: Geometry) -> str:
    """Return the text of a box of voxels (z, y, x) of a canonical grid, as far as it lies in it; nothing for None."""
    if box is None:
        return ""
    first, last = (np.array([getattr(side, end) for side in box][::-1], float) for end in ("start", "stop"))
    first, last = np.maximum(first, 0), np.minimum(last, geometry.size)  # voxels of a coarser grid reach beyond
    spacing, turn = np.asarray(geometry.spacing), np.asarray(geometry.direction).reshape(3, 3)
    center = np.asarray(geometry.origin) + turn @ ((first + last - 1) / 2 * spacing)
    return " ".join(f"{value:.1f}" for value in (*center, *((last - first) * spacing)))


def box_voxels(text: str, geometry: Geometry) -> Box | None:
    """Return the voxels (z, y, x) of a canonical grid that a text of :func:`box_text` names; None for no place.

    Raises:
        ValueError: for another text, or a box that lies outside of the grid.
    """
    if not text:
        return None
    values = np.array([float(word) for word in text.split()])
    if len(values) != 6 or not np.isfinite(values).all():
        raise ValueError(f"{text!r} is no box: six numbers are expected")
    spacing, turn = np.asarray(geometry.spacing), np.asarray(geometry.direction).reshape(3, 3)
    center = turn.T @ (values[:3] - np.asarray(geometry.origin)) / spacing
    half = values[3:] / spacing / 2
    first = np.clip(np.rint(center - half + 0.5).astype(int), 0, geometry.size)
    last = np.clip(np.rint(center + half + 0.5).astype(int), 0, geometry.size)
    if (first >= last).any():
        raise ValueError(f"{text!r} lies outside of a grid of {geometry.size} voxels (x, y, z)")
    x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return z, y, x


def box_or_none(text: str, geometry: Geometry, label: str) -> Box | None:
    """Return the box of a text as :func:`box_voxels` does; None, with a warning about ``label``, where it is none."""
    try:
        return box_voxels(text, geometry)
    except ValueError as error:
        log.warning("%s: the place of the doubt is not shown: %s", label, error)
        return None
