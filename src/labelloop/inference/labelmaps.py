"""Operations on label maps: boxes of their classes, merging and composing maps of several models.

cc3d is imported where components are searched: a single model needs none.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from labelloop.base.classes import BACKGROUND, IGNORED
from labelloop.base.sequences import flat
from labelloop.images.datasets import BLOCK


def in_ids_of(labels: np.ndarray, own: Mapping[str, int], ids: Mapping[str, int]) -> np.ndarray:
    """Return a label map (uint8, any shape) in other ids: a class keeps its name.

    Ignored voxels stay so. A class that ``ids`` lack becomes background.

    Args:
        own: id of each class in ``labels``.
        ids: id of each class in the result.
    """
    table = np.full(IGNORED + 1, BACKGROUND, np.uint8)
    table[IGNORED] = IGNORED
    for name in own.keys() & ids.keys():
        table[own[name]] = ids[name]
    return table[labels]


def class_boxes(labels: np.ndarray) -> dict[int, tuple[slice, slice, slice]]:
    """Return the bounding box of each value above zero that occurs."""
    import cc3d

    found = cc3d.statistics(labels)
    counts, boxes = found["voxel_counts"].tolist(), found["bounding_boxes"]
    return {value: boxes[value] for value in range(1, len(counts)) if counts[value]}


def merge_union(base: np.ndarray, maps: Sequence[np.ndarray], value: int) -> np.ndarray:
    """Return ``base`` with ``value`` painted wherever any of ``maps`` has it."""
    result = base.copy()
    for labels in maps:
        result[labels == value] = value
    return result


def merge_votes(maps: Sequence[np.ndarray], known: Sequence[Sequence[int]]) -> np.ndarray:
    """Merge label maps voxel by voxel: a class wins where at least half of the maps that know it have it.

    Args:
        maps: label maps of one shape.
        known: per map, the ids it can contain; it has no vote on others.

    Among several such classes the one with the larger share wins; then the one of the earlier map.
    """
    result = np.zeros_like(maps[0])
    planes = max(1, BLOCK // max(1, maps[0][:1].size))
    for start in range(0, len(result), planes):  # shares take ten times the memory of a label map
        some = slice(start, start + planes)
        result[some] = _voted([labels[some] for labels in maps], known)
    return result


def _voted(maps: Sequence[np.ndarray], known: Sequence[Sequence[int]]) -> np.ndarray:
    best = np.zeros(maps[0].shape, np.float32)
    result = np.zeros_like(maps[0])
    for value in dict.fromkeys(flat(known)):
        voters = [labels for labels, ids in zip(maps, known, strict=True) if value in ids]
        votes = np.zeros(best.shape, np.uint8)
        for labels in voters:
            votes += labels == value
        share = votes / np.float32(len(voters))
        wins = (share >= 0.5) & (share > best)
        result[wins], best[wins] = value, share[wins]
    return result


def compose(parts: Sequence[tuple[np.ndarray, Sequence[int]]]) -> np.ndarray:
    """Paint the given ids of each label map onto background, later parts over earlier ones."""
    result = np.zeros_like(parts[0][0])
    for labels, ids in parts:
        is_in = np.zeros(IGNORED + 1, bool)
        is_in[list(ids)] = True
        chosen = is_in[labels]
        result[chosen] = labels[chosen]
    return result
