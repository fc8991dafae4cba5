"""What the steps share: cases of a shard as the survey found them, and where their files lie."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import CaseError
from labelloop.base.files import digest
from labelloop.base.shards import read_manifests
from labelloop.base.tables import read_table, upside_down
from labelloop.cases.annotation import from_table
from labelloop.cases.groups import Group, members
from labelloop.cases.survey import read_truth
from labelloop.cases.table import Case
from labelloop.images.scan import read_surveyed
from labelloop.images.volume import Volume, on_its_feet, read


@dataclass(frozen=True)
class Surveyed:
    """A usable case: its row of the case table and what the survey found."""

    case: Case
    states: dict[str, str]
    image_sha256: str
    label_sha256: str
    label_ids: str
    upside_down: bool = False

    @property
    def id(self) -> str:
        """Case id."""
        return self.case.case

    @property
    def truth_key(self) -> str:
        """Fingerprint of the annotators' label as the classes see it."""
        return digest([self.label_sha256, self.label_ids, self.states, *self.turned])

    @property
    def image_key(self) -> str:
        """Fingerprint of the image as it is read."""
        return digest([self.image_sha256, *self.turned]) if self.turned else self.image_sha256

    @property
    def turned(self) -> list[str]:
        """What a fingerprint says of a case that is stored upside down; nothing of others."""
        return ["upside down"] if self.upside_down else []

    def image(self) -> Volume:
        """Read the image; put it on its feet if it is stored upside down."""
        return self._standing(read_surveyed(self.case.image))

    def label(self, path: str | Path) -> Volume:
        """Read a label map that is stored as the image is."""
        return self._standing(read(path))

    def truth(self, scheme: ClassScheme) -> Volume | None:
        """Read the annotators' label map in class ids; None without one."""
        found = read_truth(self.case, scheme)
        return None if found is None else self._standing(found)

    def as_stored(self, volume: Volume) -> Volume:
        """Give a volume that :meth:`image` or :meth:`label` put on its feet the header of the stored files again."""
        return self._standing(volume)  # what turns it once turns it back

    def _standing(self, volume: Volume) -> Volume:
        return on_its_feet(volume) if self.upside_down else volume


def as_cases(rows: Iterable[Mapping[Any, Any]]) -> list[Case]:
    """Return the cases of rows that were checked when the run was set up."""
    return [Case.model_validate(dict(row)) for row in rows]


def read_cases(tables: Iterable[str | Path]) -> list[Case]:
    """Return the cases of several case tables that the run wrote."""
    return as_cases(read_many(tables, "cases").to_dict("records"))


def read_many(paths: Iterable[str | Path], kind: str) -> pd.DataFrame:
    """Read and join tables of one kind."""
    return pd.concat([read_table(path, kind) for path in paths], ignore_index=True)


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

    def usable(self) -> list[Surveyed]:
        """Return the usable cases: those that the survey of their shard did not set aside."""
        turned = upside_down(self.upright) if self.upright else set()
        geometry = read_many(self.geometry, "geometry").set_index("case")
        states = from_table(read_many(self.annotation, "annotation"))
        images, labels, ids = (geometry[column] for column in ("image_sha256", "label_sha256", "label_ids"))
        return [
            Surveyed(case, states[name], images[name], labels[name], ids[name], upside_down=name in turned)
            for name, case in ((case.case, case) for case in read_cases(self.cases))
            if name in geometry.index
        ]


def trusted(selected: Path | None, cases: Sequence[Surveyed]) -> dict[str, dict[str, str]]:
    """Return the states that training uses: what annotators gave, or what selection trusts of a label set.

    Cases that are not part of the label set are left out.

    Args:
        selected: table of the label set; None for the truth.
    """
    given = {c.id: c.states for c in cases}
    if selected is None:
        return given
    chosen = from_table(read_table(selected, "selected"))
    return {case: chosen[case] for case in given if case in chosen}


def in_groups(
    cases: Sequence[Surveyed], groups: Sequence[str], scheme: ClassScheme, extra: Mapping[str, Mapping[str, Any]]
) -> list[Surveyed]:
    """Return the cases that belong to any of ``groups``, built-in or the recipe's own (``extra``)."""
    own = {name: Group.model_validate(dict(group)) for name, group in extra.items()}
    states = {c.id: c.states for c in cases}
    wanted = members(states, {c.id: c.case for c in cases}, scheme, own, groups)
    return [c for c in cases if c.id in wanted]


def table_of(extras: dict[str, dict], key: str) -> pd.DataFrame:
    """Return the rows that a ledger remembers under ``key``, with their case."""
    return pd.DataFrame([{"case": case, **row} for case, extra in extras.items() for row in extra[key]])


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


def engine_case(item: Surveyed, prepared: Files | None = None):
    """Return a case as the inference engine takes it.

    Args:
        prepared: images as the plan of the model prepares them. The file is read of a case that has none, and of one
            that is stored upside down: the header of its label map is that of the file.
    """
    from labelloop.inference.reading import Case as EngineCase
    from labelloop.inference.reading import PreparedFile

    ready = prepared is not None and item.id in prepared and not item.upside_down
    array = PreparedFile(prepared.path(item.id), prepared.key(item.id)) if prepared is not None and ready else None
    image = Path(item.case.image)
    return EngineCase(item.id, image, item.case.modality, item.image_sha256, item.upside_down, prepared=array)
