"""The rules of the FLARE challenges for DSC and NSD of one case, in their official versions and a corrected one.

Source: JunMa11/FLARE, ``FLARE22/23/24_DSC_NSD_Eval.py`` (MIT). All of them score both-empty 1/1 and one-empty 0/0.
The official scripts take the third array axis for z; here every volume is turned to canonical orientation first,
which is the same on their data and right on any other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from labelloop.base.classes import BACKGROUND, IGNORED, ClassInfo, ClassScheme
from labelloop.base.errors import CaseError, UserError
from labelloop.cases.annotation import ABSENT, UNKNOWN, States
from labelloop.images.volume import Volume, canonical, whole_numbers
from labelloop.metrics.surface import Box, dice, surface_dice, volume_ml

Spacing = tuple[float, float, float]
Masks = tuple[ClassInfo, np.ndarray, np.ndarray, Spacing, np.ndarray | None]


@dataclass(frozen=True)
class Rules:
    """One version of the rules.

    Args:
        nsd_from_dsc: NSD is 0 without being computed where DSC is below this value.
        tube_top: whether the top slice of the truth is scored for tubular classes, which are scored on the truth's
            z-range only. The official scripts leave it out; a tube of one slice makes them crash (NaN, then
            ValueError), so there is no official number: here that one slice is scored, in every version.
        decimals: DSC and NSD are rounded to this many decimals per case and class; None keeps them all.
    """

    nsd_from_dsc: float
    tube_top: bool
    decimals: int | None


RULES = {
    # As the numbers of each year were made: the FLARE22 script had no rule on low DSC until 2024-03-29, the FLARE23
    # script used 0.1 until 2024-03-18 (facts: git history of JunMa11/FLARE).
    "official-2022": Rules(nsd_from_dsc=0.0, tube_top=False, decimals=4),
    "official-2023": Rules(nsd_from_dsc=0.1, tube_top=False, decimals=4),
    "official-2024": Rules(nsd_from_dsc=0.2, tube_top=False, decimals=4),
    "corrected": Rules(nsd_from_dsc=0.2, tube_top=True, decimals=None),
}


def get_rules(name: str) -> Rules:
    """Return a version of the rules by name. Raises UserError for a name that does not exist."""
    if name not in RULES:
        raise UserError(f"no rules {name!r}; known: {', '.join(RULES)}")
    return RULES[name]


def score_case(
    truth: Volume,
    prediction: Volume,
    scheme: ClassScheme,
    rules: str = "official-2024",
    states: States | None = None,
    file: str = "prediction",
) -> list[dict]:
    """Score every annotated class of one case.

    Args:
        truth, prediction: label maps in the ids of ``scheme``; ids that it lacks are not scored. Voxels that the truth
            ignores are background in both, and a class that it does not hold beside them is not scored, because it may
            lie there, unless it is known to be absent.
        rules: a name in :data:`RULES`.
        states: annotation of the case. A class that is ``unknown`` or not named is not scored; None scores all.
        file: how errors name the prediction.

    Returns:
        Rows of a "scores" table without ``case``.

    Raises:
        CaseError: ``grid_differs`` when truth and prediction are not on the same grid (axes may be stored in another
            order or direction), ``label_values`` when label values are not whole numbers.
        UserError: when there are no such rules.
    """
    version = get_rules(rules)
    classes = annotated_classes(scheme, scheme.names, states, truth)
    return [_row(*masks, version) for masks in class_masks(truth, prediction, classes, file)]


def annotated_classes(
    scheme: ClassScheme, names: Iterable[str], states: States | None, truth: Volume
) -> list[ClassInfo]:
    """Return those of the classes ``names`` that are not ``unknown`` in ``states``; None is all known.

    Of a truth that ignores voxels: those that it holds, and those that are ``absent``.
    """
    known = [scheme[n] for n in names if states is None or states.get(n, UNKNOWN) != UNKNOWN]
    if not (truth.array == IGNORED).any():
        return known
    held, absent = set(np.unique(truth.array).tolist()), {n for n, state in (states or {}).items() if state == ABSENT}
    return [info for info in known if info.id in held or info.name in absent]


def class_masks(
    truth: Volume, prediction: Volume, classes: Sequence[ClassInfo], file: str = "prediction"
) -> Iterator[Masks]:
    """Yield each class with its boolean masks [z, y, x] in truth and prediction, and the voxel size (z, y, x) in mm.

    The masks are those of the box that holds the class in both, in canonical orientation. A last mask is that of
    ignored voxels, which are in neither; the box then has a margin of a voxel. None: nothing is ignored.

    Raises:
        CaseError: as :func:`score_case`.
    """
    truth, prediction = canonical(truth), canonical(prediction)
    difference = truth.geometry.difference(prediction.geometry)
    if difference:
        action = "Resample the prediction to the grid of the truth"
        raise CaseError("grid_differs", file, f"truth and prediction differ: {difference}", action)
    arrays, ignored = [_labels(truth, "truth"), _labels(prediction, file)], None
    if (arrays[0] == IGNORED).any():
        ignored = arrays[0] == IGNORED
        arrays = [np.where(ignored, BACKGROUND, array) for array in arrays]
    highest = max((c.id for c in classes), default=0)
    boxes = [ndimage.find_objects(array, max_label=highest) for array in arrays]
    for info in classes:
        box = _union(boxes[0][info.id - 1], boxes[1][info.id - 1])
        box = box if ignored is None else _widened(box)
        beside = None if ignored is None else ignored[box]
        yield info, arrays[0][box] == info.id, arrays[1][box] == info.id, truth.geometry.spacing_zyx, beside


def _labels(volume: Volume, file: str) -> np.ndarray:
    try:
        return whole_numbers(volume.array)
    except ValueError as error:
        raise CaseError("label_values", file, str(error), "Write class ids, not probabilities") from error


def _union(first: Box | None, second: Box | None) -> Box:
    if first is None or second is None:
        return first or second or (slice(0, 0),) * 3
    z, y, x = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
    return z, y, x


def _widened(box: Box) -> Box:
    """Return a box that is a voxel larger on each side; numpy cuts off what lies beyond the array's end."""
    z, y, x = (slice(max(0, side.start - 1), side.stop + 1 if side.stop else 0) for side in box)
    return z, y, x


