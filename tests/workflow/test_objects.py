"""Tumor objects in the chain: a job a shard, between the labels they are cut from and the trainings that paste."""

import re
from pathlib import Path

import pytest
from tiny_project import RECIPE, Project

STUDENTS = {
    "student": {"trainer": RECIPE["models"]["student"]["trainer"] | {"cutmix": {}}},
    "second": {"like": "student", "trainer": {"seed": 5}},
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    rows = ["case,image,label,dataset,role,annotated"]
    for number in range(8):
        name = f"case_{number}"
        for file in (f"{name}_0000.nii.gz", f"{name}.nii.gz"):
            (tmp_path / file).touch()
        rows.append(f"{name},{name}_0000.nii.gz,{name}.nii.gz,flare22,{'test' if number > 5 else 'train'},all")
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n")
    recipe = RECIPE | {"models": RECIPE["models"] | STUDENTS, "evaluate": {"models": ["second"]}}
    return Project.new(tmp_path / "project", tmp_path / "cases.csv", recipe, shard_size=3)


def test_objects_are_cut_once_for_all_models_that_paste_the_same(project):
    text = project.snakemake("--cores", "1", "--dry-run", "--quiet", "host")
    jobs = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}
    assert jobs["cut_objects"] == jobs["prepare"] == 2  # shards of train cases
    reason = re.search(r"train: model second\nReason: (.*)", text)[1]
    used = set(re.findall(r"results/prepared/fine/objects/(\w+)/shards/(train-00\d)\.csv", reason))
    assert used == {("student", "train-000"), ("student", "train-001")}
    cut = re.search(r"cut tumors that student pastes: .*\nReason: (.*)", text)[1]
    assert "results/labels/pseudo/selected.csv" in cut and "results/prepared/fine/labels/pseudo/shards" in cut
