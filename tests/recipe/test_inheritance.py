"""Recipes inherit: ``extends`` between files, ``like`` and named trainers within one, and what is removed by null."""

import pytest
import yaml

from labelloop.base.errors import UserError
from labelloop.recipe import load_recipe
from labelloop.recipe.inheritance import merged

BASE = {
    "plans": {"p": {"spacing_mm": [5, 5, 5], "patch": [32, 32, 32], "features": [4, 8]}},
    "trainers": {"quick": {"epochs": 7, "learning_rate": 0.1, "seed": 3}},
    "models": {
        "teacher": {"plan": "p", "cases": "organs_full", "classes": "organs", "trainer": "quick"},
        "student": {"plan": "p", "labels": "pseudo", "trainer": {"like": "quick", "kind": "partial", "epochs": 9}},
    },
    "labels": {"pseudo": {"predict": "teacher", "clean": {"keep_largest": "liver"}}},
    "inference": [{"segment": "student"}, {"clean": "pseudo"}],
    "evaluate": {"models": "teacher"},
}


@pytest.fixture
def load(tmp_path):
    def write_and_load(content, base=None):
        if base is not None:
            (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
            content = {"extends": "base.yaml"} | content
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
        return load_recipe(tmp_path / "mine.yaml")

    return write_and_load


def trainers(recipe):
    return {name: (m.trainer.kind, m.trainer.epochs, m.trainer.seed) for name, m in recipe.models.items()}


def test_models_name_trainers_or_are_like_them(load):
    assert trainers(load(BASE)) == {"teacher": ("supervised", 7, 3), "student": ("partial", 9, 3)}


def test_a_kind_may_stand_for_a_trainer(load):
    student = BASE["models"]["student"] | {"trainer": {"like": "mean_teacher", "epochs": 2}}
    found = load(BASE | {"models": BASE["models"] | {"student": student, "other": {"plan": "p", "trainer": "partial"}}})
    assert trainers(found)["student"][:2] == ("mean_teacher", 2)
    assert trainers(found)["other"] == ("partial", 1000, 0)


def test_a_changed_trainer_changes_all_that_name_it(load):
    child = {"trainers": {"quick": {"epochs": 1}}, "models": {"student": {"trainer": {"seed": 5}}}}
    assert trainers(load(child, BASE)) == {"teacher": ("supervised", 1, 3), "student": ("partial", 9, 5)}
    replaced = {"models": {"teacher": {"trainer": {"kind": "partial"}}}}
    assert trainers(load(replaced, BASE))["teacher"] == ("partial", 7, 3)


def test_what_is_like_something_begins_anew(load):
    """Not mixed with what stood there in the recipe that is extended."""
    child = {"trainers": {"slow": {"epochs": 50}}, "models": {"student": {"trainer": {"like": "slow", "seed": 1}}}}
    assert trainers(load(child, BASE))["student"] == ("supervised", 50, 1)


def test_plans_models_and_label_sets_may_be_like_others(load):
    content = BASE | {
        "plans": BASE["plans"] | {"wide": {"like": "p", "features": [8, 16]}},
        "labels": BASE["labels"] | {"again": {"like": "pseudo", "check": None}},
        "models": BASE["models"] | {"third": {"like": "student", "labels": "again", "plan": "wide"}},
    }
    recipe = load(content)
    assert (recipe.plans["wide"].patch, recipe.plans["wide"].features) == ((32, 32, 32), (8, 16))
    assert (recipe.labels["again"].predict, recipe.labels["again"].check) == (("teacher",), None)
    assert recipe.models["third"].trainer == recipe.models["student"].trainer


def test_inference_takes_the_cleaning_of_a_label_set(load):
    recipe = load(BASE)
    assert recipe.inference[1].clean == recipe.labels["pseudo"].clean != ()


def test_null_removes_what_the_other_recipe_has(load):
    base = BASE | {"models": BASE["models"] | {"unused": {"plan": "p"}}}
    assert set(load({"models": {"unused": None}}, base).models) == {"teacher", "student"}
    base = BASE | {"groups": {"a": {"labeled": True}, "b": {"dataset": "btcv"}}, "feedback": {"teacher": "student"}}
    recipe = load({"groups": {"b": None}, "feedback": {"teacher": None}}, base)
    assert (set(recipe.groups), recipe.feedback) == ({"a"}, {})


def test_cleaning_steps_are_replaced_as_a_whole(load):
    child = {"labels": {"pseudo": {"clean": {"remove_islands": "liver", "below_ml": 1}}}}
    (step,) = load(child, BASE).labels["pseudo"].clean
    assert (step.verb, step.classes, step.below_ml) == ("remove_islands", ("liver",), 1)


def test_a_changed_kind_leaves_the_keys_of_the_former_behind():
    base = {"kind": "partial", "epochs": 5, "cutmix": {"objects_per_patch": 2}, "merge": "max"}
    assert merged(base, {"kind": "mean_teacher"}) == {"kind": "mean_teacher", "epochs": 5, "merge": "max"}
    assert merged(base, {"kind": "partial"}) == base
    assert merged(base, {"kind": "no such"}) == base | {"kind": "no such"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plans": {"q": {"like": "r"}}}, r"plans\.q\.like: no such name 'r' under plans; .*known: p"),
        ({"plans": {1: {}, None: {}, "q": {"like": "r"}}}, r"plans\.q\.like: no such name 'r'.*known: 1, None, p"),
        ({"plans": {"q": {"like": "q"}}}, r"plans\.q\.like: a circle"),
        ({"trainers": {"a": {"like": "b"}, "b": {"like": "a"}}}, r"trainers\..\.like: a circle"),
        ({"models": {"teacher": {"like": ["student"]}}}, r"models\.teacher\.like: found \['student'\]"),
        ({"models": {"teacher": "student"}}, r"models\.teacher: found student, expected keys"),
        ({"models": {"teacher": {"trainer": "quik"}}}, r"models\.teacher\.trainer: no such name 'quik'.*'quick'"),
        ({"models": {"teacher": {"trainer": {"like": "partal"}}}}, r"teacher\.trainer: no such name .*'partial'"),
        ({"trainers": {"partial": {"epochs": 3}}}, r"trainers\.partial: this is a kind of trainer"),
        ({"trainers": {"unused": {"epoch": 3}}}, r"trainers\.unused\.epoch: unknown key of supervised; .*'epochs'"),
        ({"labels": {"pseudo": None}}, r"inference: clean: no label set 'pseudo'"),
        ({"trainers": ["quick"]}, r"trainers: found a list, expected names"),
    ],
)
def test_what_leads_nowhere_is_refused(load, changes, message):
    with pytest.raises(UserError, match=message):
        load(changes, BASE)