def _row(
    info: ClassInfo,
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: Spacing,
    ignored: np.ndarray | None,
    rules: Rules,
) -> dict:
    volumes = volume_ml(truth, spacing), volume_ml(prediction, spacing)
    dsc, nsd = _dsc_nsd(info, truth, prediction, spacing, ignored, rules)
    if rules.decimals is not None:  # as numpy rounds, like the scripts: 0.55625 to 0.5562, where Python gives 0.5563
        dsc, nsd = (float(np.round(score, rules.decimals)) for score in (dsc, nsd))
    return {
        "class": info.name,
        "dsc": dsc,
        "nsd": nsd,
        "volume_truth_ml": volumes[0],
        "volume_prediction_ml": volumes[1],
        "volume_error_ml": volumes[1] - volumes[0],
    }


def _dsc_nsd(
    info: ClassInfo,
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: Spacing,
    ignored: np.ndarray | None,
    rules: Rules,
) -> tuple[float, float]:
    there = truth.any(), prediction.any()
    if not all(there):
        return (0.0, 0.0) if any(there) else (1.0, 1.0)
    if info.tube:
        scored = _tube_range(truth, rules.tube_top)
        truth, prediction = truth[scored], prediction[scored]
        ignored = None if ignored is None else ignored[scored]
    dsc = float(dice(truth, prediction))
    if dsc < rules.nsd_from_dsc:
        return dsc, 0.0
    return dsc, surface_dice(truth, prediction, spacing, info.tolerance_mm, ignored)


def _tube_range(truth: np.ndarray, top: bool) -> slice:
    """Return the z-slices on which a tubular class is scored; see :class:`Rules` for one slice."""
    there = np.flatnonzero(truth.any(axis=(1, 2)))
    start, stop = int(there[0]), int(there[-1]) + 1
    return slice(start, stop if top else max(stop - 1, start + 1))
