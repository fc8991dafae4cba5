"""What CONTRIBUTING.md says is done here as it says: a data set, a rule, a paper, a trainer, in the files it names."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.images.datasets import load_dataset
from labelloop.images.volume import Geometry
from labelloop.labels.check import check
from labelloop.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
KINDS = r"\b(SLICE_CLASSIFIER|TRANSLATOR)\b"
TRAINING = """
import sys
from pathlib import Path
from tiny_training import make_job, write_cases
from labelloop.training.nnunet import train
root = Path(sys.argv[1])
write_cases(root)
train(make_job(root, root / "model", states={1: {"liver": "present"}}, settings={"kind": "example"}))
"""


def section(heading: str) -> str:
    """Return the text of a section of CONTRIBUTING.md."""
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]


def shown(heading: str, language: str, block: int = 0) -> str:
    """Return a block of code of a section, the first by default."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", section(heading), re.DOTALL | re.MULTILINE)
    return textwrap.dedent(blocks[block][1])


def test_a_data_set_is_one_file(tmp_path):
    (tmp_path / "example_ct.yaml").write_text(shown("Add a data set", "yaml"), encoding="utf-8")
    dataset = load_dataset(tmp_path / "example_ct.yaml", load_classes("flare"))
    assert dataset.annotated == ("liver", "tumor") and dataset.class_of(3) is None


def test_a_rule_of_anatomy_is_one_entry_of_the_class_scheme(tmp_path):
    scheme = (ROOT / "config/classes/flare.yaml").read_text(encoding="utf-8")
    added = ClassScheme.model_validate(
        yaml.safe_load(scheme + textwrap.indent(shown("Add a rule of anatomy", "yaml"), "  "))
    )
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5:15, 12:16, 8:12], labels[5:15, 4:8, 8:12] = added.ids["pancreas"], added.ids["aorta"]
    canonical = Geometry((20, 20, 20), (3.0, 3.0, 3.0), direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    for array, verdict in ((labels, "pass"), (labels[:, ::-1], "fail")):
        rows = check(np.ascontiguousarray(array), canonical, {}, added)
        assert [row["verdict"] for row in rows if row["rule"] == "pancreas_in_front_of_aorta"] == [verdict]


def test_a_paper_is_a_recipe(tmp_path):
    (tmp_path / "example.yaml").write_text(shown("Add a paper", "yaml"), encoding="utf-8")
    recipe = load_recipe(tmp_path / "example.yaml")
    assert recipe.labels["pseudo"].predict == ("teacher",) and recipe.models["student"].trainer.epochs == 500


def test_every_recipe_is_in_the_documentation():
    names = {path.stem for path in (ROOT / "config/recipes").glob("*.yaml")}
    papers = {name for name in names if f"{name}_demo" in names}
    assert papers == set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE))


def test_every_table_of_a_benchmark_is_listed():
    folder = ROOT / "benchmarks/results"
    listed = set(re.findall(r"\]\((\w+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("*.md")} - {"README.md"}


def test_the_files_that_tell_models_from_segmenters_are_named():
    source = ROOT / "src/labelloop"
    found = {path.relative_to(source).as_posix() for path in source.rglob("*.py") if re.search(KINDS, path.read_text())}
    paragraph = section("Add a trainer").split("A model that does not segment", 1)[1]
    assert set(re.findall(r"`([\w/]+\.py)`", paragraph)) == found


@pytest.mark.slow
def test_a_trainer_is_three_files(tmp_path):
    package = tmp_path / "src/labelloop"
    shutil.copytree(ROOT / "src/labelloop", package)  # with what Python has compiled
    trainers = package / "training/trainers"
    (trainers / "example.py").write_text(shown("Add a trainer", "python"), encoding="utf-8")
    replace(
        trainers / "__init__.py",
        "\nTRAINERS",
        "from labelloop.training.trainers.example import ExampleTrainer\n\nTRAINERS",
    )
    replace(trainers / "__init__.py", "\n}", '\n    "example": ExampleTrainer,\n}')
    settings, own = package / "training/settings.py", shown("Add a trainer", "python", block=1)
    replace(settings, "\n\nclass SemiSupervisedSettings", f"\n\n{own}\n\nclass SemiSupervisedSettings")
    replace(
        settings, '    "partial": PartialSettings,', '    "partial": PartialSettings,\n    "example": ExampleSettings,'
    )
    union = '    | Annotated[PartialSettings, tag("partial")]'
    replace(settings, union, f'{union}\n    | Annotated[ExampleSettings, tag("example")]')
    paths = os.pathsep.join([str(tmp_path / "src"), str(ROOT / "tests/training")])
    command = [sys.executable, "-c", TRAINING, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model/weights.pt").is_file()


def replace(file: Path, old: str, new: str) -> None:
    """Replace a text that stands once in a file."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, (file, old)
    file.write_text(text.replace(old, new), encoding="utf-8")
