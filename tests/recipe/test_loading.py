"""Recipes: form and meaning are checked before anything runs, all errors at once; rounds unroll."""

import re

import pytest
import yaml

from labelloop.base.errors import UserError
from labelloop.base.lookup import CONFIG
from labelloop.recipe import load_recipe, parents, round_before, unroll
from labelloop.run.chain import bank_of, describe, images_of, mermaid, needed, ordered, updates

SMALL = {
    "plans": {"p": {"spacing_mm": [5, 5, 5], "patch": [32, 32, 32], "features": [4, 8]}},
    "models": {
        "teacher": {"plan": "p", "cases": "organs_full", "classes": "organs"},
        "student": {"plan": "p", "labels": "pseudo", "trainer": "partial"},
    },
    "labels": {"pseudo": {"predict": "teacher"}},
    "inference": [{"segment": "student"}],
    "evaluate": {"models": "teacher"},
}


def write(tmp_path, content, name="mine.yaml"):
    path = tmp_path / name
    path.write_text(yaml.safe_dump(content))
    return path


def changed(**changes):
    """SMALL with values set at dotted places; __ stands for the dots."""
    content = yaml.safe_load(yaml.safe_dump(SMALL))
    for place, value in changes.items():
        *parents, last = place.split("__")
        part = content
        for key in parents:
            part = part[key]
        part[last] = value
    return content


