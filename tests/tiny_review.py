"""Results of a run with a review queue, made without a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.files import sha256
from labelloop.base.paths import Paths
from labelloop.base.tables import TABLES, write_table
from labelloop.images.volume import Geometry, write
from labelloop.review.desk import write_desk

SCHEME = load_classes("flare")
GRID = Geometry((12, 10, 8), (3.0, 3.0, 5.0), direction=(-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
LIVER, SPLEEN = SCHEME.ids["liver"], SCHEME.ids["spleen"]
ASKED = (("a", "liver", "doubt"), ("a", "spleen", "doubt"), ("b", "liver", "random"))


def label_map() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:5, 2:6, 2:6], labels[2:4, 2:4, 8:10] = LIVER, SPLEEN
    return labels


def write_tiny_results(folder: Path) -> Path:
    """Write results with a queue of three labels of two cases; return their folder."""
    images = {}
    for case in ("a", "b"):
        images[case] = folder / f"{case}.mha"
        write(images[case], np.arange(960).reshape(GRID.shape).astype(np.int16), GRID)
    return write_results(folder, images, {case: (label_map(), GRID) for case in images}, ASKED)


def write_results(
    folder: Path,
    images: Mapping[str, Path],
    maps: Mapping[str, tuple[np.ndarray, Geometry]],
    asked: Sequence[tuple[str, str, str]],
    models: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    reasons: str = "volume: odd\nleak: odd, too",
    modality: str = "",
    scheme: ClassScheme = SCHEME,
    labels: str = "pseudo",
) -> Path:
    """Write results with a queue; return their folder.

    Args:
        images: by case. maps: label map and its grid, by case.
        asked: case, class, and doubt or random, of each label of the queue.
        labels: name of the label set.
        models: label maps by model and case; None: one, ``m``, that made the maps themselves.
    """
    root, paths = folder / "results", Paths(str(folder / "results"))
    models = {"m": {case: array for case, (array, _) in maps.items()}} if models is None else models
    rows, cases, queue = [], [], []
    for case, (array, grid) in maps.items():
        write(root / f"labels/{labels}/{case}.nii.gz", array, grid)
        for model, made in models.items():
            if case in made:
                write(root / f"models/{model}/predictions/{case}.nii.gz", made[case], grid)
        known = {"case": case, "image": str(images[case]), "modality": modality}
        cases.append(dict.fromkeys(TABLES["cases"], "") | known)
        empty = dict.fromkeys(TABLES["selected"], "")
        rows += [empty | {"case": case, "class": name, "decision": "accepted"} for name in scheme.names]
    for rank, (case, name, why) in enumerate(asked, start=1):
        made = {"case": case, "class": name, "asked": why, "rank": rank, "reasons": reasons, "decision": "demoted"}
        made |= {"file": f"../labels/{labels}/{case}.nii.gz", "image": str(images[case])}
        made["sha256"] = sha256(root / f"labels/{labels}/{case}.nii.gz")
        queue.append(dict.fromkeys(TABLES["review"], "") | made)
    write_table(paths.table("cases"), cases, "cases")
    write_table(paths.label_table("selected", labels), rows, "selected")
    write_table(paths.review(labels), queue, "review")
    write_desk(Path(paths.desk(labels)), labels, str(folder / "reviews" / labels), scheme, [*models, "gone"])
    return root
