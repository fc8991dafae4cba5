"""A model with seeds is an ensemble: each place of a recipe takes its name for all members, or says why it cannot."""

import pytest
import yaml

from labelloop.base.errors import UserError
from labelloop.recipe import load_recipe, unroll
from labelloop.run.chain import describe, needed, ordered

SMALL = {
    "plans": {"p": {"spacing_mm": [5, 5, 5], "patch": [32, 32, 32], "features": [4, 8]}},
    "models": {
        "teacher": {"plan": "p", "classes": "organs", "trainer": {"kind": "partial", "seed": 9}, "seeds": [4, 7]},
        "student": {"plan": "p", "labels": "pseudo", "trainer": "partial", "seeds": [4, 7], "init_from": "teacher"},
        "small": {"plan": "p", "labels": "pseudo", "trainer": "partial"},
    },
    "labels": {"pseudo": {"predict": "teacher", "select": {"min_pairwise_dice": 0.7}}},
    "inference": [{"segment": "student"}, {"segment": "small"}, {"compose": {"organs": "small", "tumor": "student"}}],
    "evaluate": {"models": ["teacher", "small"]},
    "rounds": 2,
    "feedback": {"teacher": "student"},
}


@pytest.fixture
def load(tmp_path):
    def write_and_load(**changes):
        content = yaml.safe_load(yaml.safe_dump(SMALL, sort_keys=False))
        for place, value in changes.items():
            *above, last = place.split("__")
            part = content
            for key in above:
                part = part[key]
            part[last] = value
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_recipe(tmp_path / "mine.yaml")

    return write_and_load


def test_each_place_takes_all_members(load):
    recipe = load()
    assert list(recipe.models) == ["teacher_seed4", "teacher_seed7", "student_seed4", "student_seed7", "small"]
    assert [recipe.models[f"teacher_seed{seed}"].trainer.seed for seed in (4, 7)] == [4, 7]
    assert recipe.labels["pseudo"].predict == ("teacher_seed4", "teacher_seed7")
    assert recipe.inference[0].segment == ("student_seed4", "student_seed7")
    assert recipe.evaluate.models == ("teacher_seed4", "teacher_seed7", "small")
    assert [recipe.models[f"student_seed{seed}"].init_from for seed in (4, 7)] == ["teacher_seed4", "teacher_seed7"]
    assert recipe.feedback == {"teacher_seed4": "student_seed4", "teacher_seed7": "student_seed7"}
    assert recipe.inference[2].compose["tumor"] == "student_seed4"  # whose result is that of both


def test_the_rounds_are_those_of_each_member(load):
    chain = unroll(load())
    assert chain.labels["pseudo_round1"].predict == ("teacher_seed4", "teacher_seed7")
    assert chain.labels["pseudo"].predict == ("student_seed4_round1", "student_seed7_round1")
    assert chain.inference[0].segment == ("student_seed4", "student_seed7")
    assert chain.models["student_seed7"].init_from == "student_seed7_round1"
    assert {"student_seed4_round1", "teacher_seed7"} <= needed(chain) and "seed 7" in describe(load())


def test_many_rounds_of_ensembles_are_written_out_at_once(load):
    """Each round doubled the ways that lead to the next one; all of them were walked."""
    names = ordered(unroll(load(rounds=60)))
    assert names.index("pseudo_round30") < names.index("student_seed4_round30") < names.index("pseudo_round31")


def test_all_members_may_start_from_one_model(load):
    recipe = load(models__student__init_from="small", rounds=1, models__small__labels="truth")
    assert [recipe.models[f"student_seed{seed}"].init_from for seed in (4, 7)] == ["small", "small"]


def test_what_is_like_an_ensemble_is_one_and_null_makes_it_one_model(load):
    more = {"like": "teacher", "validation_fraction": 0.2}
    assert {"other_seed4", "other_seed7"} <= set(load(models__other=more).models)
    assert "other" in load(models__other=more | {"seeds": None}).models


def test_a_translator_and_a_finder_are_one_model_each(load):
    finder = {"plan": "p", "classes": "organs", "trainer": "slice_classifier", "seeds": [1, 2]}
    with pytest.raises(UserError, match=r"inference\.0\.locate: 'finder' is an ensemble.*e\.g\. finder_seed1"):
        load(models__finder=finder, inference=[{"locate": "finder"}, {"segment": "small"}])
    recipe = load(models__finder=finder, inference=[{"locate": "finder_seed2"}, {"segment": "small"}])
    assert recipe.inference[0].locate == "finder_seed2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"models__small__init_from": "teacher"},
            r"models\.small\.init_from: 'teacher' is an ensemble of 2, and 'small'",
        ),
        ({"models__student__seeds": [1, 2, 3]}, r"models\.student\.init_from: .* ensemble of 2, and 'student' has 3"),
        ({"feedback": {"teacher": "small"}}, r"feedback\.teacher: 'teacher' has 2 members and 'small' 1"),
        ({"models__teacher_seed4": {"plan": "p"}}, r"models\.teacher\.seeds: its member 'teacher_seed4' has the name"),
        ({"models__teacher__seeds": [3]}, r"models\.teacher\.seeds: .*at least 2 items"),
        ({"models__teacher__seeds": [3, 3]}, r"models\.teacher\.seeds: .*each once"),
        ({"models__teacher__seeds": [3, -1]}, r"models\.teacher\.seeds\.1: .*greater than or equal to 0"),
        ({"plans__p__grey": {}, "plans__p__translate": "teacher"}, r"plans\.p\.translate: 'teacher' is an ensemble"),
        (
            {"inference": [{"segment": "student_seed4"}, {"compose": {"organs": "student"}}]},
            r"inference\.1\.compose: no step before segments the ensemble 'student'",
        ),
        ({"evaluate": {"models": ["teacher", "teacher_seed4"]}}, r"evaluate\.models: names 'teacher_seed4' twice"),
        (
            {"labels__pseudo__predict": ["teacher", "teacher_seed4"]},
            r"labels\.pseudo\.predict: names 'teacher_seed4' twice",
        ),
    ],
)
def test_a_place_where_an_ensemble_makes_no_sense_is_refused(load, changes, message):
    with pytest.raises(UserError, match=message):
        load(**changes)


def test_what_is_wrong_with_each_member_is_told_once(load):
    with pytest.raises(UserError) as error:
        load(models__teacher__plan="q")
    assert str(error.value).count("no such name 'q'") == 1
