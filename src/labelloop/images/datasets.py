"""Data sets: which label id means which class, and which classes are annotated (``config/datasets/*.yaml``)."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import PrivateAttr, field_validator, model_validator

from labelloop.base.channels import ChannelNames, modality_of
from labelloop.base.classes import BACKGROUND, IGNORE, IGNORED, ClassScheme, Names, Strict, load_classes
from labelloop.base.documents import read_yaml, validated
from labelloop.base.errors import CaseError, UserError, nearest
from labelloop.base.files import digest, write_text
from labelloop.base.lookup import files, find
from labelloop.base.sequences import flat
from labelloop.images.volume import whole_numbers

REASONS = {
    "label_not_finite": "Write the label again with whole numbers only.",
    "label_fractional": "The label was resampled with interpolation or is a probability map; resample it with nearest "
    "neighbor.",
    "label_unknown_ids": "Add these ids to the data set file (null for a structure that is no class), or name the "
    "right data set in the case table.",
}
"""What to do about each reason code of this module."""

LARGEST_ID = 65535
BLOCK = 1 << 22


class Dataset(Strict):
    """How one data set writes its label maps.

    ``labels`` maps the data set's own ids to class names; null stands for a known structure that is no class of
    ours, ``ignore`` for voxels whose class nobody knows, as nnU-Net's ignore label: they are left out of losses and
    scores. ``annotated`` names the classes that somebody looked for in every labeled case (a case table can say
    otherwise for a case); by default the classes that ``labels`` maps to. ``channels`` says what the channels of an
    image are, in order, where they are several; ``modality`` is that of the first then. ``license`` is told in
    ``model.json`` of the models that learn from the data set.
    """

    name: str
    modality: Literal["CT", "MR"]
    channels: ChannelNames = ()
    source: str = ""
    license: str = ""
    labels: dict[int, str | None]
    annotated: Names
    label_set_notes: str = ""
    _class_ids: dict[str, int] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _annotated_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("annotated") is None and isinstance(values.get("labels"), dict):
            names = (n for n in values["labels"].values() if n and n != IGNORE)
            values = values | {"annotated": tuple(dict.fromkeys(names))}
        return values

    @model_validator(mode="after")
    def _modality_of_the_first(self) -> "Dataset":
        if self.channels and self.modality != modality_of(self.channels[0]):
            expected = modality_of(self.channels[0])
            raise ValueError(f"modality {self.modality}: the first channel is {self.channels[0]}; expected {expected}")
        return self

    @field_validator("labels")
    @classmethod
    def _background_is_zero(cls, labels: dict[int, str | None]) -> dict[int, str | None]:
        if BACKGROUND in labels:
            raise ValueError("id 0 is background in every data set and is not listed")
        return labels

    @property
    def named(self) -> dict[int, str]:
        """Class name of each id that stands for a class, of ours or of another scheme."""
        return {own: name for own, name in self.labels.items() if name and name != IGNORE}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what the data set's ids mean: the class id of each in the scheme."""
        return digest({own: self._value(own) for own in self.labels})

    @property
    def content(self) -> dict[str, Any]:
        """What the survey of a case of this data set depends on: all but its license."""
        return self.model_dump(exclude={"license"} if self.channels else {"license", "channels"})

    @property
    def ignored(self) -> frozenset[int]:
        """The data set's own ids of voxels whose class nobody knows."""
        return frozenset(own for own, name in self.labels.items() if name == IGNORE)

    def class_of(self, own_id: int) -> str | None:
        """Return the class that one of the data set's own ids stands for in the scheme; None when in no class."""
        name = self.labels.get(own_id)
        return name if name in self._class_ids else None

    def _value(self, own_id: int) -> int:
        """Return what a voxel with one of the data set's own ids is in class ids."""
        return IGNORED if own_id in self.ignored else self._class_ids.get(self.labels.get(own_id) or "", BACKGROUND)

    def to_classes(self, array: np.ndarray, file: str = "label map") -> np.ndarray:
        """Return ``array`` (own ids, any shape, whole numbers of any type) as uint8 class ids of the scheme.

        Ignored voxels become :data:`~labelloop.base.classes.IGNORED`.

        Args:
            array: label map in the data set's own ids.
            file: name to use in errors.

        Raises:
            CaseError: ``label_not_finite``, ``label_fractional`` or ``label_unknown_ids``.
        """
        array = whole_ids(array, file)
        own = sorted(label_counts(array, file))
        self.check_ids(own, file)
        ids = {i: self._value(i) for i in own}
        lowest = own[0] if own else 0
        table = np.zeros(own[-1] - lowest + 1 if own else 1, np.uint8)
        for own_id, class_id in ids.items():
            table[own_id - lowest] = class_id
        if lowest == 0:
            return table[array]
        return table[array.astype(np.int64) - lowest]

    def check_ids(self, own_ids: Iterable[int], file: str) -> None:
        """Raise CaseError ``label_unknown_ids`` for ids of a label map that the data set file does not list."""
        unknown = sorted(set(own_ids) - set(self.labels) - {BACKGROUND})
        if unknown:
            known = ", ".join(map(str, sorted(self.labels))) or "none"
            found = f"label ids {', '.join(map(str, unknown[:20]))}; data set {self.name} knows {known}"
            raise CaseError("label_unknown_ids", file, found, REASONS["label_unknown_ids"])


