"""Names of recipes, class schemes and data sets: the user's folder first, and it is said."""

import logging
from pathlib import Path

import pytest
import yaml

from labelloop.base import lookup
from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.base.lookup import CONFIG, PROJECT, find, known, taken
from labelloop.cases.table import load_cases
from labelloop.images.datasets import load_dataset
from labelloop.recipe import load_recipe


@pytest.fixture
def own(tmp_path, monkeypatch, caplog):
    """Return what puts a file of the user's into the working folder: a copy of the namesake's with keys changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lookup, "_taken", {})
    caplog.set_level(logging.INFO, "labelloop")

    def put(kind, name, like=None, /, **changes):
        content = yaml.safe_load((CONFIG / kind / f"{like or name}.yaml").read_text(encoding="utf-8")) | changes
        file = tmp_path / "config" / kind / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return file

    return put


@pytest.mark.parametrize("kind", ["recipes", "classes", "datasets"])
def test_what_labelloop_brings_is_found_from_any_folder(own, kind):
    for name in known(kind):
        assert find(kind, name) == CONFIG / kind / f"{name}.yaml"
    assert not taken()


def test_an_edited_copy_is_used_and_said_once(own, caplog):
    own("recipes", "default", description="Ours.")
    own("classes", "flare", name="ours")
    own("datasets", "btcv", labels={1: "liver"}, annotated=["liver"])
    for _ in range(2):
        assert load_recipe("default").description == "Ours."
        assert load_recipe("default_demo").plans == load_recipe(CONFIG / "recipes" / "default_demo.yaml").plans
        assert load_dataset("btcv", load_classes("flare")).annotated == ("liver",)
        assert load_recipe("default").scheme.name == "ours"
    lines = list(taken())
    assert [line.partition(":")[0] for line in lines] == ["recipe 'default'", "class scheme 'flare'", "data set 'btcv'"]
    assert all("differs from the one that labelloop brings" in line for line in lines) and all(taken().values())
    assert [record.getMessage() for record in caplog.records if record.name == "labelloop.base.lookup"] == lines


def test_a_copy_with_other_comments_does_not_differ(own):
    file = own("recipes", "default")
    file.write_text("# mine\n" + (CONFIG / "recipes" / "default.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert find("recipes", "default") == Path("config/recipes/default.yaml")
    assert taken() == {"recipe 'default': config/recipes/default.yaml of this folder is used": False}


def test_a_recipe_may_extend_its_namesake_and_a_stranger_may_not_make_a_circle(own):
    (own("recipes", "default").parent / "default.yaml").write_text("{extends: default, rounds: 2}")
    assert load_recipe("default").rounds == 2
    assert load_recipe("default_demo").rounds == 2
    for name, other in (("a", "b"), ("b", "a")):
        (Path("config/recipes") / f"{name}.yaml").write_text(f"extends: {other}")
    with pytest.raises(UserError, match="circle"):
        load_recipe("a")


def test_a_data_set_and_a_class_that_only_the_user_has(own):
    cyst = {"name": "cyst", "id": 1, "tolerance_mm": 2, "color": "#fff"}
    own("classes", "ours", "flare", name="ours", classes=[cyst], sets={}, rules=[])
    own("datasets", "ours", "btcv", labels={1: "liver", 2: "cyst"}, annotated=["cyst"])
    assert "ours" in known("datasets") and "btcv" in known("datasets")
    assert load_dataset("ours", load_classes("ours")).annotated == ("cyst",)
    assert load_dataset("ours", load_classes("flare")).class_of(2) is None
    Path("cases.csv").write_text("case,image,dataset\na,a.nii.gz,ours\nb,b.nii.gz,our\n")
    cases, rejected = load_cases("cases.csv")
    assert [case.case for case in cases] == ["a"] and "did you mean 'ours'" in rejected[0]["found"]


def test_at_the_root_of_a_checkout_nothing_is_special(own, monkeypatch):
    monkeypatch.chdir(PROJECT)
    assert load_recipe("default") and not taken()
    assert len(lookup.files("recipes")) == len(known("recipes"))


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [("recipes", "defalt", "default"), ("classes", "flair", "flare"), ("datasets", "btcw", "btcv")],
)
def test_a_name_that_is_not_there_names_the_nearest(own, kind, name, meant):
    with pytest.raises(UserError, match=rf"^no .* '{name}': .*did you mean '{meant}'\?"):
        find(kind, name)
