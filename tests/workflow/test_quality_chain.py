"""A run that predicts the quality of its labels is planned, with one model, and costs the jobs that are told."""

from test_targets import jobs
from tiny_project import RECIPE, Project, _rows, _write

from labelloop.phantom import write_phantom
from labelloop.recipe import load_recipe, unroll
from labelloop.run import cost

SELECT = {"min_pairwise_dice": None, "min_quality": 0.8}


def test_the_jobs_that_are_told_are_those_that_are_planned(tmp_path):
    table = _write(tmp_path / "cases.csv", _rows(write_phantom(tmp_path / "phantom", cases=16, seed=1, spacing_mm=9)))
    recipe = RECIPE | {"labels": {"pseudo": {"predict": ["teacher"], "select": SELECT}}}
    project = Project.new(tmp_path / "project", table, recipe, shard_size=6)
    planned = jobs(project)
    chain = unroll(load_recipe(project.folder / "recipe.yaml"))
    assert cost.jobs(chain, planned["fuse"], planned["survey"] - planned["fuse"]) == planned
    assert planned["corrupt"] == planned["measure"] == planned["fuse"] and planned["quality"] == 1
