"""The review queue: which labels are asked about, in which order, and their pictures."""

import numpy as np
import pandas as pd

from labelloop.base.classes import load_classes
from labelloop.base.tables import TABLES, read_table
from labelloop.images.boxes import box_text
from labelloop.images.volume import Geometry, write
from labelloop.review.queue import CaseFiles, queue, write_review

SCHEME = load_classes("flare")
EMPTY = {kind: pd.DataFrame(columns=list(TABLES[kind])) for kind in ("selected", "verdicts", "disagreement")}


def _queue(**rows: list[tuple]) -> pd.DataFrame:
    return queue(*(pd.DataFrame(rows.get(kind, []), columns=list(TABLES[kind])) for kind in EMPTY))


def test_a_place_that_cannot_be_read_costs_no_picture(tmp_path, caplog):
    grid = Geometry((24, 20, 8), (3.0, 3.0, 5.0))
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:6, 4:12, 3:10], labels[2:6, 13:18, 3:10] = SCHEME.ids["liver"], SCHEME.ids["spleen"]
    write(tmp_path / "image.nii.gz", labels * np.float32(20), grid)
    write(tmp_path / "a.nii.gz", labels, grid)
    place = box_text((slice(2, 4), slice(4, 8), slice(3, 6)), grid)
    names = ("liver", "spleen")
    table = _queue(
        selected=[("a", name, "unknown", "demoted", "volume", "volume: too large") for name in names],
        verdicts=[
            ("a", name, "volume", "fail", 3000.0, 2500.0, "ml", "too large", box)
            for name, box in zip(names, ("0 0 nowhere", place), strict=True)
        ],
    )
    files = {"a": CaseFiles(tmp_path / "image.nii.gz", "CT", tmp_path / "a.nii.gz")}
    write_review(table, files, SCHEME, tmp_path / "queue.csv", tmp_path / "pictures", limit=10)
    assert all((tmp_path / name).is_file() for name in read_table(tmp_path / "queue.csv", "review")["picture"])
    assert "a, liver: the place of the doubt is not shown" in caplog.text and "spleen" not in caplog.text
