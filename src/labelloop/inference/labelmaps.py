"""Operations on label maps: keep the largest component, merge and compose maps of several models.

cc3d is imported where components are searched: a single model needs none.
"""

from collections.abc import Sequence

import numpy as np


def class_boxes(labels: np.ndarray) -> dict[int, tuple[slice, slice, slice]]:
    """Return the bounding box of each value above zero that occurs."""
    import cc3d

    found = cc3d.statistics(labels)
    counts, boxes = found["voxel_counts"].tolist(), found["bounding_boxes"]
    return {value: boxes[value] for value in range(1, len(counts)) if counts[value]}


def keep_largest(labels: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Return ``labels`` with only the largest 26-connected component of each id; the rest becomes background.

    Components are compared by voxel count, which on one grid is volume.
    """
    import cc3d

    result = labels.copy()
    boxes = class_boxes(labels)
    for value in set(ids) & set(boxes):
        box = boxes[value]
        mask = np.ascontiguousarray(labels[box] == value)
        components = cc3d.connected_components(mask, connectivity=26)
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        result[box][mask & (components != sizes.argmax())] = 0
    return result


def drop_far(labels: np.ndarray, spacing_z_mm: float, near: Sequence[int], within_z_mm: float) -> np.ndarray:
    """Return ``labels`` without the islands that lie too far above or below ``near``, whatever their class.

    An island is a 26-connected component of all classes together; it stays when its centroid lies within
    ``within_z_mm`` of that of the largest component of ``near``, along z alone (Meng's released ``predict_final.py``;
    the paper's section 2.3 speaks of centroid distances). Where there is no ``near``, everything stays.

    Args:
        labels: [z, y, x] in canonical orientation.
        near: ids; of several, the largest component of all together counts.
    """
    import cc3d

    anchor = keep_largest(np.isin(labels, near).view(np.uint8), [1])
    if not anchor.any():
        return labels
    places = np.argwhere(labels)
    box = tuple(slice(low, high + 1) for low, high in zip(places.min(0), places.max(0), strict=True))
    islands = cc3d.connected_components(np.ascontiguousarray(labels[box] > 0), connectivity=26)
    centers = cc3d.statistics(islands)["centroids"][:, 0] + box[0].start
    center = np.average(np.arange(len(labels)), weights=anchor.sum((1, 2)))
    far = np.abs(centers - center) * spacing_z_mm > within_z_mm
    far[0] = False  # the background
    result = labels.copy()
    result[box][far[islands]] = 0
    return result


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
    best = np.zeros(maps[0].shape, np.float32)
    result = np.zeros_like(maps[0])
    for value in dict.fromkeys(v for ids in known for v in ids):
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
        chosen = np.isin(labels, list(ids))
        result[chosen] = labels[chosen]
    return result
