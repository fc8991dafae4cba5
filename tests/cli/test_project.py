"""What ``labelloop init`` and ``copy`` write can be used as it stands, and replaces nothing."""

import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import yaml

from labelloop.base.lookup import CONFIG, PROJECT
from labelloop.cases.table import load_cases
from labelloop.cli.main import main
from labelloop.cli.project import write_project
from labelloop.recipe import load_recipe
from labelloop.run.config import RunConfig


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder after ``labelloop init``, in which the test works."""
    assert all(new for _, new in write_project(tmp_path / "a project"))
    monkeypatch.chdir(tmp_path / "a project")
    return tmp_path / "a project"


def schema_of(file):
    """Return the schema that a file names for editors."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return Path(unquote(urlparse(first.removeprefix("# yaml-language-server: $schema=")).path))


def test_the_configuration_shows_every_key_with_its_default(project):
    text = (project / "config" / "config.yaml").read_text()
    assert RunConfig(**yaml.safe_load(text)) == RunConfig(cases="cases.csv")
    every = yaml.safe_load(re.sub(rf"(?m)^# ({'|'.join(RunConfig.model_fields)}): ", r"\1: ", text))
    assert every.keys() == RunConfig.model_fields.keys() and RunConfig(**every) == RunConfig(cases="cases.csv")
    assert schema_of(project / "config" / "config.yaml") == PROJECT / "workflow" / "schemas" / "config.schema.json"


def test_the_example_is_a_case_table(project):
    cases, rejected = load_cases(project / "config" / "cases.example.csv")
    assert not rejected and len({(bool(c.label), c.annotated, c.role) for c in cases}) == len(cases) == 4


def test_the_profiles_are_those_that_labelloop_brings(project):
    for file in (PROJECT / "profiles").rglob("*.yaml"):
        assert (project / file.relative_to(PROJECT)).read_text() == file.read_text()


def test_what_is_there_is_kept(project, capsys):
    (project / "config" / "config.yaml").write_text("cases: mine.csv\n")
    (project / "profiles" / "slurm" / "partitions.yaml").unlink()
    assert main(["init", "."]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "config/config.yaml: kept, it was there already" in said and "profiles/slurm/partitions.yaml" in said
    assert (project / "config" / "config.yaml").read_text() == "cases: mine.csv\n"


@pytest.mark.parametrize(("kind", "name"), [("recipe", "best"), ("classes", "flare"), ("dataset", "btcv")])
def test_a_copy_has_the_same_content_and_is_made_once(project, capsys, kind, name):
    folder = {"recipe": "recipes", "dataset": "datasets"}.get(kind, kind)
    for arguments, copy in (([name], Path("config", folder, f"{name}.yaml")), ([name, "mine.yaml"], Path("mine.yaml"))):
        assert main([kind, "copy", *arguments]) == 0
        original = yaml.safe_load((CONFIG / folder / f"{name}.yaml").read_text())
        assert yaml.safe_load(copy.read_text()) == original | {"name": copy.stem}
        assert schema_of(copy).is_file()
        copy.write_text("edited")
        assert main([kind, "copy", *arguments]) == 2
        assert f"{copy}: there already" in capsys.readouterr().err and copy.read_text() == "edited"
        copy.unlink()


def test_a_copy_is_yaml_and_of_something(project, capsys):
    assert main(["recipe", "copy", "best", "mine"]) == 2
    assert "ends in .yaml" in capsys.readouterr().err
    assert main(["recipe", "copy", "bst"]) == 2
    assert "did you mean 'best'" in capsys.readouterr().err


def test_a_copied_recipe_that_extends_another_still_does(project):
    assert main(["recipe", "copy", "default_demo"]) == 0
    assert load_recipe("default_demo") == load_recipe(CONFIG / "recipes" / "default_demo.yaml")
