"""A review as files instead of a page: a folder for 3D Slicer, ITK-SNAP and MONAI Label.

The folder is one that MONAI Label's local datastore reads (``monailabel/datastore/local.py``): NIfTI images at the top,
label maps below ``labels/original``, and those that people are done with below ``labels/final``.
"""

import csv
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import atomic, write_text
from labelloop.base.wording import count
from labelloop.images.scan import read_surveyed
from labelloop.images.volume import write
from labelloop.review.desk import Desk, Question
from labelloop.review.maps import ENDING

log = logging.getLogger(__name__)
QUEUE, README = "queue.csv", "README.txt"
ORIGINAL, FINAL, DATASTORE = "labels/original", "labels/final", "datastore_v2.json"
"""Where MONAI Label looks for label maps and puts those of people, and what it says of them."""
SLICER, SNAP = "labels_slicer.ctbl", "labels_itksnap.txt"
FILLED = ("decision", "seconds", "comment")
"""Columns that the reviewer fills in."""
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