def whole_ids(array: np.ndarray, file: str = "label map") -> np.ndarray:
    """Return a label map of whole numbers of any type, floats included, as integers.

    Raises:
        CaseError: ``label_not_finite``, ``label_fractional``, or ``label_unknown_ids`` for ids no label map has.
    """
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if not np.isfinite([low, high]).all():
        raise CaseError("label_not_finite", file, "NaN or infinite label values", REASONS["label_not_finite"])
    if low < -LARGEST_ID or high > LARGEST_ID:
        found = f"values from {low:.10g} to {high:.10g}"
        raise CaseError("label_unknown_ids", file, found, REASONS["label_unknown_ids"])
    try:
        return whole_numbers(array) if np.issubdtype(array.dtype, np.floating) else array
    except ValueError as error:
        raise CaseError("label_fractional", file, str(error), REASONS["label_fractional"]) from error


def label_counts(array: np.ndarray, file: str = "label map") -> dict[int, int]:
    """Return how many voxels carry each id (background too) of a label map of whole numbers, floats included.

    Raises:
        CaseError: ``label_not_finite``, ``label_fractional``, or ``label_unknown_ids`` for ids no label map has.
    """
    array = whole_ids(array, file)
    if not array.size:
        return {}
    low, high = int(array.min()), int(array.max())
    flat, counts = array.ravel(order="K"), np.zeros(high - low + 1, np.int64)
    for start in range(0, flat.size, BLOCK):  # bincount works on 8-byte integers: not on a whole scan at once
        counts += np.bincount(flat[start : start + BLOCK].astype(np.int64) - low, minlength=counts.size)
    return {int(i) + low: int(counts[i]) for i in np.flatnonzero(counts)}


def read_dataset(name: str | Path) -> Dataset:
    """Read a data set file without a class scheme: good for its modality and ids, not for :meth:`to_classes`.

    Raises:
        UserError: when there is no such file or it is wrong; every problem is one line.
    """
    path = find("datasets", name)
    return validated(Dataset, read_yaml(path), path)


def all_class_names() -> frozenset[str]:
    """Return the classes of all schemes that have a name, the user's and those that labelloop brings."""
    return _class_names(tuple(file.resolve() for file in files("classes")))


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a class's name in an order that is the same for all: ``Kidney left`` is left_kidney."""
    return tuple(sorted(name.lower().replace("-", "_").replace(" ", "_").split("_")))


def as_known(name: str) -> str:
    """Return the name by which a class scheme calls a class, whatever the order of its words; else the name itself."""
    known = all_class_names()
    alike = [other for other in sorted(known) if words_of(other) == words_of(name)]
    return name if name in known or not alike else alike[0]


def called_otherwise(own: Mapping[str, int], dataset: Dataset) -> list[str]:
    """Return a line for each label whose name is a class of a class scheme, and whose id a data set gives to another.

    Args:
        own: ids by name, as a model or a ``dataset.json`` says them. What the data set lists as no class is none.
    """
    known = {name: as_known(name) for name in own if as_known(name) in all_class_names()}
    said = {name: dataset.named.get(own[name]) for name in known}
    return [
        f"{own[name]} is {name}, and {other} in data set {dataset.name}"
        for name, other in said.items()
        if other is not None and as_known(other) != known[name]
    ]


def write_dataset(path: Path, dataset: Dataset, head: str) -> None:
    """Write a data set file, for people to edit, under some lines of comment."""
    told = {"name", "modality", "channels", "source", "license", "labels"}
    content = dataset.model_dump(include=told, exclude_defaults=True)
    if dataset.channels:
        content["channels"] = list(dataset.channels)
    write_text(path, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


@cache
def _class_names(schemes: tuple[Path, ...]) -> frozenset[str]:
    return frozenset(flat(load_classes(path).names for path in schemes))


def load_dataset(name: str | Path, scheme: ClassScheme) -> Dataset:
    """Load a data set by name or path for a class scheme.

    A class that only another scheme by name has counts as a structure that is no class of ours, so that one file
    serves several schemes; a name that no scheme has is an error.

    Raises:
        UserError: see :func:`read_dataset`; also for class names that no scheme has.
    """
    return bound(read_dataset(name), scheme, find("datasets", name))


def bound(dataset: Dataset, scheme: ClassScheme, path: Path) -> Dataset:
    """Return a data set for a class scheme; see :func:`load_dataset`. ``path`` is for messages."""
    known = all_class_names() | set(scheme.names)
    listed = set(dataset.named.values())
    used = {"labels": dataset.named.values(), "annotated": [name for name in dataset.annotated if name not in listed]}
    lines = []
    for key, names in used.items():
        wrong = dict.fromkeys(name for name in names if name not in known)
        not_named = [f"no class {name!r}{nearest(name, known)}" for name in wrong]
        lines += [f"{path}: {key}: {problem}; null: a structure that is no class" for problem in not_named]
    if lines:
        raise UserError("\n".join(lines))
    result = dataset.model_copy(update={"annotated": tuple(n for n in dataset.annotated if n in scheme.ids)})
    result._class_ids = dict(scheme.ids)
    return result


def of_scheme(scheme: ClassScheme) -> Dataset:
    """Return a data set whose label maps carry the ids of a class scheme."""
    dataset = Dataset(name=scheme.name, modality="CT", labels={c.id: c.name for c in scheme.classes}, annotated=())
    dataset._class_ids = dict(scheme.ids)
    return dataset
