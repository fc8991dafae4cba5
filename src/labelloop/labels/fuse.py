"""Fuse truth and predictions into one label map, class by class, truth first (Jia, PWS-Seg, equation 5).

What counts as truth is the annotation state, never "which ids occur in the file": a class annotated ``absent``
keeps every pseudo-label of that class out of the map. Voxels that annotators ignored stay ignored.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import edt
import numpy as np
from scipy import ndimage

from labelloop.base.classes import BACKGROUND, IGNORED, ClassScheme
from labelloop.base.components import connected_components
from labelloop.cases.annotation import ABSENT, PRESENT, UNKNOWN, States
from labelloop.labels.settings import TumorVoxels

Row = dict[str, Any]
ROUNDING = 1.001
"""A distance in mm is so much larger, at most, by rounding."""


def fuse(
    truth: np.ndarray | None,
    states: States,
    predictions: Sequence[tuple[str, np.ndarray]],
    scheme: ClassScheme,
    classes: Sequence[str],
    voxel_ml: float,
    model_classes: Mapping[str, Sequence[str]] | None = None,
    reviewed: Collection[str] = (),
) -> tuple[np.ndarray, list[Row]]:
    """Return the fused uint8 map of ``classes`` and its provenance rows (without ``case``).

    - A class that is annotated (present or absent) comes from ``truth`` alone; an unknown one from the predictions.
    - Several predictions vote per voxel, background included; a tie goes to the first of the tied in the order
      given (so of two models the first one decides).
    - Truth voxels always win: over a pseudo organ and also over a pseudo tumor. A pseudo tumor therefore fills a
      hole that the annotator left in a true organ, but takes no voxel of the organ itself. A true tumor wins over a
      pseudo organ.
    - Pseudo tumor wins over pseudo organs when they come from different groups of models (see ``model_classes``).

    What was predicted for a class and went to another organ (of the truth, or of other models) is counted in a row of
    its own, with the step "overlap", where there is any: both cannot be right (rule ``overlap`` of the anatomy rules).
    Voxels that went to a tumor are not counted.

    Args:
        truth: the annotated map [z, y, x], or None.
        states: annotation state of each class; classes not named are unknown.
        predictions: (model name, label map) pairs, best model first.
        voxel_ml: volume of one voxel in ml.
        model_classes: the classes each model can predict; a model does not vote on the others. Default: all.
        reviewed: annotated classes of which reviewers, not annotators, say what ``truth`` and ``states`` hold.

    Raises:
        ValueError: for shapes that differ, no map at all, or a class annotated present without a truth map.
    """
    maps = [array for _, array in predictions] + ([] if truth is None else [truth])
    if not maps:
        raise ValueError("nothing to fuse: neither truth nor a prediction was given")
    if len({m.shape for m in maps}) > 1:
        raise ValueError(f"maps to fuse differ in shape (z, y, x): {[m.shape for m in maps]}")
    classes = scheme.select(list(classes))
    known = [name for name in classes if states.get(name, UNKNOWN) != UNKNOWN]
    present = [name for name in known if states[name] == PRESENT]
    if truth is None and present:
        raise ValueError(f"annotated present, but there is no truth map: {', '.join(present)}")

    able = {name: tuple(classes if model_classes is None else model_classes.get(name, ())) for name, _ in predictions}
    voted, overlap = _vote_by_group(predictions, able, scheme, classes)
    fused = np.zeros(maps[0].shape, np.uint8) if voted is None else _keep(voted, scheme, set(classes) - set(known))
    if truth is not None and present:
        true_map = _keep(truth, scheme, present)
        overlap += _contested(fused, true_map, scheme)
        np.copyto(fused, true_map, where=true_map != BACKGROUND)

    counts = np.bincount(fused.ravel(order="K"), minlength=256)
    lost = np.zeros(256, np.int64) if voted is None else np.bincount(voted[voted != fused], minlength=256)
    rows: list[dict[str, Any]] = []
    for name in classes:
        models = [model for model, _ in predictions if name in able[model]]
        index = scheme.ids[name]
        rows.append(
            {
                "class": name,
                "source": _source(name, known, reviewed, models),
                "step": "fuse",
                "voxels_changed": int(lost[index]),
                "volume_ml": float(counts[index] * voxel_ml),
            }
        )
    return fused, [*rows, *_covered(rows, overlap, known, scheme)]


def _source(name: str, known: Collection[str], reviewed: Collection[str], models: Sequence[str]) -> str:
    if name in known:
        return "reviewer" if name in reviewed else "truth"
    return "+".join(models) or "none"


def _covered(rows: Sequence[Row], overlap: np.ndarray, known: Collection[str], scheme: ClassScheme) -> list[Row]:
    """Return a row for each class that was predicted and of which something went to another organ."""
    taken = {row["class"]: int(overlap[scheme.ids[row["class"]]]) for row in rows if row["class"] not in known}
    covered = [row for row in rows if taken.get(row["class"])]
    return [{**row, "step": "overlap", "voxels_changed": taken[row["class"]]} for row in covered]


def give_tumor_to_organs(
    fused: np.ndarray,
    truth: np.ndarray,
    states: States,
    predictions: Sequence[tuple[str, np.ndarray]],
    scheme: ClassScheme,
    classes: Sequence[str],
    how: TumorVoxels,
    spacing_mm: Sequence[float],
    model_classes: Mapping[str, Sequence[str]] | None = None,
) -> tuple[np.ndarray, list[Row]]:
    """Fill the holes that true tumors leave in a label map of organs (Jia, section 2.3 and algorithm 1).

    The paper classifies the tumor regions into organs and does not say how. ``predicted_organ`` takes what the models
    vote for there, also where the organ is annotated: its annotation ends where its tumor begins. ``nearest_organ``
    takes the nearest organ of the fused map (see :func:`tumor_as_organs`), and so does a case without a prediction. An
    organ that is annotated absent gets nothing.

    Args:
        fused: fused map [z, y, x] of ``classes``, without tumor; not changed.
        truth: the annotated map, with tumor.
        classes, predictions, model_classes: as given to :func:`fuse`.
        spacing_mm: voxel size (z, y, x).

    Returns:
        the filled map, and a provenance row for each class that gained voxels.
    """
    tumors = [scheme.ids[n] for n in scheme.sets.get("tumor", ()) if states.get(n, UNKNOWN) == PRESENT]
    holes = np.isin(truth, tumors) & (fused == BACKGROUND)
    organs = [n for n in scheme.select(list(classes)) if states.get(n, UNKNOWN) != ABSENT]
    if not holes.any() or not organs:
        return fused.copy(), []
    if how == "predicted_organ" and predictions:
        able = {n: tuple(organs if model_classes is None else model_classes.get(n, ())) for n, _ in predictions}
        voted, _ = _vote_by_group(predictions, able, scheme, organs)
        wanted = np.zeros_like(fused) if voted is None else voted
    else:
        wanted = _organ_at_hand(fused, holes, spacing_mm)
    filled = np.where(holes, wanted, fused)
    counts, gained = np.bincount(filled.ravel(), minlength=256), np.bincount(filled[holes], minlength=256)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    rows = []
    for name in organs:
        index = scheme.ids[name]
        if gained[index]:
            row = {"class": name, "source": "truth", "step": "tumor_to_organs", "voxels_changed": int(gained[index])}
            rows.append(row | {"volume_ml": float(counts[index] * voxel_ml)})
    return filled, rows


def leave_ignored(
    labels: np.ndarray,
    truth: np.ndarray,
    states: States,
    scheme: ClassScheme,
    classes: Sequence[str],
    voxel_ml: float,
) -> tuple[np.ndarray, list[Row]]:
    """Return the label map with all voxels ignored that the truth ignores, and a row for each class that lost some.

    What models say there is not taken, not even of classes that nobody looked for: selection judges a class of a case,
    so it could not refuse these voxels alone, and a refused one would become background, which denies the classes that
    annotators did look for. Where they looked for none of ``classes``, there is none to deny, and the map is as it was.

    Args:
        labels, truth: label maps [z, y, x]; not changed.
        states: annotation state of each class; classes not named are unknown.
        classes: classes of the label set.
    """
    if all(states.get(name, UNKNOWN) == UNKNOWN for name in classes):
        return labels, []
    ignored = truth == IGNORED
    lost = np.bincount(labels[ignored], minlength=256)
    left = np.where(ignored, np.uint8(IGNORED), labels)
    counts = np.bincount(left.ravel(order="K"), minlength=256)
    rows = [
        {
            "class": name,
            "source": "none",
            "step": "ignored",
            "voxels_changed": int(lost[scheme.ids[name]]),
            "volume_ml": float(counts[scheme.ids[name]] * voxel_ml),
        }
        for name in classes
        if lost[scheme.ids[name]]
    ]
    return left, rows


def tumor_as_organs(labels: np.ndarray, scheme: ClassScheme, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return a label map for a model of organs, in which each tumor belongs to the nearest organ that it touches.

    Left out, the tumor would be a hole in its organ that the model learns as background. A tumor that touches no organ
    of the map becomes background. What is nearest to ignored voxels is ignored: nobody knows which organ is there.

    Args:
        labels: class ids [z, y, x]; not changed.
        spacing_mm: voxel size (z, y, x).
    """
    holes = np.isin(labels, [scheme.ids[name] for name in scheme.sets.get("tumor", ())])
    if not holes.any():
        return labels
    organs = np.where(holes, BACKGROUND, labels)
    return np.where(holes, _organ_at_hand(organs, holes, spacing_mm), organs)


