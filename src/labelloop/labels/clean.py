"""Cleaning as named, counted steps (Zhou): every voxel that a step takes away is in the provenance table.

FLARE evidence says that deleting small tumors by size hurts (PANTHER challenge: every minimum volume lowered the
Dice), so nothing is cleaned unless a recipe lists the step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from labelloop.annotation import UNKNOWN, States
from labelloop.classes import BACKGROUND, ClassScheme
from labelloop.errors import UserError
from labelloop.labels.facts import LabelFacts, outside
from labelloop.labels.settings import (
    CleanStep,
    Islands,
    KeepLargest,
    KeepLevels,
    TumorFarFromOrgans,
    TumorOutsideAbdomen,
)
from labelloop.volume import Geometry


def load_steps(steps: Sequence[Any], scheme: ClassScheme) -> tuple[CleanStep, ...]:
    """Return validated steps with class sets resolved. Raises UserError naming the step at fault."""
    loaded = []
    for number, raw in enumerate(steps, start=1):
        name = raw.get("step") if isinstance(raw, dict) else getattr(raw, "step", raw)
        try:
            step = TypeAdapter(CleanStep).validate_python(raw)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'step'}: {e['msg']}" for e in error.errors())
            raise UserError(f"cleaning step {number} ({name}): {found}") from error
        changes = {key: scheme.select(getattr(step, key)) for key in ("classes", "of") if getattr(step, key, None)}
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
                    "step": step.step,
                    "voxels_changed": removed,
                    "volume_ml": (facts.voxels(name) - removed) * facts.voxel_ml,
                }
            )
    return cleaned, rows


def _remove(step: CleanStep, facts: LabelFacts, name: str, cleaned: np.ndarray) -> int:
    doomed = STEPS[step.step](step, facts, name)
    cleaned[facts.box(name)][doomed] = BACKGROUND
    return int(doomed.sum())


# Each step returns the voxels to remove, as a mask in the box of the class.


def _islands(step: Islands, facts: LabelFacts, name: str) -> np.ndarray:
    parts = facts.components(name)
    small = parts.voxels * facts.voxel_ml < step.below_ml
    if not step.also_largest:
        small[parts.by_size[0] - 1] = False
    return np.concatenate([[False], small])[parts.labels]


def _keep_largest(step: KeepLargest, facts: LabelFacts, name: str) -> np.ndarray:
    parts = facts.components(name)
    kept, levels = parts.by_size[0], _levels(step, facts)
    if levels is not None:
        low, high = (max(0, level - parts.box[0].start) for level in levels)
        inside = np.bincount(parts.labels[low:high].ravel(), minlength=len(parts.voxels) + 1)
        inside[0] = 0
        kept = int(inside.argmax()) if inside.any() else kept
    return (parts.labels > 0) & (parts.labels != kept)


def _keep_levels(step: KeepLevels, facts: LabelFacts, name: str) -> np.ndarray:
    doomed, levels = facts.mask(name), _levels(step, facts)
    if levels is None:
        return np.zeros_like(doomed)
    low, high = (max(0, level - facts.box(name)[0].start) for level in levels)
    doomed[low:high] = False
    return doomed


def _levels(step: KeepLargest | KeepLevels, facts: LabelFacts) -> tuple[int, int] | None:
    """Return the first slice and the one after the last that the step means; None where it means none."""
    spacing, slices = float(facts.spacing[0]), facts.labels.shape[0]
    if not step.of or len(facts.found(step.of)) < len(step.of) or slices * spacing <= (step.from_mm or 0):
        return None
    largest = [(parts := facts.components(name)).boxes[parts.by_size[0] - 1][0] for name in step.of]
    low, high = min(z.start for z in largest), max(z.stop for z in largest)
    low = 0 if step.below_mm is None else low - round(step.below_mm / spacing)
    return max(0, low), slices if step.above_mm is None else high + round(step.above_mm / spacing)


def _outside_abdomen(step: TumorOutsideAbdomen, facts: LabelFacts, name: str) -> np.ndarray:
    of, mask, box = _others(step.of, facts, name), facts.mask(name), facts.box(name)
    if not of:
        return np.zeros_like(mask)  # without organs nobody knows where the abdomen is
    return outside(mask, box, facts.abdomen_box(of, step.above_mm, step.below_mm, step.aside_mm))


def _far_from_organs(step: TumorFarFromOrgans, facts: LabelFacts, name: str) -> np.ndarray:
    of, parts = _others(step.of, facts, name), facts.components(name)
    far = np.zeros(len(parts.voxels) + 1, bool)
    for number in range(1, len(far)) if of else ():
        box = parts.boxes[number - 1]
        inner = tuple(slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, parts.box, strict=True))
        far[number] = np.isinf(facts.distance_mm(parts.labels[inner] == number, box, of, step.beyond_mm))
    return far[parts.labels]


def _others(names: Sequence[str], facts: LabelFacts, name: str) -> tuple[str, ...]:
    return facts.found(n for n in names if n != name)


STEPS: dict[str, Callable[[Any, LabelFacts, str], np.ndarray]] = {
    "islands": _islands,
    "keep_largest": _keep_largest,
    "keep_levels": _keep_levels,
    "tumor_outside_abdomen": _outside_abdomen,
    "tumor_far_from_organs": _far_from_organs,
}
