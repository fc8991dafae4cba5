"""Cases: the rows of a case table, read, checked and written.

This module is read at every start of the workflow, so it imports neither SimpleITK nor pandas nor torch and opens no
image. What only the image can tell is found by :mod:`labelloop.cases.survey`.
"""

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ConfigDict

from labelloop.base.channels import modality_of
from labelloop.base.classes import Strict
from labelloop.base.errors import UserError, nearest
from labelloop.base.files import atomic, digest
from labelloop.base.lookup import SUFFIXES, known
from labelloop.base.outputs import alike_but_for_capitals
from labelloop.base.tables import of_spreadsheet
from labelloop.base.wording import count, named
from labelloop.images.datasets import Dataset, read_dataset

log = logging.getLogger(__name__)

SURVEY_VERSION = 5
"""Raise it when the survey finds something else in the same files: every case is then looked at again."""
ROLES = ("train", "test")
MODALITIES = ("CT", "MR")
REQUIRED = ("case", "image", "dataset")
NONE = "none"
"""What ``annotated`` says of a case in whose label nobody annotated a class; empty means: as the data set file says."""
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

REASONS = {
    "case_id_unsafe": "Give the case an id of letters, digits, '.', '_' and '-' that starts with none of '.' and '-'.",
    "case_duplicate": "Give every case an id of its own; all rows with this id are set aside.",
    "case_id_capitals": "Disks of macOS and Windows, and many shares, take the files of two such cases for one: rename "
    "one of them, unless the results stay on disks that tell capitals apart.",
    "row_malformed": "Write as many fields as the header has; put quotes around a field that holds the separator.",
    "image_not_named": "Fill in the column image.",
    "channels_differ": "Write the files of all channels into the column image, separated by ';', in the order of "
    "`channels` in the data set file; or correct that.",
    "channel_modality": "Leave modality empty, or write that of the first channel.",
    "role_unknown": "Write train or test, or leave the field empty for train.",
    "modality_unknown": "Write CT or MR, or leave the field empty for the data set's own.",
    "dataset_unknown": "Give the name of a data set (`labelloop dataset list`), or the path of a data set file.",
    "patient_in_train_and_test": "Cases of one patient must not be trained on and tested on; the train cases "
    "are set aside. Change role or patient.",
    "image_in_train_and_test": "The same image must not be trained on and tested on; the train cases "
    "are set aside. Remove one of the two rows, or change role.",
    "label_repeated": "Two cases of other images name the same label, which is that of one of them: correct the other.",
    "image_repeated": "Two cases, or two channels, name the same image; remove one unless this is meant.",
}
"""What to do about each reason code of a case table's rows."""


def safe_id(name: str) -> str:
    """Return the case id for a name of whatever letters: of other names, another one."""
    words = "_".join(name.split())
    safe = re.sub(r"[^A-Za-z0-9._-]|^[.-]", "_", words)
    return safe if safe == words else f"{safe}_{digest(name)[:6]}"


def tell_renamed(names: Sequence[str], ids: Sequence[str]) -> None:
    """Say in the log which names are no case ids, and what their cases are called."""
    renamed = [f"{name} is {own}" for name, own in zip(names, ids, strict=True) if name != own]
    if renamed:
        log.info("%s that no case id may have: %s", count(len(renamed), "name"), named(renamed))


class Case(Strict):
    """A row of the case table (``tables.CASES``), all text; paths are absolute, defaults are filled in."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    case: str
    image: str
    label: str = ""
    dataset: str
    modality: str = ""
    sequence: str = ""
    patient: str = ""
    role: str = "train"
    annotated: str = ""
    surgery: str = ""

    def annotated_names(self, default: Sequence[str]) -> tuple[str, ...]:
        """Classes or class sets that are annotated: those of this row, none if it says so, else ``default``."""
        if self.annotated.lower() == NONE:
            return ()
        return names(self.annotated) or tuple(default)

    @property
    def images(self) -> tuple[str, ...]:
        """Image file of each channel; of most cases, one."""
        return names(self.image)

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the case: of its channels, then the label, if it has one."""
        return (*self.images, self.label) if self.label else self.images

    @property
    def surgery_names(self) -> tuple[str, ...]:
        """Classes removed by surgery."""
        return names(self.surgery)


COLUMNS = tuple(Case.model_fields)


def names(field: str) -> tuple[str, ...]:
    """Return the entries of a field whose entries are separated by ``;``."""
    return tuple(part.strip() for part in field.split(";") if part.strip())


def first_image(field: str) -> str:
    """Return the file of the first channel that a column ``image`` names: what people are shown of a case."""
    return next(iter(names(field)), "")


