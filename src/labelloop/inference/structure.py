"""Do the labels of a CT still fit its translation? A translator that invents anatomy is noticed here."""

from dataclasses import dataclass
from itertools import product

import numpy as np

from labelloop.base.errors import CaseError
from labelloop.images.volume import Volume, canonical

LEVELS = 32
SHIFT_MM = 6.0
NEAR_MM = 12.0


@dataclass(frozen=True)
class StructureFit:
    """How much an image tells about labels where they lie, against where they do not.

    Attributes:
        information: share of the labels' entropy that the image explains, 0 to 1.
        shifted: the largest of the same for labels moved by 6 mm along an axis.
        fits: the labels explain the image best where they are.
    """

    information: float
    shifted: float

    @property
    def fits(self) -> bool:
        return self.information > self.shifted


def structure_fit(image: Volume, label: Volume) -> StructureFit:
    """Compare the mutual information of ``image`` and ``label`` with that of moved labels.

    The comparison needs no CT: it holds for any contrast, as long as organs can be told apart at all. It is made in the
    box of the labels, extended by 12 mm.

    Raises:
        CaseError: when the label map is empty, or not on the grid of the image.
    """
    if difference := label.geometry.difference(image.geometry):
        raise CaseError("label_grid", "", f"image and label map differ in {difference}", "Draw it on its image.")
    array, labels = canonical(image).array, canonical(label).array
    if not labels.any():
        raise CaseError("label_empty", "", "there is no structure to look for", "Look at the label map.", common=True)
    spacing = canonical(image).geometry.spacing_zyx
    box = tuple(
        slice(max(0, int(found.min()) - round(NEAR_MM / step)), int(found.max()) + 1 + round(NEAR_MM / step))
        for found, step in zip(np.nonzero(labels), spacing, strict=True)
    )
    grey, inner = _levels(array[box]), labels[box]
    steps = [max(1, round(SHIFT_MM / step)) for step in spacing]
    moves = [np.roll(inner, sign * steps[axis], axis) for axis, sign in product(range(len(steps)), (-1, 1))]
    return StructureFit(explained(grey, inner), max(explained(grey, moved) for moved in moves))


def explained(grey: np.ndarray, labels: np.ndarray) -> float:
    """Return the mutual information of two arrays of small integers as a share of the entropy of ``labels``."""
    classes, index = np.unique(labels, return_inverse=True)
    counts = np.bincount(grey.ravel() * len(classes) + index.ravel(), minlength=LEVELS * len(classes))
    joint = counts.reshape(-1, len(classes)) / labels.size
    both = _entropy(joint)
    of_labels = _entropy(joint.sum(0))
    return (_entropy(joint.sum(1)) + of_labels - both) / of_labels if of_labels else 0.0


def _levels(array: np.ndarray) -> np.ndarray:
    """Return the array in 32 levels that are equally frequent."""
    edges = np.quantile(array, np.arange(1, LEVELS) / LEVELS)
    return np.searchsorted(edges, array)


def _entropy(shares: np.ndarray) -> float:
    kept = shares[shares > 0]
    return float(-(kept * np.log(kept)).sum())
