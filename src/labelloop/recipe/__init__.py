"""Recipes: YAML files that chain label sets and models, checked for form and for meaning before any job starts."""

from labelloop.recipe.loading import form_errors, load_recipe
from labelloop.recipe.spec import TRUTH, EvaluationSpec, LabelSetSpec, ModelSpec, Recipe, parents

__all__ = ["TRUTH", "EvaluationSpec", "LabelSetSpec", "ModelSpec", "Recipe", "form_errors", "load_recipe", "parents"]
