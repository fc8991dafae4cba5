"""Scores of test cases: a model does not gain by failing."""

import csv

import numpy as np
import pytest

from labelloop.cases import Case
from labelloop.classes import load_classes
from labelloop.errors import CaseError
from labelloop.shards import Ledger
from labelloop.steps.cases import survey
from labelloop.steps.inference import evaluate
from labelloop.survey import read_truth
from labelloop.tables import read_table
from labelloop.volume import write

SHARD, SCHEME = "test-000", load_classes("flare")


@pytest.fixture(scope="module")
def rows(phantom) -> list[dict[str, str]]:
    """Labeled test cases, some of them with a tumor."""
    with phantom.open(newline="") as handle:
        rows = [row | {"role": "test"} for row in csv.DictReader(handle) if row["label"] and row["modality"] == "CT"]
    return [row | {key: str(phantom.parent / row[key]) for key in ("image", "label")} for row in rows]


def test_a_case_whose_inference_failed_is_scored_as_if_nothing_was_found(rows, tmp_path, caplog):
    survey(rows, "flare", SHARD, tmp_path / "survey")
    ledger, failed = Ledger(tmp_path / "predictions", SHARD), rows[0]["case"]

    def perfect(row):
        if row["case"] == failed:
            raise CaseError("image_corrupt", row["image"], "cut off", "Copy it again.")
        truth, path = read_truth(Case.model_validate(row), SCHEME), ledger.folder / f"{row['case']}.nii.gz"
        write(path, truth.array, truth.geometry)
        return path, {}

    for row in rows:
        ledger.run(row["case"], "key", lambda row=row: perfect(row))
    ledger.close()
    arguments = {"classes": "flare", "known": ["all"], "rules": "official-2024", "version": 1}
    files = {"out": tmp_path / "evaluation" / "final.csv", "lesions": tmp_path / "evaluation" / "lesions" / "final.csv"}
    for _ in range(2):  # the second time nothing is scored again
        caplog.clear()
        evaluate(rows, [str(ledger.manifest)], tmp_path / "survey", **arguments, **files)
        assert f"final: no label map of {failed}; scored as if nothing was found" in caplog.text
    scores = read_table(files["out"], "scores")
    assert set(scores["case"]) == {row["case"] for row in rows}
    of_failed = scores["case"] == failed
    there = scores["volume_truth_ml"] > 0
    assert (of_failed & there).any()
    assert list(scores["dsc"]) == list(scores["nsd"]) == list(np.where(of_failed & there, 0.0, 1.0))
    assert scores.loc[of_failed, ["volume_prediction_ml", "volume_error_ml"]].isna().all(axis=None)
    assert scores.loc[~of_failed, ["volume_prediction_ml", "volume_error_ml"]].notna().all(axis=None)
    lesions = read_table(files["lesions"], "lesions").set_index("case")
    assert failed not in lesions.index or lesions.loc[failed, "detected"] == 0
