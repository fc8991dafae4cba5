"""What a student learns from: labels that are trusted, and where asked only voxels on which the models agree."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labelloop.base.classes import IGNORED, load_classes
from labelloop.base.paths import manifest_of
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.images.volume import Geometry, read, write
from labelloop.steps.labels import trust

SCHEME, GRID = load_classes("flare"), Geometry((6, 5, 4), (2.0, 2.0, 2.0))
LIVER, SPLEEN, AORTA = (SCHEME.ids[name] for name in ("liver", "spleen", "aorta"))
FIRST, SECOND, BOTH = (slice(None), slice(None), 0), (slice(None), slice(None), 1), (slice(None), slice(None), 2)


def manifest(folder: Path, array: np.ndarray) -> Path:
    write(folder / "a.nii.gz", array, GRID)
    row = {"case": "a", "status": "done", "file": "a.nii.gz", "sha256": f"{array.sum()}", "key": "", "reason": ""}
    write_table(manifest_of(folder, "s"), pd.DataFrame([row]), "manifest")
    return Path(manifest_of(folder, "s"))


def trusted(folder: Path, decisions: dict[str, str], compared: bool) -> np.ndarray:
    """Return the trusted map of two models: they agree on a plane of the liver; on one each, one alone sees it.

    The fused map follows the first; the aorta lies in the plane that the second calls liver.
    """
    maps = np.zeros((3, *GRID.shape), np.uint8)
    maps[0][FIRST] = maps[0][BOTH] = maps[1][SECOND] = maps[1][BOTH] = LIVER
    maps[2] = maps[0]
    maps[2][0, 0, 1], maps[2][0, 0, 5] = AORTA, SPLEEN
    files = [manifest(folder / name, array) for name, array in zip("mnf", maps, strict=True)]
    states = {"truth": "present", "accepted": "present", "demoted": "unknown"}
    rows = [dict.fromkeys(TABLES["selected"], "") | {"case": "a", "class": name, "state": states[d], "decision": d}
            for name, d in decisions.items()]  # fmt: skip
    write_table(folder / "selected.csv", pd.DataFrame(rows), "selected")
    out = manifest_of(folder / "trusted", "s")
    spec, known = {"predict": ["m", "n"]}, {"m": ["organs"], "n": ["organs"]}
    given = files[:2] if compared else ()
    trust(files[2], folder / "selected.csv", spec, known, "flare", Path(out), 1, given)
    assert list(read_table(out, "manifest")["file"]) == ["a.nii.gz"]
    return read(folder / "trusted" / "a.nii.gz").array


@pytest.mark.parametrize("compared", [False, True])
def test_voxels_on_which_the_models_differ_are_ignored_where_that_is_asked(tmp_path, compared):
    made = trusted(tmp_path, {"liver": "accepted", "aorta": "truth", "spleen": "demoted"}, compared)
    unsure = IGNORED if compared else None
    assert (made[FIRST] == (unsure or LIVER)).all() and (made[BOTH] == LIVER).all()
    assert made[0, 0, 1] == AORTA, "what an annotator drew stays"
    assert (made[SECOND].ravel()[1:] == (unsure or 0)).all()
    assert (made[:, :, 3:] == 0).all(), "a refused label is blank"


def test_voxels_of_labels_that_are_no_models_are_not_asked_about(tmp_path):
    made = trusted(tmp_path, {"liver": "demoted", "aorta": "truth", "spleen": "truth"}, True)
    assert set(np.unique(made)) == {0, AORTA, SPLEEN}
