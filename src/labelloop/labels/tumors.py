"""Tumor objects (Zhou, section 2.2): connected tumors with their surroundings, cut out on the network grid.

A bank is a folder of ``<case>.npz``. Each holds the objects of one case, image and label, and the annotation states of
that case, so that whoever pastes an object knows what its label says nothing about.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import cc3d
import numpy as np

from labelloop.base.components import connected_components
from labelloop.base.files import atomic
from labelloop.labels.settings import CutSettings


def cut_tumors(
    case: str,
    image: np.ndarray,
    label: np.ndarray,
    spacing_mm: Sequence[float],
    class_id: int,
    settings: CutSettings,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (image, label) of each connected tumor (26 neighbors) with its surroundings, largest first.

    Args:
        case: id of the case; decides the margins together with the seed.
        image: prepared image, float32 [z, y, x].
        label: class ids [z, y, x] on the same grid.
        spacing_mm: voxel size (z, y, x) of that grid.
        class_id: id of the tumor class.

    Raises:
        ValueError: when image and label differ in shape.
    """
    if image.shape != label.shape:
        raise ValueError(f"{case}: image {image.shape} and label {label.shape} differ")
    parts = connected_components(label == class_id)
    found = cc3d.statistics(parts)
    sizes = found["voxel_counts"][1:] * (np.prod(spacing_mm) / 1000)
    random = np.random.default_rng((settings.seed, zlib.crc32(case.encode())))
    objects = []
    for number in np.argsort(-sizes, kind="stable"):
        low, high = np.array(settings.margin_mm).T
        pads = np.round(random.uniform(low, high) / np.asarray(spacing_mm)).astype(int)
        if sizes[number] < settings.min_ml:
            continue
        around = tuple(
            slice(max(0, side.start - pad), side.stop + pad)
            for side, pad in zip(found["bounding_boxes"][number + 1], pads, strict=True)
        )
        objects.append((np.array(image[around], np.float32), np.array(label[around], np.uint8)))
    return objects


def write_objects(path: Path, objects: Sequence[tuple[np.ndarray, np.ndarray]], states: Mapping[str, str]) -> None:
    """Write the objects of one case atomically to ``path`` (``<folder>/<case>.npz``), with its annotation states."""
    arrays = {"states": np.array(json.dumps(dict(states), sort_keys=True)), "number": np.array(len(objects))}
    for number, (image, label) in enumerate(objects):
        arrays |= {f"image{number}": image, f"label{number}": label}
    with atomic(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # numpy's stub: a name might be allow_pickle


def read_contents(path: Path) -> tuple[int, dict[str, str]]:
    """Return how many objects a file holds and the annotation states of their case."""
    with np.load(path) as stored:
        return int(stored["number"]), json.loads(str(stored["states"]))


def read_object(path: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image, float32, and label of class ids, uint8, [z, y, x] of one object."""
    with np.load(path) as stored:
        return stored[f"image{number}"], stored[f"label{number}"]