def quarantine(case: str, file: str | Path, code: str, found: str, action: str, severity: str = "error") -> dict:
    """Return a row of the quarantine table."""
    return {
        "case": case, "file": str(file), "code": code, "severity": severity, "found": found, "action": action,
    }  # fmt: skip


def load_cases(path: str | Path) -> tuple[list[Case], list[dict]]:
    """Read a case table; return its usable cases in order, and quarantine rows for the others.

    Image and label paths are resolved against the table's folder, and so is a ``dataset`` that is a path. A train
    case whose patient (or image file) is also tested on is set aside, whether or not the test row is usable: what
    has been trained on can no longer be tested on.

    Raises:
        UserError: when there is no such table, it is not UTF-8 CSV, it has no rows, or its columns are wrong.
    """
    path = Path(path)
    rows = _read_rows(path)
    datasets: dict[str, Dataset | None] = {}
    ids = Counter(row["case"] for row, _, _ in rows)
    cases: list[tuple[Case, int]] = []
    rejected: list[dict] = []
    for row, line, malformed in rows:
        case = _complete(row, path.parent, datasets)
        problems = _problems(row, case, malformed, ids[row["case"]], datasets[case.dataset])
        rejected += [quarantine(row["case"], path, c, f"line {line}: {f}", REASONS[c]) for c, f in problems]
        cases.append((case, line if not problems else 0))
    usable = [case for case, line in cases if line]
    everyone = [case for case, _ in cases]
    aside: set[str] = set()
    for column in ("patient", "image"):
        leaks = _in_train_and_test(usable, everyone, column)
        rejected += [
            quarantine(case, path, f"{column}_in_train_and_test", f"{column} {value} is also tested on, in {tested}",
                       REASONS[f"{column}_in_train_and_test"])
            for case, value, tested in leaks if case not in aside
        ]  # fmt: skip
        aside |= {case for case, _, _ in leaks}
    usable = [case for case in usable if case.case not in aside]
    return usable, [*rejected, *_repeated(usable, path), *_in_capitals(usable, path)]


def _read_rows(path: Path) -> list[tuple[dict[str, str], int, str]]:
    """Return (row with all columns, line number, what is wrong with the number of fields) of each row.

    What spreadsheets add is passed over (:func:`labelloop.base.tables.of_spreadsheet`), as are columns without name and
    entry.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such case table; `labelloop cases` makes one from folders of images")
    header, rows = of_spreadsheet(path)
    filled: set[int] = set()
    for fields, _ in rows:
        filled.update(i for i, field in enumerate(fields) if field.strip())
    _check_header(path, [name for i, name in enumerate(header) if name or i in filled])
    if not rows:
        raise UserError(f"{path}: the case table has no rows")
    result = []
    for fields, line in rows:
        row = dict.fromkeys(COLUMNS, "") | {c: f.strip() for c, f in zip(header, fields, strict=False) if c}
        wrong = "" if len(fields) == len(header) else f"{len(fields)} fields under {len(header)} columns"
        result.append((row, line, wrong))
    return result


def _check_header(path: Path, header: list[str]) -> None:
    lines = [f"column {c!r} is missing" for c in REQUIRED if c not in header]
    lines += [f"column {c!r} is unknown{nearest(c, COLUMNS)}" for c in header if c and c not in COLUMNS]
    lines += [f"column {n} has entries, but no name" for n, c in enumerate(header, start=1) if not c]
    lines += [f"column {c!r} stands {n} times" for c, n in Counter(header).items() if n > 1 and c in COLUMNS]
    if lines:
        raise UserError("\n".join(f"{path}: {line}" for line in lines))


def _complete(row: dict[str, str], folder: Path, datasets: dict[str, Dataset | None]) -> Case:
    """Fill in the defaults of a row and make its paths absolute; ``datasets`` remembers what was read."""
    is_file = row["dataset"].endswith(SUFFIXES)
    name = os.path.abspath(folder / row["dataset"]) if is_file else row["dataset"]  # noqa: PTH100
    if name not in datasets:
        exists = Path(name).is_file() if is_file else name in known("datasets")
        datasets[name] = read_dataset(name) if exists else None
    dataset = datasets[name]
    images, label = names(row["image"]), row["label"]
    paths = {
        "image": ";".join(os.path.abspath(folder / image) for image in images),  # noqa: PTH100
        "label": os.path.abspath(folder / label) if label else "",  # noqa: PTH100
    }
    filled = {
        "dataset": name,
        "modality": row["modality"].upper() or (dataset.modality if dataset else ""),
        "patient": row["patient"] or row["case"],
        "role": row["role"].lower() or "train",
    }
    return Case.model_construct(None, **row | paths | filled)


def _problems(
    row: dict[str, str], case: Case, malformed: str, copies: int, dataset: Dataset | None
) -> list[tuple[str, str]]:
    """Return (reason code, what was found) of everything that is wrong with one row."""
    checks = [
        ("row_malformed", malformed, malformed),
        ("case_id_unsafe", not SAFE_ID.fullmatch(case.case), f"case id {case.case!r}"),
        ("case_duplicate", copies > 1, f"case id {case.case!r} stands in {copies} rows"),
        ("image_not_named", not case.image, "no image"),
        ("role_unknown", case.role not in ROLES, f"role {row['role']!r}"),
        ("modality_unknown", case.modality and case.modality not in MODALITIES, f"modality {row['modality']!r}"),
    ]
    problems = [(code, found) for code, wrong, found in checks if wrong]
    if dataset is None:
        found = f"data set {row['dataset']!r}{nearest(row['dataset'], known('datasets'))}"
        problems.append(("dataset_unknown", found))
        return problems
    return [*problems, *_channel_problems(case, dataset)]


def _channel_problems(case: Case, dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Yield how a row differs from what its data set says of channels."""
    expected, files = len(dataset.channels) or 1, len(case.images)
    if files and files != expected:
        named = f" ({', '.join(dataset.channels)})" if dataset.channels else ""
        listed = f"{count(expected, 'channel')}{named}"
        yield "channels_differ", f"{count(files, 'image file')}, and data set {dataset.name} has {listed}"
    first = dataset.channels[0] if dataset.channels else ""
    if first and case.modality in MODALITIES and case.modality != modality_of(first):
        yield "channel_modality", f"modality {case.modality}, where the first channel is {first}"


