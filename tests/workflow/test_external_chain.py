"""External models as teachers beside one of our own, in Snakemake: made once, and anew where something changed."""

import csv
import json
import re
import sys

import numpy as np
import pytest
import torch
from tiny_nnunet import save_nnunet
from tiny_project import PLAN, TRAINER, Project

from labelloop.base.classes import load_classes
from labelloop.base.files import write_text
from labelloop.base.shards import Ledger, read_manifests
from labelloop.base.tables import read_table, write_table
from labelloop.images.volume import Geometry, read, write
from labelloop.inference.nnunet import import_nnunet
from labelloop.training.export import export_nnunet

IDS = load_classes("flare").ids
GRID = Geometry((24, 20, 16), (8.0, 8.0, 8.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
CASES, SHARD, TARGET = ("drawn", "plain", "other"), "train-000", "results/labels/pseudo/selected.csv"
TOOL = """
import shutil, sys
case, image, out = sys.argv[1:]
sys.exit("out of order") if case == "other" else shutil.copy(f"made/{case}.nii.gz", out)
"""
RECIPE = {
    "plans": {"tiny": PLAN, "theirs": {"like": "zoo"}},
    "models": {
        "teacher": {"plan": "tiny", "classes": "organs", "trainer": TRAINER},
        "student": {
            "plan": "theirs", "classes": "organs", "labels": "pseudo", "init_from": "zoo",
            "trainer": TRAINER | {"kind": "partial"},
        },
    },
    "external": {
        "zoo": {
            "nnunet": "Dataset001_Tiny",
            "folds": [0],
            "dataset": "zoo.yaml",
            "license": "Apache-2.0",
            "learned_from": [],
        },
        "tool": {
            "command": f"{sys.executable} -S tool.py {{case}} {{image}} {{output}}",
            "version": "cat version.txt",
            "dataset": "phantom",
            "classes": ["liver", "spleen"],
        },
        "made": {"files": "made/{case}.nii.gz", "dataset": "phantom", "classes": "liver", "learned_from": "flare22"},
    },
    "labels": {
        "pseudo": {
            "predict": ["teacher", "tool", "made", "zoo"], "classes": "organs", "check": None, "fuse": "truth_first",
        }
    },
    "inference": [{"segment": "student"}],
}  # fmt: skip


def label_map(liver: int) -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:12, 4:18, 2 : 2 + liver], labels[5:9, 6:12, 18:22] = IDS["liver"], IDS["spleen"]
    return labels


def pretend(project: Project) -> None:
    """Put the teacher there, as if it had been trained on nothing and found the same in all cases."""
    model = project.results / "models" / "teacher"
    for name in ("model.json", "weights.pt"):
        write_text(model / name, "")
    write_table(model / "cases.csv", [], "training_cases")
    ledger, volumes = Ledger(model / "predictions", SHARD), []
    for case in CASES:
        path = ledger.folder / f"{case}.nii.gz"
        ledger.run(case, "pretended", lambda p=path: (write(p, label_map(10), GRID), (p, {}))[1])
        found = {name: float((label_map(10) == number).sum()) for name, number in IDS.items() if name != "tumor"}
        volumes += [{"case": case, "class": name, "volume_ml": ml, "confidence": None} for name, ml in found.items()]
    ledger.close()
    write_table(ledger.folder / "confidence" / f"{SHARD}.csv", volumes, "confidence")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A run up to the selection of labels that four models make."""
    folder = tmp_path_factory.mktemp("external")
    rows = []
    for number, case in enumerate(CASES):
        image = np.random.default_rng(number).integers(-100, 200, GRID.shape).astype(np.int16)
        write(folder / f"{case}.nii.gz", image, GRID)
        row = {"case": case, "image": f"{case}.nii.gz", "dataset": "phantom", "label": "", "annotated": ""}
        rows.append(row)
    write(folder / "truth.nii.gz", label_map(8), GRID)
    rows[0] |= {"label": "truth.nii.gz", "annotated": "liver", "dataset": "flare22"}
    with (folder / "cases.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    project = Project.new(folder / "project", folder / "cases.csv", RECIPE)
    place = project.folder
    save_nnunet(place, labels={"background": 0, "Leber": 1, "Milz": 2, "Rest": 3})
    (place / "zoo.yaml").write_text("{name: zoo, modality: CT, labels: {1: liver, 2: spleen, 3: null}}")
    (place / "tool.py").write_text(TOOL)
    (place / "version.txt").write_text("1.0")
    for case in ("drawn", "plain"):
        write(place / "made" / f"{case}.nii.gz", label_map(9), GRID)
    project.snakemake("--cores", "1", f"results/survey/{SHARD}.annotation.csv")
    pretend(project)
    project.snakemake("--cores", "2", TARGET)
    return project


def manifest(project: Project, model: str) -> dict[str, dict]:
    return read_manifests([project.results / f"models/{model}/predictions/shards/{SHARD}.csv"]).to_dict("index")


def test_each_model_says_what_it_can(project):
    tool, made, zoo = (manifest(project, name) for name in ("tool", "made", "zoo"))
    assert {case: row["status"] for case, row in tool.items()} == {"drawn": "done", "plain": "done", "other": "failed"}
    assert "command_failed: other: " in tool["other"]["reason"] and "out of order" in tool["other"]["reason"]
    assert {case: bool(row["file"]) for case, row in made.items()} == {"drawn": True, "plain": True, "other": False}
    assert all(row["status"] == "done" and read(row["file"]).geometry == GRID for row in zoo.values())
    named = {IDS[name] for name in ("liver", "spleen")}
    assert all(set(np.unique(read(row["file"]).array)) <= {0, *named} for row in zoo.values())


def test_provenance_names_who_spoke_and_what_nobody_knows_stays_unknown(project):
    table = read_table(project.results / "labels/pseudo/provenance.csv", "provenance").query("step == 'fuse'")
    source = table.set_index(["case", "class"])["source"]
    assert source["drawn", "liver"] == "truth"
    assert source["plain", "liver"] == "teacher+tool+made+zoo" and source["other", "liver"] == "teacher+zoo"
    assert source["plain", "spleen"] == "tool+zoo"  # of made the liver counts alone, and the teacher learned no spleen
    states = read_table(project.folder / TARGET, "selected").set_index(["case", "class"])["state"]
    assert source["plain", "pancreas"] == "none" and states["plain", "pancreas"] == "unknown"


def test_what_a_model_may_have_seen_is_not_held_out_for_it(project):
    """The one labeled case is of a data set that an external model saw, though no training of ours had it."""
    assert not len(read_table(project.results / "labels/pseudo/held_out.csv", "held_out"))


def due(project: Project) -> dict[str, int]:
    """Return how many jobs of each rule lead to the selection."""
    text = project.snakemake("--quiet", "host", "--cores", "1", "--dry-run", TARGET)
    found = re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)
    return {rule: int(number) for rule, number in found if rule != "total"}


def test_only_what_changed_is_made_anew(project):
    """Which cases of a job that is due, the tests of the steps say."""
    assert due(project) == {}
    write(project.folder / "made" / "plain.nii.gz", label_map(7), GRID)
    (project.folder / "version.txt").write_text("1.1")
    assert due(project) == {"predict_external": 2, "fuse": 1, "agree": 1, "held_out": 1, "select": 1}


def test_a_student_goes_on_from_the_weights_of_a_model_of_nnunet(project):
    """It sees images as that one does, and its files say where it comes from; nnU-Net can take it back."""
    project.snakemake("--cores", "2", "results/models/student/model.json")
    models = project.results / "models"
    zoo, student = (json.loads((models / name / "model.json").read_text()) for name in ("zoo", "student"))
    assert student["plan"] == zoo["plan"]
    assert student["init_from"] == {key: zoo[key] for key in ("name", "weights_sha256")}
    assert student["licenses"]["models"]["zoo"] == "Apache-2.0"
    back = import_nnunet(export_nnunet(models / "student", project.folder / "back"), project.folder / "again")
    assert json.loads((back / "model.json").read_text())["plan"] == student["plan"]
    started = torch.load(models / "zoo" / "weights.pt", weights_only=True)["weights"]
    trained = torch.load(models / "student" / "weights.pt", weights_only=True)["weights"]
    name = "encoder.stages.0.0.convs.0.conv.weight"
    assert 0 < (trained[name] - started[name]).abs().max() < started[name].abs().max() / 4
