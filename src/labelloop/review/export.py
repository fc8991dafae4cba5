"""A review as files instead of a page: a folder for 3D Slicer, ITK-SNAP and MONAI Label, and the way back.

The folder is one that MONAI Label's local datastore reads (``monailabel/datastore/local.py``): NIfTI images at the top,
label maps below ``labels/original``, and those that people are done with below ``labels/final``.
"""

import csv
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labelloop.base.classes import BACKGROUND, IGNORED
from labelloop.base.documents import read_json
from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import atomic, sha256, write_text
from labelloop.base.tables import of_spreadsheet
from labelloop.base.wording import count, named
from labelloop.images.listing import extension
from labelloop.images.scan import read_label, read_surveyed
from labelloop.images.volume import write
from labelloop.metrics.surface import dice
from labelloop.review.decisions import DECISIONS, EDITED, RIGHT, SHA256, Decision, seconds_in
from labelloop.review.desk import Desk, Question
from labelloop.review.maps import ENDING, read_reviewed

log = logging.getLogger(__name__)
QUEUE, README = "queue.csv", "README.txt"
ORIGINAL, FINAL, DATASTORE = "labels/original", "labels/final", "datastore_v2.json"
"""Where MONAI Label looks for label maps and puts those of people, and what it says of them."""
SLICER, SNAP = "labels_slicer.ctbl", "labels_itksnap.txt"
FILLED = ("decision", "seconds", "comment")
"""Columns that the reviewer fills in."""
FEWEST_OTHERS, AS_IT_WAS = 3, 0.8
"""Classes that nobody was asked about: how many say whose map it is, and the DSC of one that was left as it was."""
GIVEN = ("rank", "case", "class", "asked", "selected", "reasons", "image", "label", "models", "picture", "sha256")
TOLD = """Labels of the set {labels} to look at
{line}

1. Open CASE with {original}/CASE.nii.gz over it (3D Slicer: as a segmentation, colors of {slicer};
   ITK-SNAP: as a segmentation, label descriptions of {snap}). What single models said lies in models/.
2. Look at the class that the row of {queue} asks about, and write into its column "decision":

   right    the class is as it should be
   wrong    it is not; nobody learns from it
   absent   this patient has none of it
   edited   it was wrong and is right now, in {final}/CASE.nii.gz
   unsure   ask somebody else

   "seconds" and "comment" may stay empty.
3. Edit: save the whole label map, with its ids and on its grid, as {final}/CASE.nii.gz (NRRD and MHA will do, a
   .seg.nrrd of 3D Slicer will not: export it as a label map). Only the classes that are asked about count.
   Where a decision is empty, a map in {final} is the answer: the class is "edited" where it is not as it was, else
   "right". Without such a map, an empty decision is none.
4. labelloop review RESULTS --labels {labels} --import THIS_FOLDER --reviewer YOUR_NAME
   Then type the command of the run again.

MONAI Label: monailabel start_server --app APP --studies THIS_FOLDER. Submitted labels come to {final}.
"""


def export_folder(desk: Desk, out: Path) -> list[str]:
    """Write what a label set asks about as files into a new folder; return what could not be, a line each.

    Raises:
        UserError: the folder is there and not empty, or the queue is.
    """
    asked = desk.asked()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: there already; name a new folder")
    if not asked:
        raise UserError(f"{desk.results}: the review queue of {desk.labels} is empty; there is nothing to look at")
    try:
        return _fill(desk, asked, out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # half of a folder could be taken for all of it
        raise


def _fill(desk: Desk, asked: Sequence[Question], out: Path) -> list[str]:
    for folder in (ORIGINAL, FINAL, "models", "pictures"):
        (out / folder).mkdir(parents=True)
    images: dict[str, str] = {}
    problems: list[str] = []
    for one in asked:
        if one.case not in images:
            images[one.case] = _copy_case(one, out, problems)
    rows = [_row(one, images[one.case], out) for one in asked]
    _write_rows(out / QUEUE, rows)
    title = f"Labels of the set {desk.labels} to look at"
    names = {"slicer": SLICER, "snap": SNAP, "queue": QUEUE, "original": ORIGINAL, "final": FINAL}
    write_text(out / README, TOLD.format(labels=desk.labels, line="=" * len(title), **names))
    _write_colors(desk, out)
    log.info("%s: %s of %s", out, count(len(rows), "label"), count(len(images), "case"))
    return problems


def _copy_case(one: Question, out: Path, problems: list[str]) -> str:
    """Copy image and label maps of a case; return the image's name in the folder, or nothing when it cannot be read."""
    try:
        image = _copy_image(one, out)
    except (CaseError, OSError, ValueError) as error:
        problems.append(f"{one.case}: no image: {error}")
        image = ""
    maps = {f"models/{model}": path for model, path in one.models.items()} | ({ORIGINAL: one.map} if one.map else {})
    for folder, source in maps.items():
        (out / folder).mkdir(exist_ok=True)
        try:
            _copy(source, out / folder / f"{one.case}{ENDING}")
        except OSError as error:
            problems.append(f"{one.case}: no label map: {error}")
    return image


def _copy_image(one: Question, out: Path) -> str:
    """Copy an image that is NIfTI as it is, another one as NIfTI: MONAI Label reads no other format of one file."""
    name = f"{one.case}{ENDING}"
    if one.image.name.endswith(ENDING):
        _copy(one.image, out / name)
    else:
        volume = read_surveyed(one.image)
        write(out / name, volume.array, volume.geometry)
    return name


def _copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)


