"""What the steps share: cases of a shard as the survey found them, and where their files lie."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import CaseError
from labelloop.base.sequences import flat
from labelloop.base.shards import read_manifests
from labelloop.base.tables import read_table, upside_down
from labelloop.cases.annotation import UNKNOWN, from_table
from labelloop.cases.groups import Group, members
from labelloop.cases.table import Case
from labelloop.cases.usable import UsableCase

if TYPE_CHECKING:
    from labelloop.inference.reading import InputImage


def as_cases(rows: Iterable[Mapping[Any, Any]]) -> list[Case]:
    """Return the cases of rows that were checked when the run was set up."""
    return [Case.model_validate(dict(row)) for row in rows]


def read_cases(tables: Iterable[str | Path]) -> list[Case]:
    """Return the cases of several case tables that the run wrote."""
    return as_cases(read_many(tables, "cases").to_dict("records"))


def read_many(paths: Iterable[str | Path], kind: str) -> pd.DataFrame:
    """Read and join tables of one kind."""
    return pd.concat([read_table(path, kind) for path in paths], ignore_index=True)


def learned_patients(cases: Sequence[Case], learned: Iterable[str | Path], learned_from: Collection[str]) -> set[str]:
    """Return those of the patients of ``cases`` that models learned from.

    Args:
        learned: tables of the cases that models were trained with.
        learned_from: data sets that models trained elsewhere may have learned from.
    """
    seen = set(flat(read_table(path, "training_cases").query("split == 'train'")["case"] for path in learned))
    return {case.patient for case in cases if case.case in seen or case.dataset in learned_from}


@dataclass(frozen=True)
class SurveyTables:
    """Tables of some shards: their cases, and what the survey found.

    Args:
        upright: table that says which cases are stored upside down, in runs that ask.
    """

    cases: Sequence[Path]
    geometry: Sequence[Path]
    annotation: Sequence[Path]
    upright: Path | None = None

    def usable(self) -> list[UsableCase]:
        """Return the usable cases: those that the survey of their shard did not set aside."""
        turned = upside_down(self.upright) if self.upright else set()
        geometry = read_many(self.geometry, "geometry").set_index("case")
        states = from_table(read_many(self.annotation, "annotation"))
        images, labels, ids = (geometry[column] for column in ("image_sha256", "label_sha256", "label_ids"))
        return [
            UsableCase(case, states[name], images[name], labels[name], ids[name], upside_down=name in turned)
            for name, case in ((case.case, case) for case in read_cases(self.cases))
            if name in geometry.index
        ]


CaseStates = dict[str, dict[str, str]]
"""Annotation state by case and class."""


def trusted(selected: Path | None, cases: Sequence[UsableCase]) -> tuple[CaseStates, CaseStates]:
    """Return the states that training uses, and what of them people say: annotators and reviewers.

    The first are what annotators gave, or what selection trusts of a label set; cases that are not part of the set are
    left out. In the second, what models say is unknown, and so is what annotators say where the set does not ask them.

    Args:
        selected: table of the label set; None for the truth.
    """
    given = {c.id: c.states for c in cases}
    if selected is None:
        return given, given
    table = read_table(selected, "selected")
    chosen = from_table(table)
    said = from_table(table[table["decision"].isin(["truth", "reviewer"])])
    by_people = {case: dict.fromkeys(states, UNKNOWN) | said.get(case, {}) for case, states in given.items()}
    return {case: chosen[case] for case in given if case in chosen}, by_people


def in_groups(
    cases: Sequence[UsableCase], groups: Sequence[str], scheme: ClassScheme, extra: Mapping[str, Mapping[str, Any]]
) -> list[UsableCase]:
    """Return the cases that belong to any of ``groups``, built-in or the recipe's own (``extra``)."""
    own = {name: Group.model_validate(dict(group)) for name, group in extra.items()}
    states = {c.id: c.states for c in cases}
    wanted = members(states, {c.id: c.case for c in cases}, scheme, own, groups)
    return [c for c in cases if c.id in wanted]


def table_of(extras: dict[str, dict], key: str) -> pd.DataFrame:
    """Return the rows that a ledger remembers under ``key``, with their case."""
    rows: list[dict] = []
    for case, extra in extras.items():
        rows += [{"case": case, **row} for row in extra[key]]
    return pd.DataFrame(rows)


def volume_rows(labels: np.ndarray, voxel_ml: float, names: Iterable[str], scheme: ClassScheme) -> list[dict]:
    """Return the volume of each class of a label map in class ids, with no confidence, as rows of that table."""
    counts = np.bincount(labels.ravel(order="K"), minlength=256) * voxel_ml
    return [{"class": name, "volume_ml": float(counts[scheme.ids[name]]), "confidence": None} for name in names]


class Files:
    """Files that an earlier step made for each case, from its manifests.

    Args:
        what: what the files are, for error messages.
        instead: manifests of another step; what they say of a case counts instead.
    """

    def __init__(self, manifests: Iterable[str | Path], what: str, instead: Iterable[str | Path] = ()):
        self._rows = read_manifests(manifests).to_dict("index") | read_manifests(instead).to_dict("index")
        self._what = what

    def __contains__(self, case: str) -> bool:
        return case in self._rows and self._rows[case]["status"] == "done" and bool(self._rows[case]["file"])

    def withheld(self, case: str) -> bool:
        """Say whether the step handled a case and left no file on purpose."""
        return case in self._rows and self._rows[case]["status"] == "done" and not self._rows[case]["file"]

    def asked(self, case: str) -> bool:
        """Say whether the earlier step was to handle a case."""
        return case in self._rows

    def path(self, case: str) -> Path:
        """Return the file of a case. Raises CaseError with the earlier step's reason when there is none."""
        row = self._rows.get(case)
        if row is None or case not in self:
            why = row["reason"] or "withheld" if row else "the case was not handled"
            found = f"no {self._what.replace('_', ' ')}: {why}"
            raise CaseError(f"no_{self._what}", case, found, "See that reason.", common=True)
        return Path(row["file"])

    def key(self, case: str) -> str:
        """Return the content hash of a case's file; empty when there is none."""
        return self._rows[case]["sha256"] if case in self else ""


def input_image(item: UsableCase, prepared: Files | None = None) -> "InputImage":
    """Return the image of a case, to be segmented.

    Args:
        prepared: images as the plan of the model prepares them. The file is read of a case that has none, and of one
            that is stored upside down: the header of its label map is that of the file.
    """
    from labelloop.inference.reading import InputImage, PreparedFile

    ready = prepared is not None and item.id in prepared and not item.upside_down
    array = PreparedFile(prepared.path(item.id), prepared.key(item.id)) if prepared is not None and ready else None
    image, *more = map(Path, item.case.images)
    return InputImage(
        item.id, image, item.case.modality, item.image_sha256, item.upside_down, prepared=array, more=tuple(more)
    )
