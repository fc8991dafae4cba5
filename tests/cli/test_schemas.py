"""Schemas and reference page are those of the models, and what is shipped fits the schemas."""

import json
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml

from labelloop.base.classes import Strict
from labelloop.cli.schemas import generated
from labelloop.recipe import Recipe
from labelloop.run.config import RunConfig

ROOT = Path(__file__).parents[2]
SHIPPED = {
    "config": sorted((ROOT / "config").glob("*.yaml")),
    "recipe": sorted((ROOT / "config" / "recipes").glob("*.yaml")),
    "classes": sorted((ROOT / "config" / "classes").glob("*.yaml")),
    "dataset": sorted((ROOT / "config" / "datasets").glob("*.yaml")),
}


@cache
def held_to(kind):
    """Return what holds documents against a schema, which is one itself."""
    schema = json.loads((ROOT / "workflow" / "schemas" / f"{kind}.schema.json").read_text())
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    return validator(schema)


@pytest.mark.parametrize(("file", "text"), generated(ROOT).items(), ids=lambda part: getattr(part, "name", ""))
def test_generated_file_has_not_drifted(file, text):
    assert file.read_text() == text, "run `labelloop schema`"


@pytest.mark.parametrize(
    ("kind", "file"), [(kind, file) for kind, files in SHIPPED.items() for file in files], ids=lambda part: str(part)
)
def test_shipped_file_fits_its_schema(kind, file):
    content = json.loads(json.dumps(yaml.safe_load(file.read_text())))  # JSON has text keys only
    held_to(kind).validate(content)


def test_schema_refuses_an_unknown_key():
    with pytest.raises(jsonschema.ValidationError, match="recipee"):
        held_to("config").validate({"cases": "cases.csv", "recipee": "default"})


def _undescribed(schema):
    parts = {"": schema, **schema.get("$defs", {})}
    keys = [
        (f"{part}.{key}", field) for part, body in parts.items() for key, field in body.get("properties", {}).items()
    ]
    return len(keys), [key for key, field in keys if not field.get("description")]


@pytest.mark.parametrize("model", [Recipe, RunConfig], ids=lambda model: model.__name__)
def test_every_key_is_described(model):
    """Editors show the descriptions, and the reference page is made of them."""
    number, missing = _undescribed(model.model_json_schema())
    assert number >= 10
    assert missing == []


@pytest.mark.parametrize("model", [Recipe, RunConfig], ids=lambda model: model.__name__)
def test_no_key_needs_quotes(model):
    """As `on`, which YAML reads as true."""
    parts = (model.model_json_schema(), *model.model_json_schema().get("$defs", {}).values())
    for part in parts:
        for key in part.get("properties", {}):
            assert yaml.safe_load(key) == key


@pytest.mark.parametrize("file", [*SHIPPED["recipe"], *sorted(ROOT.glob("benchmarks/*/recipe.yaml"))], ids=str)
def test_no_recipe_needs_anchors(file):
    events = list(yaml.parse(file.read_text(encoding="utf-8")))
    assert len(events) > 10 and not any(getattr(event, "anchor", None) for event in events)


def test_an_undescribed_key_is_found():
    class Bare(Strict):
        key: int

    assert _undescribed(Bare.model_json_schema()) == (1, [".key"])


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ({"models": {"m": {"trainer": {"kind": "partial", "ema_decay": 0.9}}}}, "models"),
        ({"inference": [{"segment": "m", "margin_mm": 5}]}, "inference"),
        ({"labels": {"l": {"clean": {"remove_islands": "tumor", "beyond_mm": 5}}}}, "labels"),
    ],
)
def test_schema_refuses_a_key_of_another_kind(content, wrong):
    with pytest.raises(jsonschema.ValidationError) as error:
        held_to("recipe").validate(content)
    assert error.value.absolute_path[0] == wrong
