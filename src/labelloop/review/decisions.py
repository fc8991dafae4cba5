"""Decisions of people about labels: a file that is only ever appended to, ``<reviews>/<label set>/decisions.csv``.

One row is one decision of one reviewer about one class of one case, and a row is a line. A row that is damaged, or
names what is not there, is set aside with its reason; it never stops a run. Imports neither pandas nor SimpleITK: every
start of the workflow reads this module.
"""

import csv
import io
import math
import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath

from labelloop.base.errors import UserError, nearest
from labelloop.base.files import digest, explained, stamp
from labelloop.base.locks import hold
from labelloop.base.tables import TABLES, delimiter_of

FILE, LOCK = "decisions.csv", ".decisions.lock"
KEPT, EDITED_MAPS = "kept", "edited"
"""Folders of maps beside the decisions: by the hash of their content, and by case the last one that somebody edited."""
DECISIONS = RIGHT, WRONG, ABSENT, EDITED, UNSURE = "right", "wrong", "absent", "edited", "unsure"
DIFFER = "differ"
"""What becomes of a class about which two reviewers say different things."""
AGAIN = UNSURE, DIFFER
"""What settles nothing: it is asked again, and is no answer that a run could wait for."""
COLUMNS = tuple(TABLES["decisions"])
SHA256 = re.compile(r"[0-9a-f]{64}")
ACTION = "The row is not used; mend it, or append a new one"


@dataclass(frozen=True)
class Decision:
    """One row. ``name`` is the class (column ``class``), ``row`` the line of the file; 0: of none yet."""

    reviewer: str
    case: str
    name: str
    decision: str
    sha256: str = ""
    file: str = ""
    comment: str = ""
    seconds: float | None = None
    labels: str = ""
    asked: str = ""
    time: str = ""
    row: int = 0

    @property
    def opinion(self) -> tuple[str, str]:
        """What is said: of two maps that somebody edited, two things."""
        return self.decision, self.file if self.decision == EDITED else ""

    def holds_for(self, sha256: str) -> bool:
        """Say whether it is said of a label map, too: ``wrong`` is said of its own map alone; of no map, all hold."""
        return self.decision != WRONG or sha256 in ("", self.sha256)

    def cells(self) -> list[str]:
        """Return the cells of the row, without anything that would end its line."""
        values = asdict(self) | {"class": self.name, "seconds": "" if self.seconds is None else f"{self.seconds:g}"}
        return [one_line(str(values[column])) for column in COLUMNS]


@dataclass(frozen=True)
class Problem:
    """A row that is not used: where it stands, what was found, and what to do."""

    file: Path
    row: int
    found: str
    case: str = ""

    def __str__(self) -> str:
        return f"{self.file}: row {self.row}: {self.found}. {ACTION}."


def one_line(text: str) -> str:
    """Return a text in one line that UTF-8 can hold."""
    return " ".join(text.encode(errors="replace").decode().split())


_WRITING = threading.Lock()
"""Held while this process writes: a lock of files keeps processes apart, not threads."""


def append(folder: str | Path, decisions: Iterable[Decision]) -> None:
    """Append decisions to those of a label set, all or none of them; those without a time get the present one.

    Several writers lose nothing: each waits for its turn. A row that a kill cut short is left as it is, on a line of
    its own.

    Args:
        folder: the label set's, ``<reviews>/<label set>``; made when needed.

    Raises:
        UserError: a decision is none, or the file cannot be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    made = [replace(decision, time=decision.time or now) for decision in decisions]
    path = Path(folder) / FILE
    for decision in made:
        check(decision, with_file=True)
    with _WRITING:
        lock = hold(path.with_name(LOCK), str(path), poll_s=0.05)
        try:
            _append(path, made)
        finally:
            lock.release()


def _append(path: Path, decisions: Iterable[Decision]) -> None:
    """Append rows to a table under the header that it has, in its order; a new one gets a header."""
    with explained(path), path.open("ab+") as file:
        new = file.tell() == 0
        file.seek(0)
        header = Header(COLUMNS, ",") if new else Header.of(file.readline())
        if header.lacks:
            raise UserError(f"{path}: {header.lacks}. The decision is not taken; mend the file, or move it away.")
        if new:
            file.write(f"{','.join(COLUMNS)}\n".encode())
        else:
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write(header.lines(decisions))
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Header:
    """The columns of a table of decisions, and what separates them: a spreadsheet may have saved it since."""

    columns: tuple[str, ...]
    delimiter: str

    @classmethod
    def of(cls, line: bytes) -> "Header":
        """Return the header in the first line of a table."""
        line = line.removeprefix(b"\xef\xbb\xbf")
        delimiter = delimiter_of(io.StringIO(line.decode(errors="replace")))
        return cls(tuple(_fields(line, delimiter) or ()), delimiter)

    @property
    def lacks(self) -> str:
        """What keeps the rows below it from being read, in words; empty when nothing does."""
        lacking = [column for column in COLUMNS if column not in self.columns]
        return f"the header lacks {', '.join(lacking)}, so that no decision can be read" if lacking else ""

    def lines(self, decisions: Iterable[Decision]) -> bytes:
        """Return the lines of decisions below this header; columns that are not ours stay empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n", delimiter=self.delimiter)
        for decision in decisions:
            cells = dict(zip(COLUMNS, decision.cells(), strict=True))
            writer.writerow([cells.get(column, "") for column in self.columns])
        return text.getvalue().encode()

    def fields(self, line: bytes) -> list[str] | None:
        """Return the fields of a line below it; None when it is no line of a CSV table in UTF-8."""
        return _fields(line, self.delimiter)


