"""A recipe with one mistake that is not refused runs to its end: a few of them, drawn by lot."""

import json
import random
from pathlib import Path

import pytest
import yaml
from tiny_project import RECIPE, Project

from labelloop.base.errors import UserError
from labelloop.recipe import TRUTH, load_recipe
from labelloop.run.chain import updates
from labelloop.run.run import Run
from mistakes import Mistake, alternatives, changed

DRAWN, TRIED = 1, 100
MOST_UPDATES, MOST_VOXELS = 40, 30_000
"""Of all models together, and of a batch: a recipe may well ask for a million epochs."""


def accepted(project: Project, folder: Path) -> list[Mistake]:
    """Return mistakes, in random order, that are none: the run is not refused, is another one, and is short."""
    path = folder / "tiny.yaml"
    path.write_text(json.dumps({"name": "tiny"} | RECIPE))
    plain = load_recipe(path)
    recipe = plain.model_dump(mode="json", by_alias=True, exclude_unset=True)
    found = random.Random(0).sample(alternatives(recipe), TRIED)
    mistakes = [changed(recipe, *each) for each in found]
    return [mistake for mistake in mistakes if _runs_otherwise(mistake, plain.model_dump(), project, path)]


def _runs_otherwise(mistake: Mistake, plain: dict, project: Project, path: Path) -> bool:
    path.write_text(json.dumps(mistake.recipe))
    config = json.loads((project.folder / "config.yaml").read_text())
    try:
        run = Run(config | {"recipe": str(path), "results": str(path.parent / "results")})
    except UserError:
        return False
    words = ("name", "description", "feedback")
    same = {k: v for k, v in run.recipe.model_dump().items() if k not in words} == {
        k: v for k, v in plain.items() if k not in words
    }
    # Whether anything is known completely of a case whose labels models made, no dry run can tell.
    guesses = any(m.trainer.kind == "supervised" and m.labels != TRUTH for m in run.chain.models.values())
    voxels = [plan.batch_size * plan.patch[0] * plan.patch[1] * plan.patch[2] for plan in run.chain.plans.values()]
    short = (
        sum(updates(run.chain, name) for name in run.wiring.used_models) <= MOST_UPDATES and max(voxels) <= MOST_VOXELS
    )
    return short and not same and not guesses and not run.problems()


@pytest.mark.parametrize("number", range(DRAWN))
def test_what_is_not_refused_runs_to_its_end(number, copied, tmp_path):
    mistake = accepted(copied, tmp_path)[number]
    (copied.folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "tiny"} | mistake.recipe))
    print(mistake)
    copied.run()
    assert (copied.results / "report" / "index.html").is_file()
    assert copied.table("predictions/summary.csv")
