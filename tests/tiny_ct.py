"""CT of bodies that are made of a few shapes, in HU."""

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from labelloop.images.volume import Geometry, Volume

GRID = Geometry((80, 60, 40), (4.5, 4.5, 5.0), direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))


def scan(seed: int) -> Volume:
    """Return a body with organs of its own: blobs of tissue, the same for the same seed."""
    rng = np.random.default_rng(seed)
    blobs = zoom(rng.normal(0, 1, (10, 15, 20)), 4, order=1)
    z, y, x = np.ogrid[: GRID.size[2], : GRID.size[1], : GRID.size[0]]
    wide, deep = 34 + 2 * rng.random() + np.sin(z / 7 + seed), 24 + 2 * rng.random() + np.cos(z / 9 + seed)
    inside = ((x - 40) / wide) ** 2 + ((y - 30) / deep) ** 2 < 1
    hu = np.where(inside, 40 + 120 * gaussian_filter(blobs, 1.5), -1000)
    return Volume(np.rint(hu + rng.normal(0, 8, hu.shape)).astype(np.int16), GRID)


def body(noise: float = 9.0) -> np.ndarray:
    """Return a body of muscle with fat, a liver, bone and a lung in air."""
    z, y, x = np.ogrid[:30, :64, :92]
    hu = np.full((30, 64, 92), -1000.0)
    inside = ((x - 46) / 40) ** 2 + ((y - 32) / 26) ** 2 < 1
    hu[np.broadcast_to(inside, hu.shape)] = -100
    hu[np.broadcast_to(((x - 46) / 36) ** 2 + ((y - 32) / 22) ** 2 < 1, hu.shape)] = 50
    hu[((x - 28) / 14) ** 2 + ((y - 28) / 14) ** 2 + ((z - 18) / 10) ** 2 < 1] = 110
    hu[np.broadcast_to(((x - 46) / 5) ** 2 + ((y - 50) / 4) ** 2 < 1, hu.shape)] = 400
    hu[((x - 64) / 12) ** 2 + ((y - 28) / 12) ** 2 + ((z - 26) / 8) ** 2 < 1] = -850
    return np.rint(hu + np.random.default_rng(0).normal(0, noise, hu.shape)).astype(np.int32)
