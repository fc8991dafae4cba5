"""Patients: scans of one person resemble each other, so that what is promised of people counts people, not scans."""

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from labelloop.base.errors import UserError
from labelloop.base.files import digest
from labelloop.base.wording import count, named
from labelloop.cases.table import Case, load_cases

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def patients_of(table: "pd.DataFrame") -> dict[str, str]:
    """Return the patient of each case of a table with the columns ``case`` and ``patient``; without one, the case."""
    return {case: patient or case for case, patient in zip(table["case"], table["patient"], strict=True)}


def one_a_patient(cases: Iterable[str], patients: Mapping[str, str]) -> set[str]:
    """Return one case of each patient: those of different patients are independent.

    It is drawn by a hash of the case's id, which knows nothing of what was measured on it.

    Args:
        patients: patient of each case; a case that it does not name is a patient of its own.
    """
    drawn: dict[str, str] = {}
    for case in sorted(set(cases), key=digest):
        drawn.setdefault(patients.get(case, case), case)
    return set(drawn.values())


def cases_of(table: Path, wanted: Collection[str], what: str) -> dict[str, Case]:
    """Return the rows of a case table for the cases ``wanted``; those that it does not name are told in the log.

    Args:
        what: what these cases are, in the singular, for messages.

    Raises:
        UserError: when the table is no case table, or names none of these cases.
    """
    cases, rejected = load_cases(table)
    for row in rejected:
        log.warning("%s: %s", row["case"], row["found"])
    found = {case.case: case for case in cases if case.case in wanted}
    if not found:
        raise UserError(f"{table}: names none of these {what}s; its column `case` would name {min(wanted)}")
    unnamed = sorted(set(wanted) - set(found))
    if unnamed:
        log.warning("%s: no row of %s: %s", table, count(len(unnamed), what), named(unnamed))
    return found
