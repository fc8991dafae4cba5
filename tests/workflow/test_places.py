"""Where a project may lie, and what its images may be: a whole run on images of two channels, below odd letters."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
from tiny_project import PLAN, ROOT, TRAINER, Collection, Project, _write

from labelloop.cli.main import main
from labelloop.images.volume import read, write

ODD = "My Drive, O'Neil, Prüfung (1)"
RECIPE = {
    "extends": "default",
    "plans": {"fine": PLAN | {"channels": ["CT", "PET"]}},
    "models": {"teacher": {"trainer": TRAINER}, "student": {"trainer": TRAINER}},
    "labels": {"pseudo": {"predict": ["teacher"], "select": {"min_pairwise_dice": None}}},
}
WITHOUT_UPTAKE = "phantom_005"


def of_two_channels(collection: Collection, folder: Path) -> Path:
    """Write a second channel for each case of the phantom, constant for one; return the table of all cases."""
    dataset = (ROOT / "config" / "datasets" / "phantom.yaml").read_text(encoding="utf-8")
    (folder / "pet.yaml").write_text(f"{dataset}channels: [CT, PET]\n", encoding="utf-8")
    rows = []
    for case, row in collection.phantom.items():
        image, second = read(row["image"]), folder / f"{case}_0001.nii.gz"
        uptake = np.zeros_like(image.array) if case == WITHOUT_UPTAKE else np.abs(image.array // 4)
        write(second, uptake, image.geometry)
        rows.append(row | {"image": f"{row['image']};{second}", "dataset": "pet.yaml"})
    return _write(folder / "cases.csv", rows)


def test_a_run_of_two_channels_below_a_path_with_spaces_and_quotes(tmp_path: Path, collection: Collection, monkeypatch):
    table = of_two_channels(collection, tmp_path)
    project = Project.new(tmp_path / ODD / "project", table, RECIPE, results=f"results {ODD}")
    project.results = project.folder / f"results {ODD}"
    environment = tmp_path / ODD / ".venv"
    environment.symlink_to(Path(sys.executable).parents[1])
    monkeypatch.setattr(sys, "executable", str(environment / "bin" / Path(sys.executable).name))
    project.run()

    assert [(row["case"], row["code"]) for row in project.table("quarantine.csv") if "channel" in row["code"]] == [
        (WITHOUT_UPTAKE, "channel_constant")
    ]
    model = json.loads((project.results / "models" / "student" / "model.json").read_text())
    assert model["plan"]["channels"] == ["CT", "PET"]
    assert WITHOUT_UPTAKE in {row["case"] for row in project.table("models/student/cases.csv")}
    with table.open(newline="") as handle:
        tested = {row["case"]: row["image"] for row in csv.DictReader(handle) if row["role"] == "test"}
    assert tested.keys() == {row["case"] for row in project.table("predictions/summary.csv")}
    assert (project.results / "report" / "index.html").is_file()
    case, images = next(iter(tested.items()))
    for number, image in enumerate(images.split(";")):
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "new" / f"{case}_{number:04d}.nii.gz").symlink_to(image)
    given = ["--results", str(project.results), "--out", str(tmp_path / "again"), "--device", "cpu"]
    assert main(["infer", str(tmp_path / "new"), *given]) == 0
    (made,) = (path for path in project.results.glob(f"predictions/**/{case}.nii.gz") if path.is_file())
    np.testing.assert_array_equal(read(tmp_path / "again" / made.name).array, read(made).array)