def check(decision: Decision, with_file: bool = False) -> None:
    """Raise UserError when something is no decision.

    Args:
        with_file: the map that it needs must be named, too.
    """
    cells = dict(zip(COLUMNS, decision.cells(), strict=True))
    cells["time"] = cells["time"] or "2000-01-01"
    if not with_file:
        cells["file"] = cells["file"] or KEPT
    found = _wrong_in(cells)
    if found:
        raise UserError(f"decision about class {decision.name!r} of case {decision.case!r}: {found}")


def read(
    folder: str | Path, cases: Collection[str] | None = None, classes: Collection[str] | None = None
) -> tuple[list[Decision], list[Problem]]:
    """Return the decisions about a label set in the order in which they were made, and the rows that are not used.

    Args:
        cases, classes: what there is; None: not asked.
    """
    path = Path(folder) / FILE
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    header = Header.of(lines[0])
    if header.lacks:
        return [], [Problem(path, 1, header.lacks)]
    decisions, problems = [], []
    for row, line in enumerate(lines[1:], start=2):
        fields = header.fields(line)
        if fields is not None and not any(map(str.strip, fields)):
            continue
        if fields is None or len(fields) != len(header.columns):
            damage = f"damaged: {len(fields or [])} fields, where the header has {len(header.columns)}"
            problems.append(Problem(path, row, damage))
            continue
        cells = dict(zip(header.columns, fields, strict=True))
        found = _wrong_in(cells) or _unknown_in(cells, cases, classes)
        if found:
            problems.append(Problem(path, row, found, cells["case"]))
        else:
            decisions.append(_of(cells, row))
    return decisions, problems


def _fields(line: bytes, delimiter: str) -> list[str] | None:
    """Return the fields of a line; None when it is no line of a CSV table in UTF-8."""
    try:
        rows = list(csv.reader([line.decode().rstrip("\r")], strict=True, delimiter=delimiter))
    except (csv.Error, UnicodeDecodeError):
        return None
    return rows[0] if len(rows) == 1 else None


def _of(cells: Mapping[str, str], row: int) -> Decision:
    texts = {column: cells[column] for column in COLUMNS if column not in ("class", "seconds")}
    return Decision(name=cells["class"], seconds=seconds_in(cells["seconds"]), row=row, **texts)


def _wrong_in(cells: Mapping[str, str]) -> str | None:
    """Return what keeps a row from being a decision; None when nothing does."""
    for column in ("reviewer", "case", "class"):
        if not cells[column].strip():
            return f"no {column}"
    if cells["decision"] not in DECISIONS:
        return f"decision {cells['decision'][:40]!r}{nearest(cells['decision'], DECISIONS)}"
    if cells["sha256"] and not SHA256.fullmatch(cells["sha256"]):
        return f"sha256 {cells['sha256'][:80]!r}, where 64 hexadecimal digits or nothing are expected"
    if cells["decision"] in (RIGHT, EDITED) and not cells["file"]:
        return f"{cells['decision']} without the file that holds its voxels"
    if cells["file"] and not _within(cells["file"]):
        return f"file {cells['file'][:80]!r}, where a file below the decisions' folder is expected"
    return _wrong_number(cells["seconds"]) or _wrong_time(cells["time"])


def _within(file: str) -> bool:
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in file and "\0" not in file


def seconds_in(text: str) -> float | None:
    """Return the seconds of a cell, whichever decimal mark a spreadsheet wrote; None of an empty one.

    Raises:
        UserError: it is no such number.
    """
    try:
        seconds = float(text.replace(",", ".")) if text.strip() else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise UserError(f"seconds {text[:40]!r}, where a number or nothing is expected")
    return seconds


def _wrong_number(text: str) -> str | None:
    try:
        seconds_in(text)
    except UserError as error:
        return str(error)
    return None


def _wrong_time(text: str) -> str | None:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return f"time {text[:40]!r}, where one like 2026-01-31T12:00:00+00:00 is expected"
    return None


def _unknown_in(cells: Mapping[str, str], cases: Collection[str] | None, classes: Collection[str] | None) -> str | None:
    if cases is not None and cells["case"] not in cases:
        return f"case {cells['case'][:80]!r} is not one of the run's train cases"
    if classes is not None and cells["class"] not in classes:
        return f"class {cells['class'][:80]!r} is not in the label set{nearest(cells['class'], classes)}"
    return None


