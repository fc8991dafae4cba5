"""Recipes: YAML files that chain label sets and models, checked for form and for meaning before any job starts."""

from labelloop.recipe.loading import form_errors, load_recipe
from labelloop.recipe.rounds import ancestors, in_round, looped, origins, plain_name, round_before, unroll
from labelloop.recipe.spec import TRUTH, EvaluationSpec, LabelSetSpec, ModelSpec, Recipe, parents

__all__ = [
    "TRUTH",
    "EvaluationSpec",
    "LabelSetSpec",
    "ModelSpec",
    "Recipe",
    "ancestors",
    "form_errors",
    "in_round",
    "load_recipe",
    "looped",
    "origins",
    "parents",
    "plain_name",
    "round_before",
    "unroll",
]  # fmt: skip
