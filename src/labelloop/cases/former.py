"""A case table that is written over: what people wrote into it stays, its test cases too, and what changes is told."""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from labelloop.base.errors import UserError
from labelloop.base.tables import of_spreadsheet
from labelloop.base.wording import count, named, shown
from labelloop.cases.table import COLUMNS, REQUIRED, ROLES, Case, as_written

log = logging.getLogger(__name__)

TRAIN, TEST = ROLES
EDITED = ("modality", "sequence", "patient", "annotated", "surgery")
"""Columns in which an entry of the former table goes before what a collection says."""
Rows = Mapping[str, Mapping[str, str]]
"""Rows of a table by case, as they are written."""


def is_case_table(path: Path) -> bool:
    """Say whether a file is a case table, whoever saved it: no column would be lost where it is written over."""
    try:
        header, _ = of_spreadsheet(path)
    except (UserError, OSError):
        return False
    return set(REQUIRED) <= set(header) <= set(COLUMNS)


def former_rows(path: Path) -> Rows:
    """Return the rows of a table that will be written over; none where there is none.

    Raises:
        UserError: the file is no table in UTF-8.
    """
    if not path.is_file():
        return {}
    header, rows = of_spreadsheet(path)
    found: dict[str, dict[str, str]] = {}
    for fields, _ in rows:
        row = dict.fromkeys(COLUMNS, "") | dict(zip(header, map(str.strip, fields), strict=False))
        found.setdefault(row["case"], row | {"role": row["role"].lower() or TRAIN})
    return found


def with_former(cases: Sequence[Case], former: Rows, asked: Collection[str]) -> list[Case]:
    """Return cases with what the former table says of them: its entries, and that they are for testing.

    Args:
        cases: as the collection and the command say.
        asked: columns that options of the command fill in; they go before the former table.
    """
    return [_with_row(case, former.get(case.case, {}), asked) for case in cases]


def _with_row(case: Case, row: Mapping[str, str], asked: Collection[str]) -> Case:
    stays = {column: row[column] for column in EDITED if row.get(column) and column not in asked}
    role = TEST if row.get("role") == TEST else case.role
    return case.model_copy(update=stays | {"role": role})


def tell_changes(path: Path, former: Rows, found: Sequence[Case], written: Sequence[Case]) -> None:
    """Say in the log what stays of the former table, what changes in it, and which of its cases are gone.

    Args:
        path: the table that is written over.
        found: cases as the collection and the command say.
        written: the same cases as they are written.
    """
    place = shown(path)
    stays: dict[str, list[str]] = defaultdict(list)
    changes: dict[str, list[str]] = defaultdict(list)
    for case, new in zip(found, written, strict=True):
        row, said, now = former.get(new.case, {}), as_written(case, path), as_written(new, path)
        for column in filter(row.get, COLUMNS):
            if now[column] != row[column]:
                changes[column].append(f"{new.case} (was {row[column]})")
            elif now[column] != said[column]:
                stays[column].append(new.case)
    for column, cases in stays.items():
        log.info(
            "%s: `%s` stays as this table had it for %s: %s", place, column, count(len(cases), "case"), named(cases)
        )
    for column, cases in changes.items():
        listed = ", ".join(cases) if column in EDITED else named(cases)  # what people wrote is not to be lost
        log.warning("%s: `%s` changes for %s: %s", place, column, count(len(cases), "case"), listed)
    gone = former.keys() - {case.case for case in written}
    if gone:
        tested = sum(former[case]["role"] == TEST for case in gone)
        log.warning(
            "%s: without %s that this table had, %d of them for testing: %s", place, count(len(gone), "case"), tested,
            named(sorted(gone)),
        )  # fmt: skip
    if stays or changes:
        log.info("%s: delete it first to have all of it written anew", place)
