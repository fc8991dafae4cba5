"""The files that the documentation shows can be used as they stand."""

import re
import textwrap
from pathlib import Path

import pytest
import yaml
from tiny_nnunet import save_nnunet

from labelloop.base.classes import load_classes
from labelloop.images.datasets import load_dataset
from labelloop.recipe import load_recipe
from labelloop.run.chain import needed

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^( *)```yaml\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"# (\S+\.yaml)\b")
PARTS = {"plans", "models", "inference"}


def blocks_of(page: Path) -> list[str]:
    """Return the YAML blocks of a page."""
    return [textwrap.dedent(content) for _, content in BLOCK.findall(page.read_text(encoding="utf-8"))]


def recipes_of(page: Path) -> list[str]:
    """Return the blocks of a page that are recipes: they extend one, or have all parts of one."""
    contents = {block: yaml.safe_load(block).keys() for block in blocks_of(page)}
    return [block for block, keys in contents.items() if "extends" in keys or keys >= PARTS]


RECIPES = {
    f"{page.name}-{number}": (page, block)
    for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
    for number, block in enumerate(recipes_of(page))
}


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


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_that_is_shown_is_valid(tmp_path, monkeypatch, name):
    page, recipe = RECIPES[name]
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(page):  # class schemes and others that it may name
        named = NAMED.match(block)
        if named:
            (tmp_path / named[1]).write_text(block, encoding="utf-8")
    save_nnunet(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "Dataset001_Tiny").rename(tmp_path / "models" / "Dataset291")
    (tmp_path / "shown.yaml").write_text(recipe, encoding="utf-8")
    load_recipe(tmp_path / "shown.yaml")


def test_recipes_that_are_shown_are_found():
    assert {"recipes.md-0", "own-data.md-0", "stories.md-0"} <= RECIPES.keys()
