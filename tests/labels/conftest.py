"""A clean abdomen of ellipsoids, boxes and tubes on a 3 mm grid, on which every rule passes."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from labelloop.base.classes import load_classes
from labelloop.images.volume import Geometry

SHAPE = (100, 100, 130)
# Canonical axes: z up, y to the front, x to the patient's right (ITK's LPS runs the other way in x and y).
CANONICAL = Geometry(SHAPE[::-1], (3.0, 3.0, 3.0), direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
HU = {
    "liver": 110, "right_kidney": 190, "left_kidney": 190, "spleen": 130, "pancreas": 95, "aorta": 230, "stomach": 40,
    "inferior_vena_cava": 170, "right_adrenal_gland": 70, "left_adrenal_gland": 70, "gallbladder": 15, "esophagus": 55,
    "duodenum": 50, "tumor": 60,
}  # fmt: skip
"""Portal venous phase."""


def ball(center, radii):
    """Mask of an ellipsoid, center and radii in voxels (z, y, x)."""
    grid = np.ogrid[tuple(slice(n) for n in SHAPE)]
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, center, radii, strict=True)) <= 1


def tube(low, high, y, x, radius):
    """Mask of an upright cylinder from slice ``low`` up to ``high`` (exclusive)."""
    _, gy, gx = np.ogrid[tuple(slice(n) for n in SHAPE)]
    mask = np.broadcast_to((gy - y) ** 2 + (gx - x) ** 2 <= radius**2, SHAPE).copy()
    mask[:low] = mask[high:] = False
    return mask


@cache
def draw():
    """Return labels and an image in HU, not to be altered."""
    ids, labels = load_classes("flare").ids, np.zeros(SHAPE, np.uint8)
    parts = {
        "duodenum": ball((49, 60, 62), (4, 7, 14)),
        "liver": ball((60, 55, 90), (18, 18, 22)) | ball((68, 60, 66), (8, 9, 12)),
        "spleen": ball((62, 35, 30), (12, 9, 8)),
        "right_kidney": ball((38, 30, 88), (14, 7, 7)),
        "left_kidney": ball((42, 30, 42), (14, 7, 7)),
        "aorta": tube(15, 100, 32, 60, 3),
        "inferior_vena_cava": tube(15, 85, 36, 72, 3),
        "right_adrenal_gland": ball((54, 30, 82), (3, 2, 3)),
        "left_adrenal_gland": ball((58, 30, 50), (5, 2, 3)),
        "gallbladder": ball((44, 70, 90), (4, 4, 4)),
        "pancreas": ball((45, 50, 54), (4, 4, 20)),
        "esophagus": tube(66, 100, 60, 50, 2),
        "stomach": ball((58, 62, 45), (10, 9, 11)),
        "tumor": ball((60, 55, 90), (3, 3, 3)),
    }
    for name, mask in parts.items():
        labels[mask] = ids[name]
    hu = np.full(256, -90, np.int16)  # fat between the organs
    hu[list(ids.values())] = [HU[name] for name in ids]
    _, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
    body = ((y - 50) / 42) ** 2 + ((x - 65) / 56) ** 2 <= 1
    image = np.where(body, hu[labels], -1000).astype(np.int16)
    image[tube(0, 100, 14, 65, 4)] = 700  # the spine: bone is what is brightest
    return labels, image


@pytest.fixture
def scheme():
    return load_classes("flare")


@pytest.fixture
def anatomy(scheme):
    labels, image = (array.copy() for array in draw())
    return SimpleNamespace(labels=labels, image=image, geometry=CANONICAL, ids=scheme.ids, ball=ball, tube=tube)
