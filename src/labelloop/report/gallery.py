"""Report sections with pictures: test cases against their truth, and the labels most worth a reviewer's look."""

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labelloop.classes import ClassScheme
from labelloop.errors import CaseError
from labelloop.report.pictures import AXES, CT_WINDOW, case_picture
from labelloop.report.results import Results
from labelloop.report.scores import Scored, chosen_cases
from labelloop.scan import read_surveyed
from labelloop.tables import upside_down
from labelloop.volume import Volume, on_its_feet, read

log = logging.getLogger(__name__)
Truth = Callable[[str], Volume | None]
"""Return the reference labels of a case in the ids of the class scheme, on the grid of its image; None without."""
SUSPICIOUS = 10


@dataclass(frozen=True)
class Atlas:
    """Where the images, the label maps and the truth of a run lie."""

    results: Path
    images: Mapping[str, tuple[Path, str]]
    scheme: ClassScheme
    truth: Truth | None = None
    turned: frozenset[str] = frozenset()
    """Cases that are stored upside down."""

    @classmethod
    def of(cls, results: Path, cases: pd.DataFrame, scheme: ClassScheme, truth: Truth | None) -> "Atlas":
        """Return the atlas of a case table; image files are absolute, or relative to the results or to where we are."""
        images = {}
        for case, image, modality in zip(cases["case"], cases["image"], cases["modality"], strict=True):
            beside = results / image
            images[case] = (beside if beside.is_file() else Path(image), modality)
        return cls(results, images, scheme, truth, frozenset(upside_down(results / "upright.csv")))

    def draw(self, case: str, labels: Path) -> list[dict[str, str]]:
        """Return the pictures of a case as data URIs, one a view.

        Raises:
            CaseError, OSError, RuntimeError, ValueError: when a file is missing, unreadable, or on another grid.
        """
        path, modality = self.images[case]
        for file in (path, labels):
            if not file.is_file():
                raise FileNotFoundError(f"{file.name} is not there")
        image, drawn = read_surveyed(path), read(labels)
        truth = self.truth(case) if self.truth else None
        if case in self.turned:
            image, drawn = on_its_feet(image), on_its_feet(drawn)
            truth = on_its_feet(truth) if truth else None
        window = CT_WINDOW if modality == "CT" else None
        pictures = {
            v: case_picture(image, drawn, self.scheme, truth, window, views=(v,), panel_width=800) for v in AXES
        }
        return [{"view": view, "src": data_uri(png)} for view, png in pictures.items()]

    def picture(self, case: str, labels: Path) -> bytes:
        """Draw the axial slice of a case with most labels, or its middle one when there is no label map.

        Raises:
            KeyError, OSError, RuntimeError, ValueError: as :meth:`draw`, and for a case that is not in the table.
        """
        path, modality = self.images[case]
        image = read_surveyed(path)
        drawn = read(labels) if labels.is_file() else Volume(np.zeros(image.array.shape, np.uint8), image.geometry)
        if case in self.turned:
            image, drawn = on_its_feet(image), on_its_feet(drawn)
        window = CT_WINDOW if modality == "CT" else None
        return case_picture(image, drawn, self.scheme, None, window, views=("axial",), focus=(), panel_width=480)


def scored_pictures(atlas: Atlas, scored: Scored | None) -> list[dict[str, Any]]:
    """Return best, median and worst test case with their pictures, or why there is none."""
    shown = []
    for word, case, dsc in chosen_cases(scored) if scored else []:
        entry: dict[str, Any] = {"word": word, "case": case, "dsc": dsc, "views": [], "problem": ""}
        entry |= _attempt(atlas, case, atlas.results / "predictions" / f"{case}.nii.gz")
        shown.append(entry)
    return shown


def queue_pictures(results: Results, queue: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the first rows of a review queue that have a picture, with the picture as data URI."""
    drawn = [row for row in queue if row["picture"]][:SUSPICIOUS]
    found = [(row, results.bytes(f"review/{row['picture']}")) for row in drawn]
    return [{**row, "src": data_uri(png)} for row, png in found if png]


def _attempt(atlas: Atlas, case: str, labels: Path) -> dict[str, Any]:
    """Return the pictures of a case, or the problem in words: one bad file must not cost the page."""
    if case not in atlas.images:
        return {"problem": "the case table does not name it"}
    try:
        return {"views": atlas.draw(case, labels)}
    except (CaseError, OSError, RuntimeError, ValueError) as error:
        log.warning("no picture of %s: %s", case, error)
        return {"problem": str(error).strip().splitlines()[-1]}


def data_uri(png: bytes) -> str:
    """Return a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
