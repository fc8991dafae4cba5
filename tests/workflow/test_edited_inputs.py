"""What a run reads besides its own files: an edit of a data set or class scheme, a file put back from a copy."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_project import PLAN, ROOT, Collection, Project

LABELS = "results/prepared/fine/labels/truth/shards"
ENDS = ["results/groups.csv", f"{LABELS}/train-000.csv", f"{LABELS}/train-001.csv"]
RULES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow" / "rules").glob("*.smk"))
RECIPE = {"extends": "default", "classes": "classes.yaml", "plans": {"fine": PLAN}}


def planned(project: Project) -> dict[str, int]:
    """Return how many jobs of each rule lead to groups and prepared labels."""
    text = project.snakemake("--quiet", "host", "--cores", "1", "--dry-run", *ENDS)
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE) if rule != "total"}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory, collection: Collection) -> Project:
    """A run up to groups and prepared labels; images, labels, data set file and class scheme lie in its folder."""
    folder = tmp_path_factory.mktemp("edited") / "project"
    project = Project.new(folder, Path("cases.csv"), RECIPE, shard_size=3)
    rows = ["case,image,label,dataset,role"]
    for number, row in enumerate(list(collection.phantom.values())[:6]):
        files = [row["image"], row["label"]]
        names = [Path(file).name if file else "" for file in files]
        for file, name in zip(files, names, strict=True):
            if name:
                shutil.copy(file, folder / name)
        rows.append(f"{row['case']},{','.join(names)},dataset.yaml,{'train' if number else 'test'}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    shutil.copy(ROOT / "config/datasets/phantom.yaml", folder / "dataset.yaml")
    shutil.copy(ROOT / "config/classes/flare.yaml", folder / "classes.yaml")
    project.snakemake("--cores", "2", *ENDS)
    assert planned(project) == {}
    return project


@pytest.fixture
def project(grouped: Project, tmp_path: Path) -> Iterator[Project]:
    """The run, to change: afterwards all is put back, as the paths of inputs in its notes are absolute."""
    subprocess.run(["cp", "-a", grouped.folder, tmp_path / "kept"], check=True)
    yield grouped
    subprocess.run(["cp", "-a", f"{tmp_path / 'kept'}/.", grouped.folder], check=True)


def edit(name: str, before: str, after: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert before in text
        (folder / name).write_text(text.replace(before, after, 1), encoding="utf-8")

    return change


def replace(name: str) -> Callable[[Path], None]:
    """Put a file in another's place as a copy that keeps dates does."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / "phantom_002_0000.nii.gz").read_bytes())
        os.utime(folder / name, (10**9, 10**9))

    return change


EVERY = {"survey": 3, "prepare": 2, "prepare_labels": 2, "collect": 1, "group": 1}
ALL, ONE = EVERY | {"tested": 1}, EVERY | {"survey": 1, "prepare": 1, "prepare_labels": 1}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (edit("dataset.yaml", "  1: liver\n  2: right_kidney", "  1: right_kidney\n  2: liver"), ALL),
        (edit("dataset.yaml", "labels:", "# the same, with a comment\nlabels:"), {}),
        (edit("classes.yaml", "organs:", "others: [liver]\n  organs:"), ALL),
        (edit("classes.yaml", "tolerance_mm: 5", "tolerance_mm: 4"), {}),
        (replace("phantom_001_0000.nii.gz"), ONE),
        (replace("phantom_001.nii.gz"), ONE),
    ],
)
def test_an_input_that_says_something_else_is_noticed(project, change, expected):
    change(project.folder)
    assert planned(project) == expected


def test_files_of_a_new_date_are_looked_at_and_nothing_is_made_from_them_again(project):
    arrays, manifests = project.times("prepared/**/*.b2nd"), project.times("prepared/**/shards/*.csv")
    for file in project.folder.glob("*.nii.gz"):
        file.touch()
    assert planned(project) == ALL
    project.run(*ENDS)
    assert project.times("prepared/**/shards/*.csv") != manifests  # the steps looked again
    assert project.times("prepared/**/*.b2nd") == arrays != {}
    assert planned(project) == {}


def test_a_test_image_under_another_name_does_not_reach_training(project):
    for kind in ("_0000", ""):
        tested, copy = (project.folder / f"phantom_00{number}{kind}.nii.gz" for number in (0, 1))
        shutil.copy(tested, copy)
    project.run(*ENDS)
    aside = {row["case"]: row["code"] for row in project.table("quarantine.csv") if row["severity"] == "error"}
    assert aside == {"phantom_001": "image_in_train_and_test"}
    tables = [project.results / f"prepared/fine/shards/train-00{n}.csv" for n in range(2)]
    assert all("phantom_001" not in table.read_text() for table in tables)


def test_every_rule_that_reads_the_class_scheme_depends_on_what_it_says():
    rules = re.split(r"\n *rule ", RULES)
    lacking = [text.split(":")[0] for text in rules if "classes=run.chain.classes" in text and "run.scheme" not in text]
    assert "run.scheme" in RULES and lacking == []
