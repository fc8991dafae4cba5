"""The page about MR: what was carried to which sequence, a patient's sequences together, scores by sequence."""

import numpy as np
import pandas as pd
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.tables import TABLES, write_table
from labelloop.images.volume import Geometry, write
from labelloop.report.page import write_report
from labelloop.report.results import Results
from labelloop.report.scores import Scored
from labelloop.report.sequences import about_cases, scores_by_sequence, transfers

SCHEME = load_classes("flare")
GRID = Geometry((20, 16, 6), (4.0, 4.0, 6.0))
SEQUENCES = ("t1w", "arterial", "t2w", "dwi")


def save(path, kind, rows):
    write_table(path, pd.DataFrame(rows, columns=list(TABLES[kind])), kind)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two patients; labels of their T1W went to arterial, not to DWI; the second has no T1W."""
    root = tmp_path_factory.mktemp("run")
    liver = np.zeros(GRID.shape, np.uint8)
    liver[2:4, 4:12, 4:12] = SCHEME.ids["liver"]
    cases = []
    for name in SEQUENCES:
        case, image = f"p_{name}", root / f"p_{name}_0000.nii.gz"
        write(image, (liver * 50 + 7).astype(np.int16), GRID)
        cases.append((case, str(image), "", "phantom", "MR", name, "p", "train", "", ""))
        if name in ("t1w", "arterial"):
            write(root / "labels/carried" / f"{case}.nii.gz", liver, GRID)
    cases.append(("ct", "ct.nii.gz", "", "phantom", "CT", "", "c", "test", "", ""))
    save(root / "cases.csv", "cases", cases)
    refused = "a kidney not above 0.8: 0.41"
    rows = [
        ("p_arterial", "p_t1w", "arterial", "accepted", 0.93, 0.91, 1.2, 5.5, "", "a kidney above 0.85: 0.930"),
        ("p_t2w", "p_t1w", "t2w", "refused", 0.9, 0.41, 2.0, 9.0, "both_kidneys", refused),
        ("q_t2w", "", "t2w", "refused", None, None, None, None, "no_source", "patient q has no t1w image"),
        ("p_dwi", "p_t1w", "dwi", "refused", 0.5, 0.4, 2.0, 9.0, "both_kidneys", refused),
    ]
    save(root / "labels/carried/transfers.csv", "transfers", rows)
    return root


def test_each_sequence_has_its_row_and_its_reasons(results):
    from labelloop.base.tables import read_table
    from labelloop.report.gallery import Atlas

    atlas = Atlas.of(Results(results), read_table(results / "cases.csv", "cases"), SCHEME, None)
    found = transfers(Results(results), atlas, "carried")
    rows = {row["sequence"]: row for row in found["rows"]}
    assert {name: (row["cases"], row["accepted"]) for name, row in rows.items()} == {
        "arterial": (1, 1), "t2w": (2, 0), "dwi": (1, 0)
    }  # fmt: skip
    assert sorted(rows["t2w"]["why"].values()) == [1, 1] and rows["arterial"]["translation_mm"] == 5.5
    assert found["sheet"]["name"] == "p_t1w" and found["sheet"]["src"].startswith("data:image/png")
    assert transfers(Results(results), atlas, "another") is None


def test_of_several_channels_the_first_is_drawn(results):
    from labelloop.base.tables import read_table
    from labelloop.report.gallery import Atlas

    table = read_table(results / "cases.csv", "cases")
    alone = Atlas.of(Results(results), table, SCHEME, None)
    both = Atlas.of(Results(results), table.assign(image=table["image"] + ";pet.nii.gz"), SCHEME, None)
    assert both.images == alone.images and both.images["p_t1w"][0].is_file()


def test_the_page_shows_them(results):
    page = results / "report" / "index.html"
    write_report(results, page, [], SCHEME, label_sets=["carried"])
    text = page.read_text(encoding="utf-8")
    assert "Labels carried to other MR sequences" in text and "patient q has no t1w image" in text
    assert "The sequences of p_t1w" in text


def test_the_mean_of_a_sequence_is_over_organs_as_that_of_all_cases():
    cases = pd.DataFrame({"case": list("abc"), "modality": "MR", "sequence": "t1w", "patient": list("abc")})
    rows = [("a", "liver", 0.9), ("b", "liver", 0.9), ("c", "liver", 0.9), ("c", "spleen", 0.3)]
    table = pd.DataFrame(rows, columns=["case", "class", "dsc"]).assign(nsd=0.5)
    scored = Scored("last", table, SCHEME)
    found = scores_by_sequence([scored], cases, SCHEME)[0]["dsc"]
    assert found == pytest.approx([scored.mean(SCHEME.sets["organs"], "dsc")]) == [0.6]


def test_scores_by_sequence():
    cases = pd.DataFrame(
        {"case": ["a", "b", "c", "ct"], "modality": ["MR", "MR", "MR", "CT"], "sequence": ["t1w", "t1w", "dwi", "x"],
         "patient": list("aabc")}
    )  # fmt: skip
    dsc = {"a": 0.9, "b": 0.7, "c": 0.2, "ct": 0.95}
    table = pd.DataFrame(
        [{"case": c, "class": k, "dsc": v, "nsd": v} for c, v in dsc.items() for k in ("liver", "spleen")]
    )
    early = table[table["case"] != "ct"].assign(dsc=lambda t: t["dsc"] / 2)
    rows = scores_by_sequence([Scored("first", early, SCHEME), Scored("last", table, SCHEME)], cases, SCHEME)
    found = {row["name"]: (row["n"], *np.round(row["dsc"], 3)) for row in rows}
    assert found["all MR"] == (3, 0.3, 0.6) and found["MR t1w"] == (2, 0.4, 0.8) and found["MR dwi"] == (1, 0.1, 0.2)
    assert found["CT"][0] == 1 and np.isnan(found["CT"][1]) and found["CT"][2] == 0.95
    assert rows[0]["name"] == "all MR" and rows[-1]["name"] == "CT"
    assert scores_by_sequence([Scored("last", table[table["case"] == "ct"], SCHEME)], cases, SCHEME) is None
    assert about_cases(cases) == {"a": "t1w, patient a", "b": "t1w, patient a", "c": "dwi, patient b"}
