"""A review that comes back as files: what :mod:`labelloop.review.export` wrote, filled in and with edited maps."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labelloop.base.classes import BACKGROUND, IGNORED
from labelloop.base.documents import read_json
from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import sha256
from labelloop.base.tables import of_spreadsheet
from labelloop.base.wording import named
from labelloop.images.listing import extension
from labelloop.images.scan import read_label
from labelloop.images.volume import write
from labelloop.metrics.surface import dice
from labelloop.review.decisions import DECISIONS, EDITED, RIGHT, SHA256, Decision, seconds_in
from labelloop.review.desk import Desk, Question
from labelloop.review.export import DATASTORE, FILLED, FINAL, GIVEN, ORIGINAL, QUEUE
from labelloop.review.maps import ENDING, read_reviewed

FEWEST_OTHERS, AS_IT_WAS = 3, 0.8
"""Classes that nobody was asked about: how many say whose map it is, and the DSC of one that was left as it was."""


def import_folder(desk: Desk, folder: Path, reviewer: str) -> tuple[list[Decision], list[str]]:
    """Read back the decisions of a filled-in folder, and edited maps; to read it twice adds nothing.

    Returns:
        the decisions, and what of the folder cannot be used, with file and row, a line each.

    Raises:
        UserError: there is no queue in the folder, or no reviewer is named.
    """
    if not reviewer.strip():
        raise UserError("--reviewer: say who decided")
    made: list[Decision] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(_read_rows(folder / QUEUE, desk.cases))
        maps = _Maps(desk, folder, Path(scratch), {(row["case"], row["class"]) for _, row in rows})
        for number, row in rows:
            is_altered = row["case"] in desk.cases and maps.is_altered(row["case"], row["sha256"])
            if row["decision"].strip() or row["case"] in maps.files or is_altered:
                try:
                    made.append(_take(desk, maps, reviewer, row))
                except (CaseError, UserError) as error:
                    problems.append(f"{folder / QUEUE}: row {number}: {error}")
    return made, problems + _unused(folder, maps.used, {row["case"] for _, row in rows})


def _unused(folder: Path, used: Collection[str], asked: Collection[str]) -> list[str]:
    """Return what somebody saved in a folder and was not used, each with the reason.

    Args:
        used: cases whose final maps were. asked: cases of the queue.
    """
    found = [f"{file}: not used: save it as {QUEUE}" for file in sorted(folder.glob("queue.*")) if file.name != QUEUE]
    for file in filter(_is_somebodys, sorted((folder / FINAL).rglob("*"))):
        case = file.name.removesuffix(extension(file.name) or file.suffix)
        if file.parent != folder / FINAL:
            found.append(f"{file}: not used: maps are read from {FINAL} itself, not from folders in it")
        elif case not in used:
            found.append(f"{file}: not used: no row of case {case!r} says edited, or the row cannot be used")
    images, shown = (set(filter(_is_somebodys, place.glob("*"))) for place in (folder, folder / ORIGINAL))
    for file in sorted(images | shown):
        twin = (folder / ORIGINAL if file in images else folder) / file.name
        if extension(file.name) and not twin.exists() and file.name.removesuffix(ENDING) not in asked:
            found.append(f"{file}: not used: an edited map is expected in {FINAL}, named as its case")
    return found


def _is_somebodys(file: Path) -> bool:
    return not (file.is_dir() or file.name.startswith("."))


def _read_rows(path: Path, cases: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a queue, each with its line.

    A spreadsheet takes a case for a number or a date (0012 becomes 12). So one that is not among ``cases`` is the one
    whose image the row names.
    """
    try:
        header, rows = of_spreadsheet(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name a folder that --export wrote") from error
    lacking = {"case", "class", "asked", "sha256", *FILLED} - set(header)
    if lacking:
        raise UserError(f"{path}: lacks the columns {', '.join(sorted(lacking))}")
    for fields, line in rows:
        cells = dict.fromkeys([*GIVEN, *FILLED], "") | dict(zip(header, fields, strict=False))
        shown = cells["image"].removesuffix(ENDING)
        if cells["case"] not in cases and shown in cases:
            cells["case"] = shown
        yield line, cells


def _take(desk: Desk, maps: "_Maps", reviewer: str, row: Mapping[str, str]) -> Decision:
    decision = row["decision"].strip().lower()
    if decision and decision not in DECISIONS:
        raise UserError(f"decision {decision[:40]!r}, where one of {', '.join(DECISIONS)} is expected")
    seconds = seconds_in(row["seconds"])
    one = desk.question(row["case"], row["class"], row["sha256"], row["asked"])
    shown = maps.shown(one.case)
    altered = maps.is_altered(one.case, one.sha256)
    judged = shown if shown.is_file() and not altered else None
    if not decision and one.case in maps.files:
        decision = maps.answer(one, judged)
    edited = (maps.final(one.case) or (shown if altered else None)) if decision == EDITED else None
    if edited is not None:
        maps.check_same_patient(one.case, judged or one.map, edited)
    if altered and decision != EDITED:
        raise UserError(
            f"{shown} was altered, but the decision is {decision or 'empty'}; say edited, or put the map back"
        )
    if decision == EDITED and edited is None:
        raise UserError(f"edited, but there is no edited map; {maps.expected(one.case)} is expected")
    return desk.decide(
        one, reviewer, decision, judged=judged, edited=edited, comment=row["comment"], seconds=seconds, from_files=True
    )


class _Submitted(NamedTuple):
    """What MONAI Label says of a final map: the names of its ids, and the sha256 of the file (empty: not told)."""

    names: dict[int, str]
    sha256: str


class _Maps:
    """The label maps of a folder that comes back. ``files``: those that people are done with, by case.

    Args:
        scratch: folder for maps that are written anew, in the ids of the class scheme.
        asked: cases and classes of the queue.
    """

    def __init__(self, desk: Desk, folder: Path, scratch: Path, asked: Collection[tuple[str, str]]):
        self._ids, self._folder, self._scratch, self._asked = desk.ids, folder, scratch, asked
        self._submitted, self._sha256 = _submitted(folder / DATASTORE), cache(sha256)
        self.files: dict[str, list[Path]] = {}
        for file in sorted((folder / FINAL).glob("*")):
            ending = extension(file.name)
            if ending and file.is_file() and file.name.endswith(ending):
                self.files.setdefault(file.name.removesuffix(ending), []).append(file)
        self.used: set[str] = set()
        self._same: set[str] = set()

    def shown(self, case: str) -> Path:
        """Return the map that was looked at; it may not be there."""
        return self._folder / ORIGINAL / f"{case}{ENDING}"

    def is_altered(self, case: str, content: str) -> bool:
        """Say whether somebody saved another map over the one that was looked at, whose sha256 is given."""
        shown = self.shown(case)
        return bool(SHA256.fullmatch(content)) and shown.is_file() and self._sha256(shown) != content

    def expected(self, case: str) -> Path:
        """Return where the map is looked for that a person is done with; its format may be another."""
        return self._folder / FINAL / f"{case}{ENDING}"

    def answer(self, one: Question, judged: Path | None) -> str:
        """Return what the map that a person is done with says of a class, whose row says nothing.

        Raises:
            CaseError: the map cannot be used.
            UserError: it was submitted without a segment of the class: it may be absent, or was never looked at.
        """
        final = self.final(one.case)
        submitted = self._submitted.get(one.case)
        if submitted and one.name not in submitted.names.values():
            raise UserError(
                f"{self.files[one.case][0]} was submitted without a segment {one.name!r}; "
                "submit it with one (empty if the class is absent), or fill in the decision"
            )
        if final is None or judged is None:
            return EDITED
        before, id_ = read_label(judged), self._ids[one.name]
        after = read_reviewed(final, list(self._ids.values()), before.geometry)
        return RIGHT if np.array_equal(before.array == id_, after.array == id_) else EDITED

    def check_same_patient(self, case: str, shown: Path | None, edited: Path) -> None:
        """Hold the classes that nobody was asked about against those of the map that was shown, which they copy.

        Args:
            shown: the map that was shown, or the one in the results; None: there is none to hold against.

        Raises:
            UserError: there are ``FEWEST_OTHERS`` or more, and none is as it was: the map is another patient's, or it
                was made without the one that was shown.
            CaseError: a map cannot be read.
        """
        if shown is None or case in self._same:
            return
        after = read_reviewed(edited, list(self._ids.values()))
        before = read_reviewed(shown, list(self._ids.values()), after.geometry)
        others = [id_ for name, id_ in self._ids.items() if (case, name) not in self._asked]
        in_both = [id_ for id_ in others if (before.array == id_).any() and (after.array == id_).any()]
        alike = [dice(before.array == id_, after.array == id_) for id_ in in_both]
        if len(alike) >= FEWEST_OTHERS and max(alike) < AS_IT_WAS:
            raise UserError(
                f"{edited}: not the map of {case} that was shown: of the {len(alike)} classes that nobody was "
                f"asked about, none is as it was (highest DSC {max(alike):.2f}). Is it another patient's? If not, save "
                "it with the classes alone that are asked about"
            )
        self._same.add(case)

    def final(self, case: str) -> Path | None:
        """Return the map that a person is done with, in the ids of the class scheme; None where there is none.

        Raises:
            CaseError: it has segments that are no classes, or cannot be read.
            UserError: there are several; or it was submitted to MONAI Label, and altered afterwards: nobody says
                what its ids mean.
        """
        if case not in self.files:
            return None
        self.used.add(case)
        file, *others = self.files[case]
        if others:
            raise UserError(f"{case}: {named([f.name for f in self.files[case]])} in {FINAL}; keep one")
        made = self._scratch / f"{case}{ENDING}"
        submitted = self._submitted.get(case)
        if submitted and not made.is_file():
            if submitted.sha256 and sha256(file) != submitted.sha256:
                raise UserError(
                    f"{file} is not what was submitted to MONAI Label: its ids may be numbers of segments "
                    f"or those of the classes. Submit it again; or, if they are those of the classes, remove {case!r} "
                    f"from {self._folder / DATASTORE}"
                )
            self._renumber(file, submitted.names, made)
        return made if made.is_file() else file

    def _renumber(self, source: Path, names: Mapping[int, str], out: Path) -> None:
        """Write a map of MONAI Label's, whose clients number segments as they come, in the ids of their names."""
        volume = read_label(source)
        numbers = np.unique(volume.array)
        kept = {BACKGROUND, IGNORED} - names.keys()
        found = [number for number in numbers.tolist() if number not in kept]
        named = {number: names.get(number, f"id {number} without a name") for number in found}
        strange = sorted(set(named.values()) - self._ids.keys())
        if strange:
            told = f"segments of MONAI Label that are no classes of the label set: {', '.join(strange)[:200]}"
            raise CaseError("label_unknown_ids", str(source), told, "Name them as the classes are, and submit again.")
        ids = np.array([self._ids[named[n]] if n in named else n for n in numbers.tolist()], np.uint8)
        write(out, ids[np.searchsorted(numbers, volume.array)], volume.geometry)


def _submitted(path: Path) -> dict[str, _Submitted]:
    """Return what MONAI Label says of the final maps that its clients submitted, by case; nothing without its file."""
    if not path.is_file():
        return {}
    objects: Any = read_json(path).get("objects", {})
    found: dict[str, _Submitted] = {}
    try:
        for case, entry in objects.items():
            info = entry.get("labels", {}).get("final", {}).get("info", {})
            told = info.get("label_info")
            if told:
                names = {int(segment["idx"]): str(segment["name"]) for segment in told}
                found[case] = _Submitted(names, str(info.get("checksum") or ""))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not what MONAI Label writes: {error!r}; restore it, or remove it") from error
    return found