def _values(case: Case, column: str) -> tuple[str, ...]:
    """Return what a case has in a column; of several channels, the image of each."""
    return case.images if column == "image" else tuple(filter(None, [getattr(case, column)]))


def _in_train_and_test(usable: Sequence[Case], everyone: Sequence[Case], column: str) -> list[tuple[str, str, str]]:
    """Return train cases that share ``column`` with a test case: case, what they share, and that test case."""
    tested: dict[str, str] = {}
    for case in everyone:
        if case.role == "test":
            tested |= dict.fromkeys(_values(case, column), case.case)
    shared = {c.case: next(filter(tested.get, _values(c, column)), "") for c in usable if c.role == "train"}
    return [(case, value, tested[value]) for case, value in shared.items() if value]


def _repeated(cases: Sequence[Case], path: Path) -> list[dict]:
    """Return warnings for cases that name image or label of an earlier case, and for channels that are one file."""
    code = "image_repeated"
    first: dict[str, str] = {}
    labeled: dict[str, Case] = {}
    rows = []
    for case in cases:
        earlier = labeled.setdefault(case.label, case) if case.label else case
        if earlier.image != case.image:
            found = f"label {case.label} is also that of {earlier.case}"
            rows.append(quarantine(case.case, path, "label_repeated", found, REASONS["label_repeated"], "warning"))
        for image in case.images:
            other = first.setdefault(image, case.case)
            if other != case.case:
                found = f"image {image} is also that of {other}"
                rows.append(quarantine(case.case, path, code, found, REASONS[code], "warning"))
        if len(set(case.images)) < len(case.images):
            found = "one file stands for several channels"
            rows.append(quarantine(case.case, path, code, found, REASONS[code], "warning"))
    return rows


def _in_capitals(cases: Sequence[Case], path: Path) -> list[dict]:
    """Return warnings for cases whose ids differ from that of an earlier case in capitals alone."""
    code = "case_id_capitals"
    return [
        quarantine(case, path, code, f"differs from case {other} in capitals alone", REASONS[code], "warning")
        for other, case in alike_but_for_capitals(case.case for case in cases)
    ]


def write_cases(path: str | Path, cases: Iterable[Case]) -> None:
    """Write a case table atomically; paths below its folder become relative, so that the folder can be moved."""
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for case in cases:
            writer.writerow(as_written(case, path))


def as_written(case: Case, path: str | Path) -> dict[str, str]:
    """Return the row of a case in the table ``path``."""
    folder = f"{Path(path).absolute().parent}{os.sep}"
    paths = {column: getattr(case, column).removeprefix(folder) for column in ("label", "dataset")}
    paths["image"] = ";".join(image.removeprefix(folder) for image in case.images)
    return case.model_dump() | paths
