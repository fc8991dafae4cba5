"""A review as files instead of a page: a folder for 3D Slicer and ITK-SNAP, and the way back."""

import csv
import io
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import sha256, write_text
from labelloop.base.tables import delimiter_of
from labelloop.base.wording import count
from labelloop.images.detached import parts
from labelloop.images.listing import EXTENSIONS, extension
from labelloop.images.scan import read_surveyed
from labelloop.images.volume import write
from labelloop.review.decisions import DECISIONS, EDITED, Decision
from labelloop.review.desk import Asked, Desk
from labelloop.review.maps import ENDING

log = logging.getLogger(__name__)
QUEUE, README = "queue.csv", "README.txt"
SLICER, SNAP = "labels_slicer.ctbl", "labels_itksnap.txt"
FILLED = ("decision", "seconds", "comment")
"""Columns that the reviewer fills in."""
GIVEN = ("rank", "case", "class", "asked", "selected", "reasons", "image", "label", "models", "picture", "sha256")
TOLD = """Labels of the set {labels} to look at
{line}

1. Open images/CASE with labels/CASE.nii.gz over it (3D Slicer: as a segmentation, colors of {slicer};
   ITK-SNAP: as a segmentation, label descriptions of {snap}). What single models said lies in models/.
2. Look at the class that the row of {queue} asks about, and write into its column "decision":

   right    the class is as it should be
   wrong    it is not; nobody learns from it
   absent   this patient has none of it
   edited   it was wrong and is right now, in edited/CASE.nii.gz
   unsure   ask somebody else

   An empty decision is none. "seconds" and "comment" may stay empty.
3. Edit: save the whole label map, with its ids and on its grid, as edited/CASE.nii.gz (NRRD and MHA will do, a
   .seg.nrrd of 3D Slicer will not: export it as a label map). Of the map, only classes whose row says "edited" count.
4. labelloop review RESULTS --labels {labels} --import THIS_FOLDER --reviewer YOUR_NAME
   Then type the command of the run again.
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
    for folder in ("images", "labels", "edited", "models", "pictures"):
        (out / folder).mkdir(parents=True)
    images: dict[str, str] = {}
    problems: list[str] = []
    for one in asked:
        if one.case not in images:
            images[one.case] = _copy_case(one, out, problems)
    rows = [_row(one, images[one.case], out) for one in asked]
    _write_rows(out / QUEUE, rows)
    title = f"Labels of the set {desk.labels} to look at"
    told = TOLD.format(labels=desk.labels, line="=" * len(title), slicer=SLICER, snap=SNAP, queue=QUEUE)
    write_text(out / README, told)
    _write_colors(desk, out)
    log.info("%s: %s of %s", out, count(len(rows), "label"), count(len(images), "case"))
    return problems


def _copy_case(one: Asked, out: Path, problems: list[str]) -> str:
    """Copy image and label maps of a case; return the image's name in the folder, or nothing when it cannot be read."""
    try:
        image = _copy_image(one, out)
    except (CaseError, OSError, ValueError) as error:
        problems.append(f"{one.case}: no image: {error}")
        image = ""
    maps = {f"models/{model}": path for model, path in one.models.items()} | ({"labels": one.map} if one.map else {})
    for folder, source in maps.items():
        (out / folder).mkdir(exist_ok=True)
        try:
            shutil.copyfile(source, out / folder / f"{one.case}{ENDING}")
        except OSError as error:
            problems.append(f"{one.case}: no label map: {error}")
    return image


def _copy_image(one: Asked, out: Path) -> str:
    """Copy an image as it is; one of two files as NIfTI, because header and voxels know each other by name."""
    if len(parts(one.image)) == 1:
        name = f"images/{one.case}{extension(one.image.name)}"
        shutil.copyfile(one.image, out / name)
        return name
    name, volume = f"images/{one.case}{ENDING}", read_surveyed(one.image)
    write(out / name, volume.array, volume.geometry)
    return name


def _row(one: Asked, image: str, out: Path) -> dict[str, str]:
    picture = ""
    if one.picture and one.picture.is_file():
        picture = f"pictures/{one.picture.name}"
        shutil.copyfile(one.picture, out / picture)
    label = out / "labels" / f"{one.case}{ENDING}"
    given = {
        "rank": str(one.rank),
        "case": one.case,
        "class": one.name,
        "asked": one.asked,
        "selected": one.decision,
        "reasons": " | ".join(one.reasons),
        "image": image,
        "label": f"labels/{label.name}" if label.is_file() else "",
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
    edited: set[str] = set()
    for number, row in _read_rows(folder / QUEUE):
        decision = row["decision"].strip().lower()
        if not decision:
            continue
        try:
            made.append(_take(desk, folder, reviewer, decision, row))
            edited |= {row["case"]} if decision == EDITED else set()
        except (CaseError, UserError) as error:
            problems.append(f"{folder / QUEUE}: row {number}: {error}")
    for file in sorted((folder / "edited").glob("*")):
        case = file.name.removesuffix(extension(file.name) or file.suffix)
        if file.is_file() and case not in edited and not file.name.startswith("."):
            problems.append(f"{file}: not used: no row of case {case!r} says edited, or the row cannot be used")
    return made, problems


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a queue with their numbers, whichever of comma and semicolon a spreadsheet wrote."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a table in UTF-8: {error}") from error
    handle = io.StringIO(text, newline="")
    reader = csv.DictReader(handle, delimiter=delimiter_of(handle))
    lacking = {"case", "class", "asked", "sha256", *FILLED} - set(reader.fieldnames or ())
    if lacking:
        raise UserError(f"{path}: lacks the columns {', '.join(sorted(lacking))}")
    for number, row in enumerate(reader, start=2):
        yield number, {str(key): value if isinstance(value, str) else "" for key, value in row.items()}


def _take(desk: Desk, folder: Path, reviewer: str, decision: str, row: Mapping[str, str]) -> Decision:
    if decision not in DECISIONS:
        raise UserError(f"decision {decision[:40]!r}, where one of {', '.join(DECISIONS)} is expected")
    try:
        seconds = float(row["seconds"].replace(",", ".")) if row["seconds"].strip() else None
    except ValueError:
        raise UserError(f"seconds {row['seconds'][:40]!r}, where a number or nothing is expected") from None
    one = desk.question(row["case"], row["class"], row["sha256"], row["asked"])
    shown = folder / "labels" / f"{row['case']}{ENDING}"
    altered = bool(row["sha256"]) and shown.is_file() and sha256(shown) != row["sha256"]
    edited = _edited(folder, row["case"]) or (shown if altered else None)
    if altered and decision != EDITED:
        raise UserError(f"{shown} was altered, but the decision is {decision}; say edited, or put the map back")
    judged = shown if shown.is_file() and not altered else None
    comment = row["comment"]
    return desk.decide(one, reviewer, decision, judged=judged, edited=edited, comment=comment, seconds=seconds)


def _edited(folder: Path, case: str) -> Path | None:
    files = [folder / "edited" / f"{case}{ending}" for ending in EXTENSIONS]
    return next((file for file in files if file.is_file()), None)
