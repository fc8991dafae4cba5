"""Report sections with pictures: test cases against their truth, and the labels most worth a reviewer's look."""

import base64
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import CaseError, UserError
from labelloop.base.tables import upside_down
from labelloop.base.wording import count, percent, plain
from labelloop.cases.table import first_image
from labelloop.images.pictures import AXES, CT_WINDOW, HATCHED, SHADE, case_picture, for_page
from labelloop.images.scan import read_surveyed
from labelloop.images.volume import Volume, read, upright_volume
from labelloop.report.results import Results
from labelloop.report.scores import Chosen, Scored, chosen_cases

log = logging.getLogger(__name__)
Truth = Callable[[str], Volume | None]
"""Return the reference labels of a case in the ids of the class scheme, on the grid of its image; None without."""
SUSPICIOUS, SHOWN = 10, 12
"""Pictures of a review queue and of test cases, at most: a page of any run stays below some MB."""
PANEL_PIXELS = 720


@dataclass(frozen=True)
class Atlas:
    """Where the images, the final label maps and the truth of a run lie."""

    results: Results
    images: Mapping[str, tuple[Path, str]]
    scheme: ClassScheme
    truth: Truth | None = None
    turned: frozenset[str] = frozenset()
    """Cases that are stored upside down."""

    @classmethod
    def of(cls, results: Results, cases: pd.DataFrame, scheme: ClassScheme, truth: Truth | None) -> "Atlas":
        """Return the atlas of a case table; image files are absolute, or relative to the results or to where we are."""
        images = {}
        for case, image, modality in zip(cases["case"], cases["image"], cases["modality"], strict=True):
            first = first_image(image)
            beside = results.root / first
            images[case] = (beside if beside.is_file() else Path(first), modality)
        upright = results.paths.table("upright")
        turned = upside_down(results.root / upright) if upright in results else set()
        return cls(results, images, scheme, truth, frozenset(turned))

    def draw(self, case: str, labels: str) -> dict[str, Any]:
        """Return the pictures of a case, one a view, and the classes that are outlined in them.

        Args:
            labels: label map, relative to the results.

        Raises:
            CaseError, OSError, RuntimeError, ValueError: when a file is missing, unreadable, or on another grid.
        """
        path, modality = self.images[case]
        for file, there in ((path, path.is_file()), (Path(labels), labels in self.results)):
            if not there:
                raise FileNotFoundError(f"{file.name} is not there")
        image, drawn = read_surveyed(path), read(self.results.root / labels)
        truth = self.truth(case) if self.truth else None
        if case in self.turned:
            image, drawn = upright_volume(image), upright_volume(drawn)
            truth = upright_volume(truth) if truth else None
        window = CT_WINDOW if modality == "CT" else None
        views, classes = [], set()
        for view in AXES:
            png = case_picture(image, drawn, self.scheme, truth, window, views=(view,), panel_width=PANEL_PIXELS)
            webp, outlined = for_page(png)
            views.append({"view": view, "src": data_uri(webp, "webp")})
            classes.update(outlined)
        return {"views": views, "legend": legend(self.scheme, classes), "truth": truth is not None}

    def picture(self, case: str, labels: str) -> bytes:
        """Draw the axial slice of a case with most labels, or its middle one when there is no label map.

        Raises:
            KeyError, OSError, RuntimeError, ValueError: as :meth:`draw`, and for a case that is not in the table.
        """
        path, modality = self.images[case]
        image = read_surveyed(path)
        drawn = Volume(np.zeros(image.array.shape, np.uint8), image.geometry)
        if labels in self.results:
            drawn = read(self.results.root / labels)
        if case in self.turned:
            image, drawn = upright_volume(image), upright_volume(drawn)
        window = CT_WINDOW if modality == "CT" else None
        return case_picture(image, drawn, self.scheme, None, window, views=("axial",), focus=(), panel_width=480)


def scored_pictures(atlas: Atlas, scored: Scored) -> list[dict[str, Any]]:
    """Return test cases with their pictures (:func:`labelloop.report.scores.chosen_cases`), or why one has none."""
    return [
        {
            "case": chosen.case,
            "words": list(chosen.words),
            "told": _told(chosen),
            **_attempt(atlas, chosen.case),
        }
        for chosen in chosen_cases(scored, SHOWN)
    ]


def _told(chosen: Chosen) -> list[str]:
    told = [f"organ DSC {percent(chosen.organs)} %"] if chosen.organs == chosen.organs else []
    told += [f"tumor DSC {percent(chosen.tumor)} %"] if chosen.tumor == chosen.tumor else []
    return told + ([f"not found: {', '.join(map(plain, chosen.missed))}"] if chosen.missed else [])


def unscored_pictures(atlas: Atlas, summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Return cases with their final label maps where nothing was scored, those with fewest classes first.

    Args:
        summary: volumes of the final label maps; columns ``case``, ``class``, ``volume_ml``.
    """
    found = (summary["volume_ml"].astype(float) > 0).groupby(summary["case"]).agg(["sum", "size"])
    found = found.sort_index().sort_values("sum", kind="stable")
    places = sorted({round(place) for place in np.linspace(0, len(found) - 1, min(SHOWN, len(found)))})
    return [
        {
            "case": case,
            "words": [],
            "told": [f"{found.loc[case, 'sum']} of {count(int(found.loc[case, 'size']), 'class')} found"],
            **_attempt(atlas, case),
        }
        for case in found.index[places]
    ]


def legend(scheme: ClassScheme, names: Iterable[str]) -> list[dict[str, str]]:
    """Return name and color of classes, in the order of the scheme, and of what is hatched."""
    chosen = set(names)
    found = [{"name": info.name, "color": info.color} for info in scheme.classes if info.name in chosen]
    return found + ([{"name": HATCHED, "color": SHADE}] if HATCHED in chosen else [])


def queue_pictures(results: Results, scheme: ClassScheme, queue: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the first rows of a review queue that have a picture, with the picture and its legend."""
    shown = []
    for row in [row for row in queue if row["picture"]][:SUSPICIOUS]:
        png = results.bytes(Path(results.paths.review()).parent / row["picture"])
        if png:
            webp, classes = for_page(png)
            shown.append({**row, "src": data_uri(webp, "webp"), "legend": legend(scheme, classes)})
    return shown


def _attempt(atlas: Atlas, case: str) -> dict[str, Any]:
    """Return the pictures of a case, or the problem in words: one bad file must not cost the page."""
    nothing: dict[str, Any] = {"views": [], "legend": [], "truth": False}
    if case not in atlas.images:
        return nothing | {"problem": "the case table does not name it"}
    try:
        return atlas.draw(case, f"{atlas.results.paths.final}/{case}.nii.gz") | {"problem": ""}
    except (CaseError, OSError, RuntimeError, UserError, ValueError) as error:
        log.warning("no picture of %s: %s", case, error)
        return nothing | {"problem": str(error).strip().splitlines()[-1]}


def data_uri(content: bytes, kind: str = "png") -> str:
    """Return a picture as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
