"""Report sections with pictures: test cases against their truth, and the labels most worth a reviewer's look."""

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from labelloop.classes import ClassScheme
from labelloop.errors import CaseError
from labelloop.report.pictures import AXES, CT_WINDOW, case_picture
from labelloop.report.scores import Scored, chosen_cases
from labelloop.volume import Volume, read

log = logging.getLogger(__name__)
Truth = Callable[[str], Volume | None]
"""Return the reference labels of a case in the ids of the class scheme, on the grid of its image; None without."""
THUMBNAILS = 6


@dataclass(frozen=True)
class Atlas:
    """Where the images, the label maps and the truth of a run lie."""

    results: Path
    images: Mapping[str, tuple[Path, str]]
    scheme: ClassScheme
    truth: Truth | None = None

    @classmethod
    def of(cls, results: Path, table: Path, cases: pd.DataFrame, scheme: ClassScheme, truth: Truth | None) -> "Atlas":
        """Return the atlas of a case table; image files are absolute, or relative to the table or to where we are."""
        images = {}
        for case, image, modality in zip(cases["case"], cases["image"], cases["modality"], strict=True):
            beside = table.parent / image
            images[case] = (beside if beside.is_file() else Path(image), modality)
        return cls(results, images, scheme, truth)

    def draw(
        self, case: str, labels: Path, views: Sequence[str] = tuple(AXES), with_truth: bool = True, **options: Any
    ) -> list[dict[str, str]]:
        """Return the pictures of a case as data URIs, one a view; ``options`` are those of ``case_picture``.

        Raises:
            CaseError, OSError, RuntimeError, ValueError: when a file is missing, unreadable, or on another grid.
        """
        path, modality = self.images[case]
        for file in (path, labels):
            if not file.is_file():
                raise FileNotFoundError(f"{file.name} is not there")
        image, drawn = read(path), read(labels)
        truth = self.truth(case) if self.truth and with_truth else None
        window = CT_WINDOW if modality == "CT" else None
        pictures = [case_picture(image, drawn, self.scheme, truth, window, views=(v,), **options) for v in views]
        return [{"view": view, "src": _uri(png)} for view, png in zip(views, pictures, strict=True)]


def scored_pictures(atlas: Atlas, scored: Scored | None) -> list[dict[str, Any]]:
    """Return best, median and worst test case with their pictures, or why there is none."""
    shown = []
    for word, case, dsc in chosen_cases(scored) if scored else []:
        entry: dict[str, Any] = {"word": word, "case": case, "dsc": dsc, "views": [], "problem": ""}
        entry |= _attempt(atlas, case, atlas.results / "predictions" / f"{case}.nii.gz", panel_width=800)
        shown.append(entry)
    return shown


def queue_pictures(atlas: Atlas, label_set: str, queue: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return small axial pictures of the first rows of a review queue, one a case; rows without files are left out."""
    shown: dict[str, dict[str, Any]] = {}
    for row in queue:
        case, name = row["case"], row["class"]
        if case in shown or len(shown) == THUMBNAILS:
            continue
        labels = atlas.results / "labels" / label_set / f"{case}.nii.gz"
        options = {"views": ("axial",), "focus": [name], "panel_width": 480, "with_truth": False}
        entry = _attempt(atlas, case, labels, **options)
        if entry.get("views"):
            shown[case] = {"case": case, "class": name, **entry}
    return list(shown.values())


def _attempt(atlas: Atlas, case: str, labels: Path, **options: Any) -> dict[str, Any]:
    """Return the pictures of a case, or the problem in words: one bad file must not cost the page."""
    if case not in atlas.images:
        return {"problem": "the case table does not name it"}
    try:
        return {"views": atlas.draw(case, labels, **options)}
    except (CaseError, OSError, RuntimeError, ValueError) as error:
        log.warning("no picture of %s: %s", case, error)
        return {"problem": str(error).strip().splitlines()[-1]}


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