def _row(one: Question, image: str, out: Path) -> dict[str, str]:
    picture = ""
    if one.picture and one.picture.is_file():
        picture = f"pictures/{one.picture.name}"
        _copy(one.picture, out / picture)
    label = out / ORIGINAL / f"{one.case}{ENDING}"
    given = {
        "rank": str(one.rank),
        "case": one.case,
        "class": one.name,
        "asked": one.asked,
        "selected": one.decision,
        "reasons": " | ".join(one.reasons),
        "image": image,
        "label": f"{ORIGINAL}/{label.name}" if label.is_file() else "",
        "models": ";".join(one.models),
        "picture": picture,
        "sha256": one.sha256,
    }
    return given | dict.fromkeys(FILLED, "")


def _write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # the mark tells spreadsheets that it is UTF-8
        writer = csv.DictWriter(file, [*GIVEN[:6], *FILLED, *GIVEN[6:]])
        writer.writeheader()
        writer.writerows(rows)


def _write_colors(desk: Desk, out: Path) -> None:
    """Write names and colors of the classes as 3D Slicer and ITK-SNAP read them."""
    rgb = {name: tuple(int(color[start : start + 2], 16) for start in (1, 3, 5)) for name, color in desk.colors.items()}
    slicer = ["0 background 0 0 0 0"]
    slicer += [f"{desk.ids[name]} {name} {r} {g} {b} 255" for name, (r, g, b) in rgb.items()]
    snap = ['0 0 0 0 0 0 0 "background"']
    snap += [f'{desk.ids[name]} {r} {g} {b} 1 1 1 "{name}"' for name, (r, g, b) in rgb.items()]
    write_text(out / SLICER, "\n".join([*slicer, ""]))
    write_text(out / SNAP, "\n".join([*snap, ""]))


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
        maps.check_same_patient(one, edited)
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

    def check_same_patient(self, one: Question, edited: Path) -> None:
        """Hold the classes that nobody was asked about against those of the map that was shown, which they copy.

        Raises:
            UserError: there are ``FEWEST_OTHERS`` or more, and none is as it was: the map is another patient's, or it
                was made without the one that was shown.
            CaseError: a map cannot be read.
        """
        if one.map is None:
            return
        after = read_reviewed(edited, list(self._ids.values()))
        before = read_reviewed(one.map, list(self._ids.values()), after.geometry)
        others = [id_ for name, id_ in self._ids.items() if (one.case, name) not in self._asked]
        in_both = [id_ for id_ in others if (before.array == id_).any() and (after.array == id_).any()]
        alike = [dice(before.array == id_, after.array == id_) for id_ in in_both]
        if len(alike) >= FEWEST_OTHERS and max(alike) < AS_IT_WAS:
            raise UserError(
                f"{edited}: not the map of {one.case} that was shown: of the {len(alike)} classes that nobody was "
                f"asked about, none is as it was (highest DSC {max(alike):.2f}). Is it another patient's? If not, save "
                "it with the classes alone that are asked about"
            )

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