@pytest.mark.parametrize("path", sorted((CONFIG / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid_and_can_be_shown(path):
    for rounds in (1, 3) if load_recipe(path).feedback else (1,):
        recipe = load_recipe(path, rounds=rounds)
        for name in ordered(unroll(recipe)):
            assert re.search(rf"\b{name}\b", describe(recipe)) and re.search(rf"\b{name}\b", mermaid(recipe))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models__student__label": "pseudo"}, r"models\.student\.label: unknown key; did you mean 'labels'"),
        ({"models__teacher__plan": "q"}, r"models\.teacher\.plan: no such name 'q'"),
        ({"models__student__labels": "pseud"}, r"models\.student\.labels: .*'pseud'; did you mean 'pseudo'"),
        ({"models__teacher__classes": "orgns"}, r"models\.teacher\.classes: .*'orgns'; did you mean 'organs'"),
        ({"models__teacher__cases": "organs_ful"}, r"models\.teacher\.cases: .*did you mean 'organs_full'"),
        ({"models__teacher__labels": "pseudo"}, r"a circle: .*teacher.*pseudo"),
        (
            {"models__student__trainer": {"kind": "partial", "epocs": 3}},
            r"epocs: unknown key of partial; did you mean 'epochs'",
        ),
        ({"plans__p__strides": [[1, 1, 1], [3, 2, 2]]}, r"plans\.p: .*not divisible"),
        (
            {"models__student__trainer": {"kind": "partial", "batches": {"full": "organs_ful"}}},
            r"models\.student\.trainer\.batches\.full: no group 'organs_ful'; did you mean 'organs_full'",
        ),
        (
            {"models__student__trainer": {"kind": "partial", "cutmix": {"name": "tumr"}}},
            r"models\.student\.trainer\.cutmix\.name: the model has no class 'tumr'; did you mean 'tumor'",
        ),
        (
            {"models__teacher__trainer": {"favor": {"name": "tumor", "drop_others": 0.5}}},
            r"models\.teacher\.trainer\.favor\.name: the model has no class 'tumor'",  # it knows organs only
        ),
        (
            {"models__student__trainer": {"kind": "partial", "class_weights": {"tumors": 10}}},
            r"models\.student\.trainer\.class_weights: the model has no class 'tumors'; did you mean 'tumor'",
        ),
        ({"labels__pseudo__select": {"verdicts": ["volum"]}}, r"select\.verdicts: .*'volum'; did you mean 'volume'"),
        (
            {"labels__pseudo__select": {"if_refused": {"tumr": "drop"}}},
            r"select\.if_refused: .*'tumr'; did you mean 'tumor'",
        ),
        ({"labels__pseudo__select": {"min_pairwise_dice": 0.7}}, r"min_pairwise_dice: .*`predict` names one"),
        ({"labels__pseudo__select": {"min_quality": {"all": 0.8}}}, r"min_quality: no class 'all'"),
        ({"labels__pseudo__select": {"if_refused": {"all": "drop"}}}, r"if_refused: no class 'all'"),
        ({"labels__pseudo__select": {"drop_most_uncertain": 3}}, r"drop_most_uncertain: .*or write .*: 0"),
        ({"labels__pseudo__select": {"min_pairwise_dice": 70}}, r"min_pairwise_dice.*less than or equal to 1"),
        ({"evaluate__protocol": "oficial"}, r"evaluate\.protocol: .*'official-2024'"),
        ({"labels__truth": {"predict": "teacher"}}, r"'truth': this name is taken"),
        ({"models__final": {"plan": "p"}}, r"'final': this name is taken"),
        ({"models__Teacher": {"plan": "p"}}, r"(?i)'teacher': differs from 'teacher' in capitals alone"),
        ({"labels__TEACHER": {"predict": "teacher"}}, r"(?i)'teacher': differs from 'teacher' in capitals alone"),
        ({"plans__P": {"spacing_mm": [5, 5, 5], "patch": [8, 8, 16]}}, r"(?i)'p': differs from 'p' in capitals alone"),
        ({"groups": {"mine": {"al": "organs"}}}, r"groups\.mine\.al: unknown key; did you mean 'all'"),
        ({"models": ["teacher"]}, r"models: found a list"),
        ({"plans__p__patch": [50, 32, 32], "plans__p__features": [4] * 4}, r"side z, 50, .* take 48 or 56"),
        ({"labels__pseudo__predict_for": "unlabelled"}, r"predict_for: no group .*; did you mean 'unlabeled'"),
        (
            {"labels__pseudo__select": {"absent_if_not_found": ["orgns"]}},
            r"absent_if_not_found: no class or set 'orgns'; did you mean 'organs'",
        ),
        ({"labels__pseudo__tumor_voxels": "nearest_organ"}, r"labels\.pseudo\.tumor_voxels: .* has the tumor itself"),
        (
            {"labels__pseudo": {"predict": ["teacher", "student"], "transfer": {}}},
            r"labels\.pseudo\.transfer: carries the predictions of one model; `predict` names 2",
        ),
        (
            {"labels__pseudo__transfer": {}, "models__teacher__classes": ["liver", "left_kidney"]},
            r"labels\.pseudo\.transfer: the kidneys decide .* 'teacher' has no right_kidney",
        ),
        (
            {"labels__pseudo__transfer": {"sorce": "t1w"}},
            r"pseudo\.transfer\.sorce: unknown key; did you mean 'source'",
        ),
        (
            {"labels__pseudo__transfer": {"follows": {"in_phase": "out_of_phase", "out_of_phase": "in_phase"}}},
            r"labels\.pseudo\.transfer: .*leads in a circle",
        ),
        ({"labels__pseudo__transfer": {"on_images": {"t2w": "t1w"}}}, r"labels\.pseudo\.transfer: .*from or to t1w"),
        (
            {"labels__pseudo__clean": [{"keep_slices": ["spleen"], "of": ["livr"], "above_mm": 0}]},
            r"labels\.pseudo\.clean: no class or set 'livr'; did you mean 'liver'",
        ),
        (
            {"inference": [{"segment": "student"}, {"clean": [{"keep_largest": "livr"}]}]},
            r"inference\.1",
        ),
        ({"engine": {"mirror_axes": [0, 0]}}, r"engine\.mirror_axes: .*an axis stands twice"),
        ({"plans__p__patch": [1024, 1024, 1024]}, r"plans\.p: .*voxels, expected at most"),
        ({"rounds": 2}, r"rounds: more than one needs `feedback"),
        (
            {"rounds": 2, "feedback": {"student": "teacher"}},
            r"feedback\.student: 'teacher' does not learn from 'student'",
        ),
        ({"models__teacher__cases": []}, r"models\.teacher\.cases: .*at least 1 item"),
        ({"models__teacher__classes": []}, r"models\.teacher\.classes: .*at least 1 item"),
        ({"models__teacher__cases": "type:liver"}, r"models\.teacher\.cases: group 'type:liver'"),
        ({"labels__pseudo__predict": []}, r"labels\.pseudo\.predict: .*at least 1 item"),
        ({"labels__pseudo__predict": ["teacher", "teacher"]}, r"labels\.pseudo\.predict: names 'teacher' twice"),
        (
            {"labels__pseudo__check": None, "labels__pseudo__thresholds": "fitted.yaml"},
            r"labels\.pseudo\.thresholds: asks the rules of anatomy, and check is null",
        ),
        (
            {
                "labels__pseudo__predict": ["teacher", "student"],
                "labels__pseudo__check": None,
                "labels__pseudo__thresholds": "fitted.yaml",
                "labels__pseudo__select": {"verdicts": ["volume"]},
            },
            r"(?s)labels\.pseudo\.thresholds: asks .*labels\.pseudo\.select\.verdicts: asks the rules of anatomy",
        ),
        (
            {"models__student__trainer": {"kind": "partial", "new_class_bias": -2}},
            r"models\.student\.trainer\.new_class_bias: without effect without init_from",
        ),
        ({"plans__p__spacing_mm": [5, 5, 500]}, r"plans\.p: .*spacing_mm must be above 0 and at most 100"),
        ({"plans__p__ct": {"mean": 400}}, r"plans\.p\.ct: .*mean: 400 lies outside of clip_hu, -200 to 300"),
        ({"plans__p__ct": {"men": 40}}, r"plans\.p\.ct\.men: unknown key; did you mean 'mean'\?"),
        ({"plans__p__ct": [{}, {"men": 40}]}, r"plans\.p\.ct\.1\.men: unknown key; did you mean 'mean'\?$"),
        ({"plans__p__ct": []}, r"plans\.p: .*ct: 0 normalizations, expected one"),
        ({"plans__p__features": [4]}, r"plans\.p\.features: .*at least 2 items"),
        (
            {
                "plans__p__patch": [8, 8, 8],
                "plans__p__features": [4] * 4,
                "plans__p__strides": [[1, 1, 1]] + [[2, 2, 2]] * 3,
            },
            r"plans\.p: .*patch \(8, 8, 8\): one voxel is left in the last of 4 stages",
        ),
        ({"plans__p__strides": [[2, 2, 2], [2, 2, 2]]}, r"plans\.p: .*strides: the first stage has \(2, 2, 2\)"),
        ({"plans__p__strides": [[1, 1, 1], [0, 2, 2]]}, r"plans\.p: .*strides: every step must be 1 or more"),
        ({"plans__p__kernels": [[3, 3, 3], [2, 3, 3]]}, r"plans\.p: .*kernels: every side must be odd"),
        (
            {"inference": [{"clean": {"keep_largest": "liver"}}, {"segment": "student"}]},
            r"inference\.0\.clean: nothing has been segmented before",
        ),
        (
            {"inference": [{"segment": "teacher"}, {"clean": {"keep_largest": "tumor"}}]},
            r"inference\.1\.clean\.0\.keep_largest: no model of the chain \(teacher\) knows tumor",
        ),
        (
            {"inference": [{"segment": "teacher"}, {"segment": "student"}, {"compose": {"tumor": "teacher"}}]},
            r"inference\.2\.compose: 'teacher' knows nothing of 'tumor'; it holds .*liver",
        ),
        (
            {
                "inference": [
                    {"locate": "teacher", "min_height_mm": 300},
                    {"segment": "student"},
                    {"compose": {"organs": "teacher", "tumor": "student"}},
                ]
            },
            r"inference\.2\.compose: no such name 'teacher'",  # low images are not located in
        ),
        ({"rounds": 100_000}, r"rounds: Input should be less than or equal to 100"),
        ({"inference": [{"clean": {"keep_largest": "liver"}}]}, r"inference: no step segments"),
        ({"inference": [{"segment": "studnt"}]}, r"inference\.0\.segment: .*'studnt'; did you mean 'student'"),
    ],
)
def test_errors_name_file_key_found_and_nearest(tmp_path, changes, message):
    path = write(tmp_path, changed(**changes))
    with pytest.raises(UserError, match=message) as error:
        load_recipe(path)
    assert all(str(path) in line for line in str(error.value).splitlines() if line)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inference": [{"segment": "finder"}]}, r"inference\.0\.segment: 'finder' is a slice classifier"),
        (
            {"labels__pseudo__predict": ["teacher", "finder"]},
            r"labels\.pseudo\.predict: 'finder' is a slice classifier",
        ),
        ({"models__student__init_from": "finder"}, r"models\.student\.init_from: 'finder' is a slice classifier"),
        ({"evaluate__models": ["finder"]}, r"evaluate\.models: 'finder' is a slice classifier"),
        (
            {"inference": [{"locate": "findr"}, {"segment": "student"}]},
            r"inference\.0\.locate: .*did you mean 'finder'",
        ),
        ({"inference": [{"locate": "finder"}]}, r"inference: no step segments"),
        (
            {"inference": [{"locate": "finder", "margin": 3}]},
            r"inference\.0\.margin: unknown key of locate; .*'margin_mm'",
        ),
        (
            {"inference": [{"segment": "student", "margin_mm": 3}]},
            r"inference\.0\.margin_mm: belongs to locate, and this is segment",
        ),
        (
            {"inference": [{"segment": "student", "locate": "finder"}]},
            r"inference\.0\.segment: a step does one thing, and this one is 'locate'",
        ),
        ({"inference": [{"segment": "student", "as": "all"}, {"compose": {"organs": "al"}}]}, r"did you mean 'all'"),
    ],
)
def test_errors_of_a_cascade(tmp_path, changes, message):
    content = changed(**{"models__finder": {"plan": "p", "classes": "organs", "trainer": "slice_classifier"}} | changes)
    with pytest.raises(UserError, match=message):
        load_recipe(write(tmp_path, content))


