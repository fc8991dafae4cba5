"""What the steps share: cases of a shard as the survey found them, and where their files lie."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from labelloop.annotation import from_table
from labelloop.cases import Case
from labelloop.classes import ClassScheme
from labelloop.errors import CaseError
from labelloop.files import digest
from labelloop.groups import Group, members
from labelloop.recipe import TRUTH
from labelloop.shards import read_manifests
from labelloop.tables import read_table

Rows = Sequence[Mapping[str, str]]
"""Rows of the case table as they travel through a rule's params."""


@dataclass(frozen=True)
class Surveyed:
    """A usable case: its row of the case table and what the survey found."""

    case: Case
    states: dict[str, str]
    image_sha256: str
    label_sha256: str

    @property
    def id(self) -> str:
        """Case id."""
        return self.case.case

    @property
    def truth_key(self) -> str:
        """Fingerprint of the annotators' label as the classes see it."""
        return digest([self.label_sha256, self.case.dataset, self.states])


def as_cases(rows: Rows) -> list[Case]:
    """Return the cases of rows that were checked when the run was set up."""
    return [Case.model_validate(dict(row)) for row in rows]


def read_many(paths: Iterable[str | Path], kind: str) -> pd.DataFrame:
    """Read and join tables of one kind."""
    return pd.concat([read_table(path, kind) for path in paths], ignore_index=True)


def surveyed(rows: Rows, survey: str | Path, shards: Iterable[str]) -> list[Surveyed]:
    """Return the usable cases among ``rows``: those that the survey of their shard did not set aside."""
    shards = list(shards)
    geometry = read_many([Path(survey) / f"{s}.geometry.csv" for s in shards], "geometry").set_index("case")
    states = from_table(read_many([Path(survey) / f"{s}.annotation.csv" for s in shards], "annotation"))
    return [
        Surveyed(case, states[case.case], *geometry.loc[case.case, ["image_sha256", "label_sha256"]])
        for case in as_cases(rows)
        if case.case in geometry.index
    ]


def trusted(labels: str, results: Path, cases: Sequence[Surveyed]) -> dict[str, dict[str, str]]:
    """Return the states that training uses: what annotators gave, or what selection trusts of a label set.

    Cases that are not part of the label set are left out.
    """
    given = {c.id: c.states for c in cases}
    if labels == TRUTH:
        return given
    chosen = from_table(read_table(results / "labels" / labels / "selected.csv", "selected"))
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
    """Files that an earlier step made for each case, from its manifests."""

    def __init__(self, manifests: Iterable[str | Path], what: str):
        self._rows = read_manifests(manifests).to_dict("index")
        self._what = what

    def __contains__(self, case: str) -> bool:
        return case in self._rows and self._rows[case]["status"] == "done"

    def path(self, case: str) -> Path:
        """Return the file of a case. Raises CaseError with the earlier step's reason when there is none."""
        row = self._rows.get(case)
        if row is None or row["status"] != "done":
            why = row["reason"] if row else "the case was not handled"
            raise CaseError(f"no_{self._what}", case, f"no {self._what.replace('_', ' ')}: {why}", "See that reason.")
        return Path(row["file"])

    def key(self, case: str) -> str:
        """Return the content hash of a case's file; empty when there is none."""
        return self._rows[case]["sha256"] if case in self else ""


def order_by(text: str, seed: int) -> str:
    """Return a hash to sort by: an order of cases that does not depend on which other cases there are."""
    return digest([seed, text])
