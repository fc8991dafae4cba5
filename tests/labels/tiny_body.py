"""A body of a few thousand voxels: a wall of fat, lungs at its upper end, a liver and two kidneys."""

from dataclasses import replace

import numpy as np

from labelloop.base.classes import load_classes
from labelloop.images.volume import Geometry, Volume

IDS = load_classes("flare").ids
SPACING = (4.0, 4.0, 6.0)
SIZE = (72, 56, 40)
GRID = Geometry(SIZE, SPACING, (-142.0, -110.0, 30.0))


def ellipsoid(center, radii, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Mask of an ellipsoid, given in LPS mm (x, y, z) around the middle of ``GRID``."""
    x, y, z = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(SIZE, SPACING, strict=True))
    parts = (x[None, None], y[None, :, None], z[:, None, None])
    moved = [(p - c - d) / r for p, c, d, r in zip(parts, center, shift, radii, strict=True)]
    return sum(m**2 for m in moved) < 1


def draw(shift=(0.0, 0.0, 0.0), kidneys=(0.0, 0.0, 0.0), seed=0, dark_kidneys=False) -> tuple[Volume, Volume]:
    """Image (grey scale) and label; all moved by ``shift`` (LPS mm), the kidneys by ``kidneys`` besides."""
    image, label = np.zeros(GRID.shape, np.float32), np.zeros(GRID.shape, np.uint8)
    image[ellipsoid((0, 0, 0), (125, 92, 400), shift)] = 190 if dark_kidneys else 60
    image[ellipsoid((0, 0, 0), (105, 75, 400), shift)] = 100 if dark_kidneys else 70
    for side in (-1, 1):
        image[ellipsoid((side * 55, 0, 130), (40, 55, 80), shift)] = 2
    organs = {"liver": ((-50, -20, 20), (46, 44, 46), 130)}
    for name, x in (("right_kidney", -52), ("left_kidney", 52)):
        organs[name] = ((x, 38, -55), (26, 24, 44), 40 if dark_kidneys else 210)
    for name, (center, radii, value) in organs.items():
        move = np.add(shift, kidneys) if "kidney" in name else shift
        where = ellipsoid(center, radii, move)
        image[where], label[where] = value, IDS[name]
    noise = np.random.default_rng(seed).normal(0, 2, image.shape)
    return Volume(np.clip(image + np.abs(noise), 0, 255).astype(np.float32), GRID), Volume(label, GRID)


def stored(volume: Volume, orientation: str) -> Volume:
    """The same volume with its axes stored otherwise; nothing moves in the patient."""
    array, direction, origin = volume.array, np.eye(3), np.array(volume.geometry.origin)
    for axis, code in enumerate(orientation):
        if code in "RAI" and code != "LPS"[axis]:
            array = np.flip(array, 2 - axis)
            direction[axis, axis] = -1
            origin[axis] += (volume.geometry.size[axis] - 1) * volume.geometry.spacing[axis]
    turned = replace(volume.geometry, origin=tuple(origin.tolist()), direction=tuple(direction.ravel().tolist()))
    return Volume(np.ascontiguousarray(array), turned)