def test_a_located_chain_needs_its_finder_and_follows_the_rounds(tmp_path):
    content = changed(rounds=2, feedback={"teacher": "student"})
    content["models"]["finder"] = {"plan": "p", "classes": "organs", "trainer": "slice_classifier"}
    content["inference"] = [{"locate": "student"}, {"locate": "finder"}, {"segment": "student"}]
    chain = unroll(load_recipe(write(tmp_path, content)))
    assert [step.models for step in chain.inference] == [("student",), ("finder",), ("student",)]
    assert "finder" in needed(chain) and "finder --> predictions" in mermaid(chain)


ADAPTED = SMALL | {
    "plans": {
        "p": SMALL["plans"]["p"] | {"grey": {}, "upright": True},
        "fake": SMALL["plans"]["p"] | {"grey": {}, "upright": True, "translate": "to_mr"},
    },
    "models": {
        "to_mr": {"plan": "p", "trainer": "translator"},
        "teacher": {"plan": "fake", "cases": "organs_full", "classes": "organs"},
        "student": {"plan": "p", "labels": "pseudo", "trainer": "partial"},
    },
}


def test_a_translator_comes_before_those_whose_plan_names_it(tmp_path):
    recipe = load_recipe(write(tmp_path, ADAPTED))
    assert parents(recipe, "teacher") == ("to_mr",) and parents(recipe, "to_mr") == ()
    assert needed(recipe) == {"to_mr", "teacher", "pseudo", "student"} and ordered(recipe)[0] == "to_mr"
    assert "to_mr --> teacher" in mermaid(recipe) and "truth --> to_mr" not in mermaid(recipe)
    assert "model to_mr: translator from CT to MR" in describe(recipe) and "199200 updates" in describe(recipe)
    assert images_of(recipe, "fake") == "fake"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("plans__fake__translate", "to_m", r"plans\.fake\.translate: no such name 'to_m'; did you mean 'to_mr'"),
        ("plans__fake__translate", "student", r"plans\.fake\.translate: 'student' is no translator"),
        ("plans__fake__spacing_mm", [5, 4, 4], r"plans\.fake: spacing_mm, grey, upright must be those of p"),
        ("plans__fake__grey", {"ct_width_hu": 300}, r"plans\.fake: spacing_mm, grey, upright must be those of p"),
        ("models__to_mr__plan", "fake", r"models\.to_mr\.plan: fake must have `grey` and no `translate`"),
        ("models__to_mr__labels", "pseudo", r"models\.to_mr\.labels: a translator learns from images alone"),
        ("models__to_mr__init_from", "teacher", r"models\.to_mr\.init_from: a translator starts from random weights"),
        (
            "models__to_mr__trainer",
            {"kind": "translator", "momentum": 0.9},
            r"momentum: belongs to supervised, .* and this is translator",
        ),
        ("models__student__init_from", "to_mr", r"models\.student\.init_from: 'to_mr' is a translator"),
        ("labels__pseudo__predict", "to_mr", r"labels\.pseudo\.predict: 'to_mr' is a translator"),
        ("inference", [{"locate": "to_mr"}, {"segment": "student"}], r"inference\.0\.locate: 'to_mr' is a translator"),
        ("evaluate__models", ["to_mr"], r"evaluate\.models: 'to_mr' is a translator"),
        ("plans__q", SMALL["plans"]["p"], None),
        ("models__other", {"plan": "q"}, r"plans: some ask for upright, but not q"),
        ("models__finder", {"plan": "p", "trainer": "slice_classifier"}, r"models\.finder\.plan: .* Hounsfield units"),
    ],
)
def test_errors_of_a_translator(tmp_path, place, value, message):
    content = yaml.safe_load(yaml.safe_dump(ADAPTED))
    if place == "models__other":
        content["plans"]["q"] = SMALL["plans"]["p"]
    *way, last = place.split("__")
    part = content
    for key in way:
        part = part[key]
    part[last] = value
    if message is None:
        load_recipe(write(tmp_path, content))
        return
    with pytest.raises(UserError, match=message):
        load_recipe(write(tmp_path, content))


