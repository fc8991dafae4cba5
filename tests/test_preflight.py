"""What is told before any image is opened: rows that will be set aside, and models without cases or examples."""

import pytest

from labelloop import preflight
from labelloop.cases import Case, load_cases
from labelloop.chain import unroll
from labelloop.classes import load_classes
from labelloop.recipe import load_recipe

FLARE = load_classes("flare")


def case(number: int, annotated: str = "", role: str = "train") -> Case:
    label = f"/labels/{number}.nii.gz" if annotated else ""
    names = {"case": f"c{number}", "patient": f"c{number}", "image": f"/images/{number}.nii.gz", "label": label}
    return Case(**names, dataset="flare22", modality="CT", role=role, annotated=annotated)


def fit(recipe: str, *annotated: str):
    return preflight.fit([case(i, names) for i, names in enumerate(annotated)], unroll(load_recipe(recipe)))


@pytest.mark.parametrize("recipe", ["default", "best", "merge_max", "progressive", "two_stage", "coarse_to_fine"])
def test_nothing_is_taken_where_everything_is_annotated(recipe):
    chain, notes, problems = fit(recipe, "all", "all", "organs", "tumor", "")
    assert chain == unroll(load_recipe(recipe))
    assert not notes and not problems


def test_models_lose_the_classes_that_nobody_annotated_and_all_that_names_them():
    chain, notes, problems = fit("best_demo", "organs", "organs", "")
    assert not problems
    assert all(chain.scheme.select(model.classes) == FLARE.sets["organs"] for model in chain.models.values())
    trainers = [model.trainer for model in chain.models.values()]
    assert not any(t.cutmix or t.favor or t.class_weights for t in trainers)
    assert len(notes) == 1 and notes[0].startswith("nobody annotated or predicts tumor; trained without: teacher, ")


def test_a_student_knows_what_its_teacher_predicts():
    chain, notes, _ = fit("default", "organs", "liver;tumor", "")
    assert not notes and chain.models["student"].classes == ("all",)


def test_a_model_without_cases_is_a_problem_that_names_what_is_missing():
    most = [name for name in FLARE.sets["organs"] if name != "duodenum"]
    _, _, problems = fit("default", ";".join(most), ";".join(most))
    assert len(problems) == 2  # two teachers
    assert (
        "models.teacher.cases: none of 2 train cases is in organs_full; in no case is annotated: duodenum"
        in problems[0]
    )


def test_test_cases_are_no_examples():
    cases = [case(0, "organs"), case(1, "all", role="test")]
    _, notes, _ = preflight.fit(cases, unroll(load_recipe("default")))
    assert notes == ["nobody annotated or predicts tumor; trained without: student"]


def test_rows_that_will_be_set_aside_are_told(tmp_path):
    (tmp_path / "here.nii.gz").touch()
    rows = [
        "case,image,label,dataset,annotated",
        "fine,here.nii.gz,,flare22,",
        "gone,gone.nii.gz,,flare22,",
        "unlabeled,here.nii.gz,lost.nii.gz,flare22,",
        "misspelt,here.nii.gz,here.nii.gz,flare22,livr",
        "elsewhere,here.nii.gz,,flare99,",
    ]
    (tmp_path / "cases.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    told = "\n".join(preflight.warnings(*load_cases(tmp_path / "cases.csv"), FLARE))
    assert "1 row set aside: dataset_unknown, as elsewhere: " in told
    assert "no such image: gone; first: " in told and "no such label: unlabeled; first: " in told
    assert "annotated or surgery names no class: misspelt; known: liver, " in told
    assert "fine" not in told


def test_a_type_may_be_written_in_any_notation():
    recipe = load_recipe("default")
    teachers = {name: spec.model_copy(update={"cases": ("type: 1-13",)}) for name, spec in recipe.models.items()}
    recipe = recipe.model_copy(update={"models": recipe.models | {"teacher": teachers["teacher"]}})
    cases = [case(0, "organs"), case(1, "tumor")]
    _, notes, problems = preflight.fit(cases, recipe)
    assert not notes and not problems
    assert preflight.group_sizes(cases, recipe)["type: 1-13"] == 1


def test_predictions_alone_know_what_the_predictors_know():
    recipe = load_recipe("default")
    alone = recipe.labels["pseudo"].model_copy(update={"fuse": "predictions_only"})
    recipe = recipe.model_copy(update={"labels": {"pseudo": alone}})
    _, notes, _ = preflight.fit([case(0, "organs"), case(1, "tumor")], recipe)
    assert notes == ["nobody annotated or predicts tumor; trained without: student"]


def test_groups_are_counted_over_train_cases():
    cases = [case(0, "organs"), case(1, "tumor"), case(2), case(3, "organs", role="test")]
    assert preflight.group_sizes(cases, load_recipe("default"))["organs_full"] == 1
