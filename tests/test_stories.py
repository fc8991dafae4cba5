"""The stories of the documentation: their files and commands, as they stand, on scans of the phantom."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_nnunet import NAME, configuration, save_nnunet

from labelloop.base.classes import load_classes
from labelloop.base.tables import read_table
from labelloop.cases.table import Case, load_cases
from labelloop.images.datasets import load_dataset
from labelloop.images.volume import Volume, read, write
from labelloop.recipe import load_recipe

PAGE = (Path(__file__).parents[1] / "docs/stories.md").read_text(encoding="utf-8")
STORIES = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
SCHEME = load_classes("flare")


def write_files(story: str, folder: Path) -> None:
    """Write the YAML blocks of a story under the name in their first line."""
    for name, content in re.findall(r"```yaml\n# (\S+)\n(.*?)```", STORIES[story], re.DOTALL):
        (folder / name).write_text(content, encoding="utf-8")


def type_commands(story: str, folder: Path) -> str:
    """Type the commands of a story; trainings are only planned, and what needs their models is left out."""
    lines = "".join(re.findall(r"```bash\n(.*?)```", STORIES[story], re.DOTALL)).splitlines()
    typed = [line.replace("labelloop run ", "labelloop run -n ") for line in lines if "infer new" not in line]
    assert len(typed) >= 3
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shell = ["bash", "-euo", "pipefail", "-c", "\n".join(typed)]
    done = subprocess.run(shell, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


def copy_image(case: Case, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(case.image, folder / f"{case.case}_0000.nii.gz")


def write_label(case: Case, phantom: Path, ids: dict[str, int], file: Path) -> None:
    """Write the truth of a case in other ids; other classes are background."""
    truth = read(phantom.parent / "truth" / f"{case.case}.nii.gz")
    table = np.zeros(256, np.uint8)
    for name, label in ids.items():
        table[SCHEME.ids[name]] = label
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, table[truth.array], truth.geometry)


@pytest.fixture(scope="module")
def scans(phantom) -> list[Case]:
    return [case for case in load_cases(phantom)[0] if case.modality == "CT"]


def test_liver_here_kidneys_there(scans, phantom, tmp_path):
    ids = {"liver": {"liver": 1}, "kidneys": {"right_kidney": 1, "left_kidney": 2}}
    for number, case in enumerate(scans):
        place = ("liver", "kidneys", "unlabeled")[number % 3]
        copy_image(case, tmp_path / (place if place == "unlabeled" else f"{place}/images"))
        if place in ids:
            write_label(case, phantom, ids[place], tmp_path / place / "labels" / f"{case.case}.nii.gz")
    story = next(name for name in STORIES if name.startswith("Liver labels here"))
    write_files(story, tmp_path)
    said = type_commands(story, tmp_path)
    assert len(read_table(tmp_path / "cases.csv", "cases")) == len(scans)
    assert "no error" in said and "train" in said and "hours" in said
    planned, before = (load_recipe(str(tmp_path / name)) for name in ("planned.yaml", "partial.yaml"))
    assert planned.plans["fine"] != before.plans["fine"] and planned.models.keys() == before.models.keys()


def test_totalsegmentator_and_an_organ_of_ones_own(scans, phantom, tmp_path):
    organs = ("liver", "spleen", "right_kidney", "left_kidney")
    known = load_dataset("totalsegmentator_v2", SCHEME).labels
    ids = {name: next(label for label, each in known.items() if each == name) for name in organs}
    for number, case in enumerate(scans):
        copy_image(case, tmp_path / "images")
        write_label(case, phantom, ids, tmp_path / "totalseg" / f"{case.case}.nii.gz")
        if number % 2:
            image = read(case.image)
            drawn = np.zeros(image.array.shape, np.uint8)
            drawn[5:8, 5:9, 5:9] = 1
            (tmp_path / "labels").mkdir(exist_ok=True)
            label = Volume(drawn, image.geometry)
            write(tmp_path / "labels" / f"{case.case}.nii.gz", label.array, label.geometry)
    story = next(name for name in STORIES if name.startswith("TotalSegmentator"))
    write_files(story, tmp_path)
    said = type_commands(story, tmp_path)
    assert "no error" in said and "predict_external" in said


def test_a_model_of_nnunet(scans, tmp_path):
    model = save_nnunet(tmp_path / "models", configuration(spacing=[12.0, 12.0, 12.0]))
    shutil.move(model, tmp_path / "Dataset291_Liver" / NAME)
    for case in scans[:2]:
        copy_image(case, tmp_path / "images")
    (tmp_path / "liver.yaml").write_text("name: liver\nmodality: CT\nlabels: {1: liver, 2: null, 3: null}\n")
    story = next(name for name in STORIES if name.startswith("A model of nnU-Net"))
    type_commands(story, tmp_path)
    scores = read_table(tmp_path / "scores.csv", "scores")
    assert set(scores["case"]) == {case.case for case in scans[:2]} and (scores["dsc"] > 0.9).all()