def test_a_transfer_is_told_in_words_and_drawn(tmp_path):
    recipe = load_recipe(write(tmp_path, changed(labels__pseudo__transfer={"source": "portal_venous"})))
    assert "transfer from portal_venous" in describe(recipe) and "labels pseudo from portal_venous" in mermaid(recipe)
    assert "transfer" not in describe(load_recipe(write(tmp_path, SMALL)))


TWO = {"teacher_b": SMALL["models"]["teacher"] | {"trainer": {"seed": 1}}}


def with_two_teachers(**changes):
    """SMALL with a second teacher, whose agreement is asked."""
    content = changed(labels__pseudo__predict=["teacher", "teacher_b"], **changes)
    return content | {"models": TWO | content["models"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"plans__q": {"spacing_mm": [5, 5, 5], "patch": [32, 32, 32], "features": [4, 8, 8]},
             "models__student__plan": "q", "models__student__init_from": "teacher"},
            r"models\.student\.init_from: the plans q and p have different networks "
            r"\(features \(4, 8, 8\), not \(4, 8\); .* Write plan: p, or leave init_from out",
        ),
        (
            {"plans__p__batch_size": 1, "models__student__trainer": "mean_teacher"},
            r"models\.student\.trainer\.kind: mean_teacher needs room .*plans\.p\.batch_size is 1",
        ),
        (
            {"models__student__validation_fraction": 0, "models__student__trainer": {"export": "best"}},
            r"models\.student\.trainer\.export: best needs validation cases, and validation_fraction is 0",
        ),
        (
            {"labels__pseudo__select": {"target_dsc": 0.8}, "models__teacher__trainer": {"export": "best"}},
            r"labels\.pseudo\.select\.target_dsc: .*export: best chose the weights of teacher by them",
        ),
        (
            {"labels__pseudo__select": {"target_dsc": 0.8}, "models__teacher__validation_seed": 1},
            r"labels\.pseudo\.select\.target_dsc: .*validation_seed is teacher 1, teacher_b 0",
        ),
    ],
    ids=["other network", "batch of one", "no validation", "steered", "two seeds"],
)  # fmt: skip
def test_what_trainings_cannot_do_is_told_before_the_first_job(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_recipe(write(tmp_path, with_two_teachers(**changes)))


def test_a_calibration_made_elsewhere_is_not_voided_by_these_trainings(tmp_path):
    select = {"target_dsc": 0.8, "calibration": "calibration.csv"}
    load_recipe(write(tmp_path, with_two_teachers(labels__pseudo__select=select, models__teacher__validation_seed=1)))


def test_what_only_a_later_round_cannot_do_is_told_once(tmp_path):
    other = {"spacing_mm": [5, 5, 5], "patch": [32, 32, 32], "features": [4, 8, 8]}
    student = {"plan": "q", "labels": "pseudo", "trainer": "partial"}
    middle = {"plan": "p", "labels": "pseudo", "init_from": "teacher", "trainer": "partial"}
    content = changed(plans__q=other, models__student=student, models__middle=middle)
    content["labels"]["second"] = {"predict": "middle"}
    content["models"]["student"]["labels"] = "second"
    load_recipe(write(tmp_path, content))
    with pytest.raises(UserError, match=r"models\.middle_round2\.init_from: the plans p and q") as error:
        load_recipe(write(tmp_path, content | {"rounds": 3, "feedback": {"teacher": "student"}}))
    assert str(error.value).count("init_from:") == 1
    both = with_two_teachers(labels__pseudo__select={"min_pairwise_dice": 0.7})
    both |= {"rounds": 2, "feedback": {"teacher": "student", "teacher_b": "student"}}
    with pytest.raises(
        UserError, match=r"labels\.pseudo\.select\.min_pairwise_dice: .*`predict` names one.*\(in round 2\)"
    ):
        load_recipe(write(tmp_path, both))


def test_all_errors_come_at_once(tmp_path):
    path = write(tmp_path, changed(models__teacher__plan="q", models__student__labels="x", evaluate__models=["z"]))
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert len(str(error.value).splitlines()) == 3


def test_a_missing_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'default'"):
        load_recipe("defalt")


def test_like_and_extends_override_key_by_key(tmp_path):
    write(tmp_path, changed(models__teacher__trainer={"epochs": 7, "seed": 1}), "base.yaml")
    child = {
        "extends": str(tmp_path / "base.yaml"),
        "models": {"teacher": {"trainer": {"epochs": 9}}, "second": {"like": "teacher", "trainer": {"seed": 2}}},
    }
    recipe = load_recipe(write(tmp_path, child))
    assert (recipe.models["teacher"].trainer.epochs, recipe.models["teacher"].trainer.seed) == (9, 1)
    assert (recipe.models["second"].trainer.epochs, recipe.models["second"].trainer.seed) == (9, 2)
    assert recipe.models["second"].cases == ("organs_full",)
    assert recipe.name == "mine"


def test_recipes_that_extend_each_other_are_refused(tmp_path):
    write(tmp_path, {"extends": str(tmp_path / "b.yaml")}, "a.yaml")
    write(tmp_path, {"extends": str(tmp_path / "a.yaml")}, "b.yaml")
    with pytest.raises(UserError, match="circle"):
        load_recipe(tmp_path / "a.yaml")


def test_rounds_unroll_into_a_chain_in_which_the_student_becomes_the_teacher(tmp_path):
    content = changed(rounds=3, feedback={"teacher": "student"}, evaluate__models=["teacher", "student"])
    content["models"]["other"] = {"plan": "p", "labels": "truth"}
    content["labels"]["pseudo"]["predict"] = ["teacher", "other"]
    content["models"]["small"] = {"plan": "p", "labels": "pseudo"}
    content["inference"] = [{"segment": ["student", "small"]}]
    chain = unroll(load_recipe(write(tmp_path, content)))
    assert chain.labels["pseudo_round1"].predict == ("teacher", "other")
    assert chain.labels["pseudo_round2"].predict == ("student_round1", "other")
    assert chain.labels["pseudo"].predict == ("student_round2", "other")
    assert chain.models["student_round2"].labels == "pseudo_round2" and chain.models["student"].labels == "pseudo"
    assert chain.models["small"].labels == "pseudo" and "small_round1" not in chain.models
    assert set(chain.models) == {"teacher", "other", "small", "student_round1", "student_round2", "student"}
    assert chain.inference[0].segment == ("student", "small")
    assert chain.evaluate.models == ("teacher", "student_round1", "student_round2", "student")
    order = ordered(chain)
    assert all(order.index(p) < order.index(n) for n in order for p in parents(chain, n))


def test_models_of_all_rounds_stand_in_the_order_of_the_file():
    plain = [*load_recipe("best").models]
    students = [name for name in plain if name.startswith("student")]
    first = [f"{name}_round1" if name in students else name for name in plain]
    assert [*unroll(load_recipe("best")).models] == [*first, *(f"{name}_round2" for name in students), *students]


def test_a_round_is_the_same_whatever_the_number_of_rounds_but_for_the_name_of_the_last(tmp_path):
    path = write(tmp_path, changed(feedback={"teacher": "student"}))
    one, two, three = (unroll(load_recipe(path, rounds=number)) for number in (1, 2, 3))
    assert three.models["student_round1"].model_copy(update={"labels": "pseudo"}) == one.models["student"]
    assert three.labels["pseudo_round1"] == two.labels["pseudo_round1"] == one.labels["pseudo"]
    assert three.labels["pseudo_round2"] == two.labels["pseudo"] != one.labels["pseudo"]
    recipe = load_recipe(path, rounds=3)
    before = [round_before(recipe, name) for name in ("student_round1", "student_round2", "student", "teacher")]
    assert before == [None, "student_round1", "student_round2", None]


def test_plans_that_prepare_images_alike_share_them(tmp_path):
    content = changed()
    content["plans"]["wide"] = {**content["plans"]["p"], "features": [8, 16]}
    content["plans"]["coarse"] = {**content["plans"]["p"], "spacing_mm": [6, 6, 6]}
    recipe = load_recipe(write(tmp_path, content))
    assert [images_of(recipe, plan) for plan in ("p", "wide", "coarse")] == ["p", "p", "coarse"]


def test_models_that_paste_the_same_objects_share_them(tmp_path):
    content = changed()
    content["models"]["student"]["trainer"] = {"kind": "partial", "cutmix": {}}
    content["models"]["student_b"] = {"like": "student", "trainer": {"seed": 2, "cutmix": {"probability": 0.5}}}
    content["models"]["wider"] = {"like": "student", "trainer": {"cutmix": {"min_ml": 1}}}
    content["models"]["of_truth"] = {"like": "student", "labels": "truth"}
    recipe = load_recipe(write(tmp_path, content))
    banks = {name: bank_of(recipe, name) for name in ("student", "student_b", "wider", "of_truth")}
    assert banks == {"student": "student", "student_b": "student", "wider": "wider", "of_truth": "of_truth"}


def test_files_that_a_recipe_names_may_lie_beside_it(tmp_path):
    scheme = yaml.safe_load((CONFIG / "classes" / "flare.yaml").read_text(encoding="utf-8")) | {"name": "ours"}
    write(tmp_path, scheme, "ours.yaml")
    write(tmp_path, SMALL, "base.yaml")
    recipe = load_recipe(write(tmp_path, {"extends": "base.yaml", "classes": "ours.yaml"}))
    assert recipe.scheme.name == "ours" and set(recipe.models) == {"teacher", "student"}


def test_the_rules_of_scoring_are_those_there_are():
    from typing import get_args

    from labelloop.metrics.flare import RULES
    from labelloop.recipe import EvaluationSpec

    assert get_args(EvaluationSpec.model_fields["protocol"].annotation) == tuple(RULES)


def test_updates_count_those_of_the_models_started_from():
    chain = unroll(load_recipe("default", rounds=2))
    own = {name: spec.trainer.epochs * spec.trainer.iterations_per_epoch for name, spec in chain.models.items()}
    assert updates(chain, "teacher") == own["teacher"]
    assert updates(chain, "student_round1") == own["teacher"] + own["student_round1"]
    assert updates(chain, "student") == updates(chain, "student_round1") + own["student"]
