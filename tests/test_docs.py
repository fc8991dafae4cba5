"""The files that the documentation shows can be used as they stand."""

import re
from pathlib import Path

from labelloop.base.classes import load_classes
from labelloop.images.datasets import load_dataset
from labelloop.recipe import load_recipe
from labelloop.run.chain import needed

DOCS = Path(__file__).resolve().parents[1] / "docs"


def shown(page: str, heading: str) -> str:
    """Return the first YAML block after a heading of a page."""
    text = (DOCS / page).read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1]
    return re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]


def test_files_of_ones_own(tmp_path):
    for name, heading in (
        ("data.yaml", "A data set file"),
        ("lungs.yaml", "Classes of your own"),
        ("mine.yaml", "A recipe of your own"),
    ):
        (tmp_path / name).write_text(shown("own-data.md", heading), encoding="utf-8")
    assert load_dataset(tmp_path / "data.yaml", load_classes("flare")).annotated == ("liver", "tumor")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.scheme.select("tumor") == ("nodule",)
    assert [recipe.models[name].trainer.kind for name in ("teacher", "teacher_b", "student")] == ["partial"] * 3


def test_external_models(tmp_path):
    (tmp_path / "mine.yaml").write_text(shown("recipes.md", "External models"), encoding="utf-8")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.external.keys() < needed(recipe)
    assert recipe.classes_of("blackbean") == ("liver", "spleen")
    assert set(recipe.scheme.sets["organs"]) == set(recipe.classes_of("totalseg"))
