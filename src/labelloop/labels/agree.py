"""Disagreement of several predictions of one case: from label maps alone, no probability volume is ever stored."""

from collections.abc import Collection, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from labelloop.base.classes import ClassScheme

ALL = "all"
"""Row of the whole case: FLARE22's u over the organs of ``classes`` together, and the mean pairwise Dice of all."""
CHUNK = 1 << 22
"""Voxels counted at once: numpy's bincount makes a 64-bit copy of what it counts."""


def disagreement(
    predictions: Sequence[np.ndarray], scheme: ClassScheme, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row per class (without ``case``), and one named "all" for the case as a whole.

    - ``pairwise_dice``: mean Dice over all pairs of predictions; a pair in which both are empty counts as 1
      (Zenk et al., MedIA 2025, arXiv 2406.03323: the most robust failure score). The case's is the classes' mean.
    - ``uncertainty``: FLARE22's u, the mean over consecutive predictions of |A != B| / |B > 0|; with three it is
      1/2 (|A != B| / |B > 0| + |B != C| / |C > 0|). Per class, all other labels are set to zero first, as Zhou does
      for the tumor. An empty denominator counts as one voxel, so that agreeing on "nothing" is 0 and anything
      against nothing ranks as very uncertain. The case's is that of its organs together, for tumors are ranked by
      themselves (Zhou, section 2.2); where ``classes`` has no organ, that of all.

    With a single prediction both scores are NaN.

    Args:
        predictions: label maps [z, y, x] of equal shape, in the order of the rounds or models.
    """
    classes = scheme.select(list(classes))
    if not predictions or not classes:
        return []
    if len({p.shape for p in predictions}) > 1:
        raise ValueError(f"predictions differ in shape (z, y, x): {[p.shape for p in predictions]}")
    codes = _codes(predictions, scheme, classes)
    number = len(codes)
    pairs = sorted((j, i) for i, j in combinations(range(number), 2))
    tables = {(i, j): _joint(codes[i], codes[j], len(classes) + 1) for i, j in pairs}
    dice = np.array([_dice(table) for table in tables.values()]).reshape(-1, len(classes))
    steps = [tables[later, earlier] for earlier, later in pairwise(range(number))]
    organs = [name not in scheme.sets.get("tumor", ()) for name in classes]
    ranked = np.array([False, *(organs if any(organs) else classes)], bool)
    unsure = np.array([_uncertainty(table, ranked) for table in steps]).reshape(-1, len(classes) + 1)
    if number > 1:
        mean_dice, mean_unsure = dice.mean(axis=0), unsure.mean(axis=0)
    else:
        mean_dice, mean_unsure = np.full(len(classes), np.nan), np.full(len(classes) + 1, np.nan)
    values = [*zip(classes, mean_dice, mean_unsure[1:], strict=True), (ALL, mean_dice.mean(), mean_unsure[0])]
    return [
        {"class": name, "pairwise_dice": float(d), "uncertainty": float(u), "predictions": number}
        for name, d, u in values
    ]


def differing(predictions: Sequence[np.ndarray], known: Sequence[Collection[int]], ids: Collection[int]) -> np.ndarray:
    """Return the voxels, bool [z, y, x], on which any two predictions differ about a class that both know.

    Args:
        predictions: label maps [z, y, x] of equal shape, one or more.
        known: class ids that each of them can hold.
        ids: the class ids that are asked about; all others count as background.
    """
    differ = np.zeros(predictions[0].shape, bool)
    for (first, of_first), (second, of_second) in combinations(zip(predictions, known, strict=True), 2):
        asked = np.zeros(256, np.uint8)
        shared = [index for index in ids if index in of_first and index in of_second]
        asked[shared] = shared
        differ |= asked[first] != asked[second]
    return differ


def _codes(predictions: Sequence[np.ndarray], scheme: ClassScheme, classes: Sequence[str]) -> list[np.ndarray]:
    """Number the classes 1, 2, ... in every map, cropped to the box in which any map has a label."""
    table = np.zeros(256, np.uint8)
    for code, name in enumerate(classes, start=1):
        table[scheme.ids[name]] = code
    codes = [table[p] for p in predictions]
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(np.any([c.any(axis=others) for c in codes], axis=0))
        box.append(slice(hit[0], hit[-1] + 1) if hit.size else slice(0, 0))
    return [np.ascontiguousarray(c[tuple(box)]).ravel() for c in codes]


def _joint(later: np.ndarray, earlier: np.ndarray, size: int) -> np.ndarray:
    """Return the table [later label, earlier label] of voxel counts."""
    total = np.zeros(size * size, np.int64)
    for start in range(0, later.size, CHUNK):
        part = slice(start, start + CHUNK)
        total += np.bincount(later[part].astype(np.uint16) * size + earlier[part], minlength=size * size)
    return total.reshape(size, size)


def _dice(table: np.ndarray) -> np.ndarray:
    both, sums = table.diagonal()[1:], (table.sum(axis=0) + table.sum(axis=1))[1:]
    return np.where(sums > 0, 2 * both / np.maximum(sums, 1), 1.0)


def _uncertainty(table: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """Return u of the ``ranked`` labels together, then of each class; the later prediction is the denominator."""
    rows, columns, both = table.sum(axis=1), table.sum(axis=0), table.diagonal()
    others = table[np.ix_(~ranked, ~ranked)].sum()  # what is no ranked label in either prediction is agreed upon
    whole = (table.sum() - others - both[ranked].sum()) / max(rows[ranked].sum(), 1)
    return np.concatenate([[whole], (rows + columns - 2 * both)[1:] / np.maximum(rows[1:], 1)])