@dataclass(frozen=True)
class Settled:
    """What the reviewers of one class of one case say together.

    Args:
        decision: one of :data:`DECISIONS`, or :data:`DIFFER`.
        by: the last decision of each reviewer who has an opinion, or of all who are unsure; in the order made.
    """

    decision: str
    by: tuple[Decision, ...]

    @property
    def last(self) -> Decision:
        """The decision that counts: the last one."""
        return self.by[-1]

    def answers(self, sha256: str = "") -> bool:
        """Say whether it settles what was asked of a label map; empty: of whatever map."""
        return self.decision not in AGAIN and self.last.holds_for(sha256)

    @property
    def reviewers(self) -> list[str]:
        """Names of the reviewers."""
        return [decision.reviewer for decision in self.by]

    def said(self) -> str:
        """Return who says what, in words."""
        if self.decision != DIFFER:
            comment = f": {self.last.comment}" if self.last.comment else ""
            return f"{' and '.join(self.reviewers)} said {self.decision}{comment}"
        return ", ".join(f"{decision.reviewer} said {decision.decision}" for decision in self.by)

    def content(self) -> list:
        """Return all that a label follows from."""
        return [
            self.decision,
            [[d.reviewer, d.decision, d.sha256, d.file, d.comment, d.asked, d.labels] for d in self.by],
        ]


def settle(decisions: Sequence[Decision]) -> dict[str, dict[str, Settled]]:
    """Return what holds, by case and class, the classes of a case in the order of the decisions that count.

    The last decision of a reviewer wins. Who is unsure has no opinion, and so takes back an earlier one. Two
    who differ settle nothing (:data:`DIFFER`) until one of them says what the other does, or is unsure. Who called a
    map wrong does not differ from those who judge another one later.
    """
    last: dict[tuple[str, str], dict[str, Decision]] = {}
    for decision in decisions:
        mine = last.setdefault((decision.case, decision.name), {})
        mine.pop(decision.reviewer, None)
        mine[decision.reviewer] = decision
    found: dict[str, dict[str, Settled]] = {}
    for (case, name), mine in last.items():
        found.setdefault(case, {})[name] = _settle(tuple(mine.values()))
    return {case: dict(sorted(said.items(), key=lambda one: one[1].last.row)) for case, said in found.items()}


def _settle(mine: tuple[Decision, ...]) -> Settled:
    sure = tuple(decision for decision in mine if decision.decision != UNSURE)
    if not sure:
        return Settled(UNSURE, mine)
    sure = tuple(one for at, one in enumerate(sure, 1) if all(one.holds_for(later.sha256) for later in sure[at:]))
    agree = len({decision.opinion for decision in sure}) == 1
    return Settled(sure[-1].decision if agree else DIFFER, sure)


class Reviews:
    """The decisions about one label set as a run reads them.

    Args:
        folder: ``<reviews>/<label set>``; need not be there.
        cases, classes: what there is; None: not asked.
    """

    def __init__(
        self, folder: str | Path, cases: Collection[str] | None = None, classes: Collection[str] | None = None
    ):
        self.folder = Path(folder)
        self._cases, self._classes = cases, classes

    @cached_property
    def _read(self) -> tuple[list[Decision], list[Problem]]:
        return read(self.folder, self._cases, self._classes)

    @property
    def decisions(self) -> list[Decision]:
        """All that can be used, in the order in which they were made."""
        return self._read[0]

    @property
    def last_row(self) -> int:
        """Row of the last decision; 0: there is none."""
        return max((decision.row for decision in self.decisions), default=0)

    @property
    def problems(self) -> list[Problem]:
        """Rows that are not used."""
        return self._read[1]

    @cached_property
    def settled(self) -> dict[str, dict[str, Settled]]:
        """What holds, by case and class."""
        return settle(self.decisions)

    def of(self, case: str) -> dict[str, Settled]:
        """Return what holds of a case, by class."""
        return self.settled.get(case, {})

    def path(self, decision: Decision) -> Path | None:
        """Return the map that a decision names: the one judged, or the edited one."""
        return self.folder / decision.file if decision.file else None

    def fingerprint(self, cases: Iterable[str]) -> str:
        """Return the fingerprint of what holds of some cases, files with their sizes and dates; empty without any."""
        found = [[case, name, *one.content(), *self._stamps(one)] for case, name, one in self._about(cases)]
        return digest(found) if found else ""

    def _about(self, cases: Iterable[str]) -> Iterator[tuple[str, str, Settled]]:
        for case in sorted(set(cases) & self.settled.keys()):
            for name, one in self.settled[case].items():
                yield case, name, one

    def _stamps(self, settled: Settled) -> list:
        return [stamp(path) for path in map(self.path, settled.by) if path]
