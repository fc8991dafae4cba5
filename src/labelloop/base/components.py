"""Connected parts of masks, by connected-components-3d (Silversmith, doi:10.5281/zenodo.5719536)."""

from typing import Literal

import cc3d
import numpy as np

Connectivity = Literal[6, 18, 26]
"""Neighbors of a voxel: those that share a face, also those that share an edge, and also those that share a corner."""


def connected_components(mask: np.ndarray, connectivity: Connectivity = 26) -> np.ndarray:
    """Return the connected parts of a mask [z, y, x], numbered from 1; 0 elsewhere."""
    return cc3d.connected_components(_as_numbers(mask), connectivity=connectivity)


def largest_component(mask: np.ndarray, connectivity: Connectivity = 26) -> np.ndarray:
    """Return the largest connected part of a mask [z, y, x]; nothing of an empty one."""
    if not mask.any():
        return mask
    return cc3d.largest_k(_as_numbers(mask), k=1, connectivity=connectivity) > 0


def _as_numbers(mask: np.ndarray) -> np.ndarray:
    """Return a mask of booleans as numbers: cc3d fails on two parts in a line of booleans."""
    return np.ascontiguousarray(mask).view(np.uint8)
