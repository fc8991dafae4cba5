"""Labels carried from T1W to the other sequences of a patient, in Snakemake, cut short and gone on with."""

import csv
import os
import signal

import numpy as np
import pandas as pd
import pytest
from test_kill import wait_for
from tiny_project import PLAN, TRAINER, Project

from labelloop.base.classes import load_classes
from labelloop.base.files import write_text
from labelloop.base.shards import Ledger
from labelloop.base.tables import read_table, write_table
from labelloop.images.volume import read, write
from labelloop.labels.registration import Transform
from labelloop.phantom.mr import MrPatient

IDS = load_classes("flare").ids
RECIPE = {
    "groups": {"mr": {"modality": "MR"}},
    "plans": {"tiny": PLAN},
    "models": {
        "first": {"plan": "tiny", "classes": "organs", "trainer": TRAINER},
        "second": {"plan": "tiny", "classes": "organs", "labels": "carried", "trainer": TRAINER},
    },
    "labels": {
        "carried": {
            "predict": "first",
            "predict_for": "mr",
            "classes": "organs",
            "transfer": {},
            "clean": [{"keep_largest": ["liver"]}],
            "select": {"absent_if_not_found": ["organs"]},
        }
    },
    "inference": [{"segment": "second"}],
}  # fmt: skip


def mr_cases(folder) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Write a patient's sequences, and DWI of one who has no T1W; return rows and the truth of each case."""
    rows, truths = [], {}
    for name, (image, truth, geometry) in MrPatient(3, 2).render(7.0).items():
        patient = "lonely" if name == "dwi" else "mr_002"
        case = f"{patient}_{name}"
        write(folder / f"{case}.nii.gz", image, geometry)
        about = {"dataset": "phantom", "modality": "MR", "sequence": name, "patient": patient, "role": "train"}
        rows.append({"case": case, "image": str(folder / f"{case}.nii.gz")} | about)
        truths[case] = truth
    return rows, truths


def pretend(project: Project, truths: dict[str, np.ndarray], rows: list[dict]) -> None:
    """Put a model there whose predictions on MR are the truth on T1W, and nothing on other sequences."""
    model = project.results / "models" / "first"
    for name in ("model.json", "weights.pt", "cases.csv"):
        write_text(model / name, "")
    ledger, volumes = Ledger(model / "predictions", "train-000"), []
    for row in (r for r in rows if r["modality"] == "MR"):
        geometry = read(row["image"]).geometry
        label = truths[row["case"]] * (row["sequence"] == "t1w")
        path = ledger.folder / f"{row['case']}.nii.gz"
        ledger.run(row["case"], "pretended", lambda p=path, x=label, g=geometry: (write(p, x, g), (p, {}))[1])
        volumes += [{"case": row["case"], "class": c, "volume_ml": float((label == i).sum())} for c, i in IDS.items()]
    ledger.close()
    table = pd.DataFrame(volumes).assign(confidence=None)
    write_table(ledger.folder / "confidence" / "train-000.csv", table, "confidence")


@pytest.fixture(scope="module")
def carried(tmp_path_factory, collection):
    """A run up to the selection of what was carried, killed in the middle of writing the second label map."""
    folder = tmp_path_factory.mktemp("transfer")
    rows, truths = mr_cases(folder)
    labeled = next(r for r in collection.phantom.values() if r["role"] == "train" and "liver" in r["annotated"])
    with (folder / "cases.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(labeled))
        writer.writeheader()
        writer.writerows([labeled, *rows])
    project = Project.new(folder / "project", folder / "cases.csv", RECIPE)
    project.snakemake("--cores", "1", "results/annotation.csv")
    pretend(project, truths, rows)
    target = "results/labels/carried/selected.csv"
    process, mark = project.start_and_stall(r"transferred/[^/]+\.nii\.gz$", 2, target)
    try:
        wait_for(mark, process)
        done = project.times("labels/carried/transferred/*.nii.gz")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    project.snakemake("--cores", "1", target)
    return project, truths, labeled["case"], done


def test_kill_in_transfer_loses_one_case(carried):
    project, _, _, done = carried
    after = project.times("labels/carried/transferred/*.nii.gz")
    assert len(done) == 1 < len(after) and {name: after[name] for name in done} == done
    assert not list(project.results.rglob(".tmp-*"))


def test_every_other_sequence_is_accepted_or_refused_with_a_reason(carried):
    project, truths, _, _ = carried
    table = read_table(project.results / "labels/carried/transfers.csv", "transfers").set_index("case")
    assert set(table.index) == {case for case in truths if not case.endswith("t1w")}
    assert set(table.decision) == {"accepted", "refused"}
    lonely = table.loc["lonely_dwi"]
    assert lonely.decision == "refused" and "no t1w image" in lonely.reason and lonely.source == ""
    own = table.drop("lonely_dwi")
    assert (own.source == "mr_002_t1w").all() and own.translation_mm.notna().all()
    for case, row in own.iterrows():
        folder = project.results / "labels/carried/transferred"
        assert Transform.load(folder / f"{case}.json").degrees == pytest.approx(row.rotation_degrees, rel=1e-4)
        assert (folder / f"{case}.nii.gz").is_file() == (row.decision == "accepted")


def test_what_was_carried_takes_the_place_of_the_model_s_own_prediction(carried):
    """The model found nothing on other sequences; accepted labels fit their truth there, and refused ones have none."""
    project, truths, labeled, _ = carried
    folder = project.results / "labels/carried"
    decisions = read_table(folder / "transfers.csv", "transfers").set_index("case").decision
    maps = {path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz")}
    assert maps == {labeled, "mr_002_t1w", *decisions[decisions == "accepted"].index}
    for case in maps - {labeled}:
        found, truth = read(folder / f"{case}.nii.gz").array == IDS["liver"], truths[case] == IDS["liver"]
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8, case
    table = read_table(folder / "selected.csv", "selected")
    refused = table[table["case"].isin(decisions[decisions == "refused"].index)]
    assert set(refused["state"]) == {"unknown"}
    verdicts = read_table(folder / "verdicts.csv", "verdicts").query("rule == 'intensity'")
    assert set(verdicts[verdicts["case"] != labeled]["verdict"]) == {"not_applicable"}


def test_cases_that_nobody_asked_for_need_no_prediction(carried):
    """The CT case has none, and keeps what annotators gave."""
    project, _, labeled, _ = carried
    assert not (project.results / f"models/first/predictions/{labeled}.nii.gz").exists()
    table = read_table(project.results / "labels/carried/provenance.csv", "provenance").query("case == @labeled")
    assert set(table["source"]) == {"truth"}


def test_a_second_run_has_nothing_to_do(carried):
    project, *_ = carried
    said = project.snakemake("--cores", "1", "--dry-run", "results/labels/carried/selected.csv")
    assert "Nothing to be done" in said
