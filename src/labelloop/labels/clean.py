"""Cleaning as named, counted steps (Zhou): every voxel that a step takes away is in the provenance table.

FLARE evidence says that deleting small tumors by size hurts (PANTHER challenge: every minimum volume lowered the
Dice), so nothing is cleaned unless a recipe lists the step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from labelloop.base.classes import BACKGROUND, ClassScheme
from labelloop.base.documents import place_of
from labelloop.base.errors import UserError
from labelloop.cases.annotation import UNKNOWN, States
from labelloop.images.volume import Geometry
from labelloop.labels.facts import LabelFacts, outside, unshifted
from labelloop.labels.settings import (
    CleanStep,
    InSlices,
    KeepLargest,
    KeepSlices,
    RemoveDistantIslands,
    RemoveFarFromOrgans,
    RemoveIslands,
    RemoveOutsideAbdomen,
)


def load_steps(steps: Sequence[Any], scheme: ClassScheme) -> tuple[CleanStep, ...]:
    """Return validated steps with class sets resolved. Raises UserError naming the step at fault."""
    loaded = []
    for number, raw in enumerate(steps, start=1):
        try:
            step = TypeAdapter(CleanStep).validate_python(raw)
        except ValidationError as error:
            found = "; ".join(f"{place_of(e['loc'])}: {e['msg']}".lstrip(": ") for e in error.errors())
            raise UserError(f"cleaning step {number} ({raw}): {found}") from error
        changes = {key: scheme.select(getattr(step, key)) for key in (step.verb, "of") if getattr(step, key, None)}
        loaded.append(step.model_copy(update=changes))
    return tuple(loaded)


def clean(
    labels: np.ndarray,
    geometry: Geometry,
    steps: Sequence[Any],
    scheme: ClassScheme,
    states: States | None = None,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the cleaned copy of ``labels`` and one provenance row (without ``case``) per step and class.

    Steps run in the order given, each on what the one before left. Removed voxels become background; ``source`` is
    "none", because nobody labeled them.

    Args:
        labels: canonical uint8 class ids [z, y, x].
        geometry: canonical geometry (mm).
        steps: steps, or dictionaries with the same keys.
        states: annotation states; given these, annotated classes are truth and stay as they are.
    """
    cleaned, rows = np.array(labels, np.uint8), []
    for step in load_steps(steps, scheme):
        facts = LabelFacts(cleaned, geometry, scheme)
        cleaned = cleaned.copy()
        for name in step.classes:
            if states is not None and states.get(name, UNKNOWN) != UNKNOWN:
                continue
            removed = _remove(step, facts, name, cleaned) if facts.voxels(name) else 0
            rows.append(
                {
                    "class": name,
                    "source": "none",
                    "step": step.verb,
                    "voxels_changed": removed,
                    "volume_ml": (facts.voxels(name) - removed) * facts.voxel_ml,
                }
            )
    return cleaned, rows


def _remove(step: CleanStep, facts: LabelFacts, name: str, cleaned: np.ndarray) -> int:
    if isinstance(step, InSlices) and facts.height_mm <= (step.taller_than_mm or 0):
        return 0
    removed = STEPS[step.verb](step, facts, name)
    cleaned[facts.box(name)][removed] = BACKGROUND
    return int(removed.sum())


# Each step returns the voxels to remove, as a mask in the box of the class.


def _remove_islands(step: RemoveIslands, facts: LabelFacts, name: str) -> np.ndarray:
    parts = facts.components(name)
    small = parts.voxels * facts.voxel_ml < step.below_ml
    if not step.also_largest:
        small[parts.by_size[0] - 1] = False
    return np.concatenate([[False], small])[parts.labels]


def _keep_largest(step: KeepLargest, facts: LabelFacts, name: str) -> np.ndarray:
    parts = facts.components(name)
    kept, slices = parts.by_size[0], _slices(step, step.of, facts)
    if slices is not None:
        low, high = (max(0, number - parts.box[0].start) for number in slices)
        inside = np.bincount(parts.labels[low:high].ravel(), minlength=len(parts.voxels) + 1)
        inside[0] = 0
        kept = int(inside.argmax()) if inside.any() else kept
    return (parts.labels > 0) & (parts.labels != kept)


def _keep_slices(step: KeepSlices, facts: LabelFacts, name: str) -> np.ndarray:
    removed, slices = facts.mask(name), _slices(step, step.of, facts)
    if slices is None:
        return np.zeros_like(removed)
    low, high = (max(0, number - facts.box(name)[0].start) for number in slices)
    removed[low:high] = False
    return removed


def _slices(step: InSlices, of: Sequence[str] | None, facts: LabelFacts) -> tuple[int, int] | None:
    """Return the first slice and the one after the last that the step means; None where it means none."""
    if not of or len(facts.found(of)) < len(of):
        return None
    spacing = float(facts.spacing[0])
    parts = [facts.components(name) for name in of]
    largest = [found.boxes[found.by_size[0] - 1][0] for found in parts]
    low, high = min(z.start for z in largest), max(z.stop for z in largest)
    low = 0 if step.below_mm is None else low - round(step.below_mm / spacing)
    last = facts.labels.shape[0] if step.above_mm is None else high + round(step.above_mm / spacing)
    return max(0, low), last


def _remove_distant_islands(step: RemoveDistantIslands, facts: LabelFacts, name: str) -> np.ndarray:
    box, mask = facts.box(name), facts.mask(name)
    of = facts.found(step.of)
    if not of:
        return np.zeros_like(mask)
    islands = facts.joint_components(facts.found(step.classes))
    anchor = facts.joint_components(of)
    center = anchor.centers_z[anchor.by_size[0] - 1]
    far = [abs(island - center) * facts.spacing[0] > step.beyond_z_mm for island in islands.centers_z]
    return mask & np.array([False, *far])[islands.labels[unshifted(box, islands.box)]]


def _remove_outside_abdomen(step: RemoveOutsideAbdomen, facts: LabelFacts, name: str) -> np.ndarray:
    of, mask, box = _others(step.of, facts, name), facts.mask(name), facts.box(name)
    if not of:
        return np.zeros_like(mask)  # without organs nobody knows where the abdomen is
    return outside(mask, box, facts.abdomen_box(of, step.above_mm, step.below_mm, step.aside_mm))


def _remove_far_from_organs(step: RemoveFarFromOrgans, facts: LabelFacts, name: str) -> np.ndarray:
    of, parts = _others(step.of, facts, name), facts.components(name)
    far = np.zeros(len(parts.voxels) + 1, bool)
    if of:
        away = facts.distances_mm(parts, range(1, len(far)), of, step.beyond_mm)
        far[1:] = np.isinf(list(away.values()))
    return far[parts.labels]


def _others(names: Sequence[str], facts: LabelFacts, name: str) -> tuple[str, ...]:
    return facts.found(n for n in names if n != name)


STEPS: dict[str, Callable[[Any, LabelFacts, str], np.ndarray]] = {
    "remove_islands": _remove_islands,
    "keep_largest": _keep_largest,
    "keep_slices": _keep_slices,
    "remove_distant_islands": _remove_distant_islands,
    "remove_outside_abdomen": _remove_outside_abdomen,
    "remove_far_from_organs": _remove_far_from_organs,
}
"""What each verb removes."""
