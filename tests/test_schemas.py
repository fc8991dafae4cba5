"""Schemas and reference page are those of the models, and what is shipped fits the schemas."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from labelloop.schemas import generated

ROOT = Path(__file__).parents[1]
SHIPPED = {
    "config": sorted((ROOT / "config").glob("*.yaml")),
    "recipe": sorted((ROOT / "config" / "recipes").glob("*.yaml")),
    "classes": sorted((ROOT / "config" / "classes").glob("*.yaml")),
    "dataset": sorted((ROOT / "config" / "datasets").glob("*.yaml")),
}


@pytest.mark.parametrize(("file", "text"), generated(ROOT).items(), ids=lambda part: getattr(part, "name", ""))
def test_generated_file_has_not_drifted(file, text):
    assert file.read_text() == text, "run `labelloop schema`"


@pytest.mark.parametrize(
    ("kind", "file"), [(kind, file) for kind, files in SHIPPED.items() for file in files], ids=lambda part: str(part)
)
def test_shipped_file_fits_its_schema(kind, file):
    schema = json.loads((ROOT / "workflow" / "schemas" / f"{kind}.schema.json").read_text())
    content = json.loads(json.dumps(yaml.safe_load(file.read_text())))  # JSON has text keys only
    jsonschema.validate(content, schema)


def test_schema_refuses_an_unknown_key():
    schema = json.loads((ROOT / "workflow" / "schemas" / "config.schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError, match="recipee"):
        jsonschema.validate({"cases": "cases.csv", "recipee": "default"}, schema)