def _organ_at_hand(organs: np.ndarray, holes: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the nearest label of ``organs`` at each voxel of the holes that touch one; 0 elsewhere."""
    nearest, distance = _nearest_label(organs, spacing_mm)
    parts = connected_components(holes)
    closest = ndimage.minimum(distance, parts, np.arange(1, parts.max(initial=0) + 1))
    touching = np.append(False, np.asarray(closest) <= np.linalg.norm(spacing_mm) * ROUNDING)
    return np.where(touching[parts], nearest, BACKGROUND)


def _nearest_label(labels: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return, at each voxel, the label that is nearest, of equally near ones the smallest, and how far it is in mm.

    Without labels: 0 and infinity.
    """
    best, nearest = np.full(labels.shape, np.inf, np.float32), np.zeros_like(labels)
    for index in np.unique(labels[labels != BACKGROUND]):
        distance = edt.edt(labels != index, anisotropy=tuple(spacing_mm))
        closer = distance < best
        best[closer], nearest[closer] = distance[closer], index
    return nearest, best


def _keep(labels: np.ndarray, scheme: ClassScheme, names) -> np.ndarray:
    """Return a copy of ``labels`` with every class but ``names`` set to background."""
    table = np.zeros(256, np.uint8)
    for name in names:
        table[scheme.ids[name]] = scheme.ids[name]
    return table[labels]


def _vote_by_group(
    predictions: Sequence[tuple[str, np.ndarray]],
    able: Mapping[str, Sequence[str]],
    scheme: ClassScheme,
    classes: Sequence[str],
) -> tuple[np.ndarray | None, np.ndarray]:
    """Vote among the models that know a class; classes known by the same models are voted on together.

    Returns the merged map, and how many voxels of each class id an organ of another group was given.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in classes:
        voters = tuple(i for i, (model, _) in enumerate(predictions) if name in able[model])
        if voters:
            groups.setdefault(voters, []).append(name)
    overlap = np.zeros(256, np.int64)
    if not groups:
        return None, overlap
    tumor = set(scheme.sets.get("tumor", ()))
    merged = np.zeros(predictions[0][1].shape, np.uint8)
    # Later groups fill what is still free; the group with the tumor goes first, so that tumor wins over organs.
    for voters, names in sorted(groups.items(), key=lambda item: not tumor & set(item[1])):
        chosen = vote([_keep(predictions[i][1], scheme, names) for i in voters])
        overlap += _contested(chosen, merged, scheme)
        np.copyto(merged, chosen, where=merged == BACKGROUND)
    return merged, overlap


def _contested(loser: np.ndarray, winner: np.ndarray, scheme: ClassScheme) -> np.ndarray:
    """Count, per class id, the voxels of ``loser`` that carry an organ (not a tumor) in ``winner``."""
    organs = np.ones(256, bool)
    organs[[BACKGROUND, *(scheme.ids[name] for name in scheme.sets.get("tumor", ()))]] = False
    counts = np.bincount(loser[organs[winner]], minlength=256)
    counts[BACKGROUND] = 0
    return counts


def vote(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Return the per-voxel plurality of label maps [z, y, x]; of tied labels the one of the earliest map wins."""
    result = maps[0].copy()
    if len(maps) < 3:
        return result  # one against one is a tie, and ties go to the first
    differ = np.zeros(result.shape, bool)
    for other in maps[1:]:
        differ |= other != result
    ballots = np.stack([m[differ] for m in maps])
    support = np.stack([(ballots == ballot).sum(axis=0, dtype=np.uint8) for ballot in ballots])
    result[differ] = np.take_along_axis(ballots, support.argmax(axis=0)[None], axis=0)[0]
    return result
