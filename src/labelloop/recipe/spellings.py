"""What keys and values of recipes were called before, so that an old recipe is told the new spelling."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spelling:
    """An old spelling.

    Args:
        place: keys that lead to it from the top of a recipe; ``*`` stands for any name or number.
        new: what to write in its place.
        told_by: says of a value at the place whether it is old; None: the place itself is.
    """

    place: str
    new: str
    told_by: Callable[[Any], bool] | None = None


def _is(*old: Any) -> Callable[[Any], bool]:
    return lambda value: value in old and not isinstance(value, Mapping | list)


def _cleaning(value: Any) -> bool:
    return isinstance(value, Mapping) and "step" in value


CLEAN_VERBS = {
    "islands": "remove_islands: CLASSES",
    "keep_largest": "keep_largest: CLASSES",
    "keep_levels": "keep_slices: CLASSES",
    "tumor_outside_abdomen": "remove_outside_abdomen: tumor",
    "tumor_far_from_organs": "remove_far_from_organs: tumor",
}
"""Former names of cleaning steps, and how they are written."""
CLEANING = "{step: NAME, classes: CLASSES} is {NAME: CLASSES}: " + ", ".join(
    f"{old} is {{{new}}}" for old, new in CLEAN_VERBS.items()
)
MEAN_TEACHER = {
    "consistency": "consistency",
    "on": "consistency_on",
    "weight": "consistency_weight",
    "ramp": "consistency_ramp",
    "decay": "ema_decay",
    "noise": "noise",
    "noise_limit": "noise_limit",
}
CROSS = {"weight": "cross_weight", "samples": "cross_on", "ramp": "cross_ramp", "partly_labeled": "partly_labeled"}

RENAMED = {
    "schedule": "poly_exponent",
    "unlabeled.after": "burn_in",
    "unlabeled.confidence": "confidence_threshold",
    "unlabeled.strong_view": "strong_augmentation",
    "batches.fewest_cases": "min_cases",
    "cutmix.at_least_ml": "min_ml",
    "cutmix.number": "objects_per_patch",
}
"""Former names of keys of a trainer, and what they are called."""


def _beside_kind(names: Mapping[str, str]) -> str:
    return "write its keys beside `kind`: " + ", ".join(
        old if old == new else f"{old} is {new}" for old, new in names.items()
    )


TRAINERS = ("trainers.*", "models.*.trainer")
CLEANED = ("labels.*.clean.*", "inference.*.clean.*")
SPELLINGS: tuple[Spelling, ...] = (
    *(Spelling(f"{place}.mean_teacher", _beside_kind(MEAN_TEACHER)) for place in TRAINERS),
    *(Spelling(f"{place}.cross", _beside_kind(CROSS)) for place in TRAINERS),
    *(Spelling(f"{place}.slices", "write its keys beside `kind`") for place in TRAINERS),
    *(Spelling(f"{place}.translator", "write its keys beside `kind`") for place in TRAINERS),
    *(Spelling(f"{place}.sampling", "write sampling: uniform", _is("cases")) for place in TRAINERS),
    *(Spelling(f"{place}.{old}", f"write {new}") for place in TRAINERS for old, new in RENAMED.items()),
    *(Spelling(place, f"the verb is the key: {CLEANING}", _cleaning) for place in CLEANED),
    *(Spelling(f"{place}.from_mm", "write taller_than_mm") for place in CLEANED),
    Spelling("labels.*.select.demote", "write if_refused"),
    Spelling("labels.*.select.absence", "write absent_if_not_found"),
    Spelling("outside", "write external"),
    Spelling("evaluate.rules", "write protocol"),
    Spelling("inference.*.keep_largest", "write {clean: {keep_largest: CLASSES}}"),
    Spelling(
        "inference.*.near",
        "write {clean: {remove_distant_islands: all, of: CLASS, beyond_z_mm: MM}}, before what keeps the largest",
    ),
    Spelling("inference.*.within_z_mm", "see `near`"),
    Spelling("inference.*.from_mm", "write min_height_mm"),
    Spelling("engine.skip.from_levels", "write min_levels"),
    Spelling("labels.*.transfer.grow_mm", "write dilate_mm"),
    Spelling("labels.*.transfer.grow_z_mm", "write dilate_z_mm"),
)


def old_spellings(raw: Mapping[str, Any]) -> list[str]:
    """Return a line for each old spelling in the content of a recipe: key, and what to write in its place."""
    lines = []
    for spelling in SPELLINGS:
        for place, value in _found(raw, spelling.place.split("."), ()):
            if spelling.told_by is None or spelling.told_by(value):
                lines.append(f"{'.'.join(place)}: an old spelling; {spelling.new}")
    return lines


def _found(content: Any, keys: Sequence[str], before: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Any]]:
    """Yield the places that keys lead to, and what stands there."""
    if not keys:
        yield before, content
        return
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(content, Mapping):
        entries = content.items()
    elif isinstance(content, list):
        entries = enumerate(content)
    for key, value in entries:
        if keys[0] in ("*", str(key)):
            yield from _found(value, keys[1:], (*before, str(key)))
