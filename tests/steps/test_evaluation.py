"""Scores of test cases: a model does not gain by failing."""

import csv
from pathlib import Path

import numpy as np
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.errors import CaseError
from labelloop.base.paths import Paths, manifest_of
from labelloop.base.shards import Ledger
from labelloop.base.tables import read_table, write_table
from labelloop.cases.survey import read_truth
from labelloop.cases.table import Case
from labelloop.images.volume import write
from labelloop.steps.inference import check_final, evaluate, summarize
from survey_files import do_survey

SHARD, SCHEME = "test-000", load_classes("flare")


@pytest.fixture(scope="module")
def rows(phantom) -> list[dict[str, str]]:
    """Labeled test cases, some of them with a tumor."""
    with phantom.open(newline="") as handle:
        rows = [row | {"role": "test"} for row in csv.DictReader(handle) if row["label"] and row["modality"] == "CT"]
    return [row | {key: str(phantom.parent / row[key]) for key in ("image", "label")} for row in rows]


def test_a_case_whose_inference_failed_is_scored_as_if_nothing_was_found(rows, tmp_path, caplog):
    tables = do_survey(rows, tmp_path, SHARD)
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
    paths = Paths(str(tmp_path))
    files = {"scores": Path(paths.scores("final")), "lesions": Path(paths.lesions("final"))}
    files["manifest"] = Path(manifest_of(paths.scored, "final"))
    for _ in range(2):  # the second time nothing is scored again
        caplog.clear()
        evaluate(tables, [ledger.manifest], **arguments, **files)
        assert f"final: no label map of {failed}; scored as if nothing was found" in caplog.text
    scores = read_table(files["scores"], "scores")
    assert set(scores["case"]) == {row["case"] for row in rows}
    of_failed = scores["case"] == failed
    there = scores["volume_truth_ml"] > 0
    assert (of_failed & there).any()
    assert list(scores["dsc"]) == list(scores["nsd"]) == list(np.where(of_failed & there, 0.0, 1.0))
    assert scores.loc[of_failed, ["volume_prediction_ml", "volume_error_ml"]].isna().all(axis=None)
    assert scores.loc[~of_failed, ["volume_prediction_ml", "volume_error_ml"]].notna().all(axis=None)
    lesions = read_table(files["lesions"], "lesions").set_index("case")
    assert failed not in lesions.index or lesions.loc[failed, "detected"] == 0


def test_final_label_maps_are_held_against_anatomy_once(rows, tmp_path, caplog):
    """The truth passes; where the liver is lost, its class is named, and nothing is checked twice."""
    tables = do_survey(rows, tmp_path, SHARD)
    ledger, spoiled, complete = Ledger(tmp_path / "predictions", SHARD), rows[0]["case"], []
    for row in rows:
        truth, path = read_truth(Case.model_validate(row), SCHEME), ledger.folder / f"{row['case']}.nii.gz"
        labels = np.where(truth.array == SCHEME.ids["liver"], 0, truth.array) if row["case"] == spoiled else truth.array
        write(path, labels, truth.geometry)
        ledger.run(row["case"], "key", lambda path=path: (path, {}))
        complete += [{"case": row["case"], "class": "liver", "volume_ml": 0.0, "confidence": 1.0}]
    ledger.close()
    summary = tmp_path / "summary.csv"
    write_table(summary, complete, "summary")
    scheme = SCHEME.model_dump(mode="json")
    for _ in range(2):
        made = tmp_path / "predictions" / "verdicts" / f"{SHARD}.csv"
        manifest = Path(manifest_of(made.parent, SHARD))
        check_final(tables, ledger.manifest, summary, scheme, made, manifest, version=1)
        verdicts = read_table(made, "verdicts").set_index(["case", "class", "rule"])["verdict"]
        assert verdicts[spoiled, "liver", "volume"] == "fail"
        assert set(verdicts.index.get_level_values("case")) == {row["case"] for row in rows}
    journal = (tmp_path / "predictions" / "verdicts" / "shards" / f".{SHARD}.jsonl").read_text()
    assert len(journal.splitlines()) == len(rows)
    with caplog.at_level("WARNING"):
        efficiency = tmp_path / "efficiency.csv"
        write_table(efficiency, [], "efficiency")
        files = [tmp_path / name for name in ("volumes.csv", "costs.csv", "inference.json")]
        summarize([summary], [efficiency], [{"segment": ["student"]}], {}, "flare", *files)
    assert "found in no case: liver (1 of 1 class)" in caplog.messages
