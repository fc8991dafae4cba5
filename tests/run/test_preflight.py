"""What is told before any image is opened: rows that will be set aside, and models without cases or examples."""

import json

import pytest
import yaml

from labelloop.base.classes import load_classes
from labelloop.base.lookup import CONFIG
from labelloop.base.tables import TABLES
from labelloop.cases.table import Case, load_cases
from labelloop.recipe import Recipe, load_recipe, unroll
from labelloop.run import checks, preflight
from labelloop.run.expected import Expected
from labelloop.training.settings import cutmix_of

FLARE = load_classes("flare")


def case(number: int, annotated: str = "", role: str = "train") -> Case:
    label = f"/labels/{number}.nii.gz" if annotated else ""
    names = {"case": f"c{number}", "patient": f"c{number}", "image": f"/images/{number}.nii.gz", "label": label}
    return Case(**names, dataset="flare22", modality="CT", role=role, annotated=annotated)


def several(*annotated: str) -> list[Case]:
    return [case(i, names) for i, names in enumerate(annotated)]


def fitted(cases: list[Case], recipe: Recipe) -> tuple[Recipe, list[str], list[str]]:
    """Return the chain, what was taken from models, and what cannot be done."""
    expected = Expected(cases, unroll(recipe))
    notes = preflight.fit(expected)
    return expected.chain, notes, list(checks.of_cases(expected))


def fit(recipe: str, *annotated: str):
    return fitted(several(*annotated), load_recipe(recipe))


@pytest.mark.parametrize("recipe", ["default", "best", "merge_max", "progressive", "two_stage", "coarse_to_fine"])
def test_nothing_is_taken_where_everything_is_annotated(recipe):
    chain, notes, found = fit(recipe, *["all"] * 4, *["organs"] * 4, *["tumor"] * 4, "")
    assert chain == unroll(load_recipe(recipe))
    assert not notes and not found


def test_models_lose_the_classes_that_nobody_annotated_and_all_that_names_them():
    chain, notes, found = fit("best_demo", "organs", "organs", "")
    assert not found
    assert all(chain.scheme.select(model.classes) == FLARE.sets["organs"] for model in chain.models.values())
    trainers = [model.trainer for model in chain.models.values()]
    assert not any(cutmix_of(t) or t.favor or t.class_weights for t in trainers)
    assert len(notes) == 1 and notes[0].startswith(
        "nobody annotated or predicts tumor; trained without: teacher_seed1, "
    )


def test_a_student_knows_what_its_teacher_predicts():
    chain, notes, _ = fit("default", "organs", "liver;tumor", "")
    assert not notes and chain.models["student"].classes == ("all",)


def test_a_model_without_cases_is_a_problem_that_names_what_is_missing():
    most = [name for name in FLARE.sets["organs"] if name != "duodenum"]
    _, _, found = fit("default", ";".join(most), ";".join(most))
    assert len(found) == 2  # two teachers
    assert (
        "models.teacher.cases: none of 2 train cases is in organs_full; in no case is annotated: duodenum" in found[0]
    )


def test_test_cases_are_no_examples():
    cases = [case(0, "organs"), case(1, "all", role="test")]
    _, notes, _ = fitted(cases, load_recipe("default"))
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
    assert "2 rows doubtful: image_repeated, as unlabeled: " in told
    assert ": fine" not in told and "as fine" not in told


def test_a_type_may_be_written_in_any_notation():
    recipe = load_recipe("default")
    teachers = {name: spec.model_copy(update={"cases": ("type: 1-13",)}) for name, spec in recipe.models.items()}
    recipe = recipe.model_copy(update={"models": recipe.models | {"teacher": teachers["teacher"]}})
    cases = [case(0, "organs"), case(1, "tumor")]
    _, notes, found = fitted(cases, recipe)
    assert not notes and not found
    assert preflight.group_sizes(Expected(cases, recipe))["type: 1-13"] == 1


def test_predictions_alone_know_what_the_predictors_know():
    recipe = load_recipe("default")
    alone = recipe.labels["pseudo"].model_copy(update={"fuse": "predictions_only"})
    recipe = recipe.model_copy(update={"labels": {"pseudo": alone}})
    _, notes, _ = fitted(several("organs", "tumor"), recipe)
    assert notes == ["nobody annotated or predicts tumor; trained without: student"]


def test_where_predictions_alone_count_annotators_gave_nothing_to_validate_on_or_paste(tmp_path):
    student = {"trainer": {"kind": "partial", "export": "best", "cutmix": {"name": "liver"}}}
    for fuse, keys in (("truth_first", []), ("predictions_only", ["export", "cutmix"])):
        models, labels = {"student": student}, {"pseudo": {"fuse": fuse}}
        found = problems_of(tmp_path, several("organs", "organs"), models=models, labels=labels)
        assert [line.partition(":")[0].rpartition(".")[2] for line in found] == keys


def test_groups_are_counted_over_train_cases():
    cases = [case(0, "organs"), case(1, "tumor"), case(2), case(3, "organs", role="test")]
    assert preflight.group_sizes(Expected(cases, load_recipe("default")))["organs_full"] == 1


SMALL = {"extends": "default", "plans": {"fine": {"spacing_mm": [9, 9, 9], "patch": [16, 16, 16], "features": [4, 8]}}}


def problems_of(tmp_path, cases, **changes) -> list[str]:
    """Return the problems of a recipe: the default one on tiny nets, with models, labels or inference changed."""
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(SMALL | changes))  # JSON is YAML
    chain, _, found = fitted(cases, load_recipe(path))
    return [*found, *checks.of_files(chain)]


def supervised(**spec):
    return {"models": {"student": {"trainer": {"kind": "supervised"}, **spec}}}


def test_a_supervised_model_needs_a_case_in_which_all_its_classes_are_known(tmp_path):
    cases = several("organs", "organs", "tumor", "tumor")
    on_truth = supervised(labels="truth", init_from=None)
    assert problems_of(tmp_path, cases, **on_truth) == [
        "models.student.trainer.kind: supervised learns from cases in which all classes of the model are known, and of "
        "4 cases with labels truth in each, one is unknown. Take kind: partial, or fewer classes"
    ]
    assert problems_of(tmp_path, several("organs", "all", "all", "tumor"), **on_truth) == []
    assert problems_of(tmp_path, cases, **supervised()) == []  # teachers may add the organs to the cases of tumors


@pytest.mark.parametrize(
    ("recipe", "model", "instead"),
    [("default", "student", "kind: partial"), ("two_stage", "abdomen", "other cases")],
)
def test_a_case_with_all_classes_must_be_left_beside_those_kept_for_validation(tmp_path, recipe, model, instead):
    cases, told, path = [*several(*["liver;tumor"] * 4), case(4, "all")], set(), tmp_path / "mine.yaml"
    for seed in range(20):
        spec = {"labels": "truth", "cases": "all", "init_from": None, "validation_seed": seed}
        spec |= {"trainer": "supervised"} if recipe == "default" else {}
        path.write_text(json.dumps({"extends": recipe, "models": {model: spec}}))
        expected = Expected(cases, unroll(load_recipe(path)))
        found = [line for line in checks.of_cases(expected) if line.startswith(f"models.{model}.")]
        assert bool(found) is ("c4" in expected.split(model).validation)
        told |= set(found or [""])
    refused, taken = sorted(told, reverse=True)
    assert taken == "" and refused.endswith(
        " learns from cases in which all classes of the model are known, and all of these, 1 case, are of patients "
        f"that are kept for validation. Set validation_fraction: 0, label more, or take {instead}"
    )


def test_cross_supervision_with_partly_labeled_cases_as_unlabeled_needs_a_labeled_one(tmp_path):
    trainer = {"kind": "cross_pseudo", "partly_labeled": "unlabeled"}
    student = {"models": {"student": {"labels": "truth", "init_from": None, "trainer": trainer}}}
    (problem,) = problems_of(tmp_path, several("organs", "organs", "tumor", "tumor", ""), **student)
    assert problem == (
        "models.student.trainer.partly_labeled: cross_pseudo learns from cases in which all classes of the model are "
        "known, and of 4 cases with labels truth in each, one is unknown. Take partly_labeled: labeled, or fewer "
        "classes"
    )
    assert problems_of(tmp_path, several("organs", "all", "all", "tumor", ""), **student) == []
    trainer["partly_labeled"] = "labeled"
    assert problems_of(tmp_path, several("organs", "organs", "tumor", "tumor", ""), **student) == []


def test_what_a_label_set_leaves_out_cannot_be_learned_from_it(tmp_path):
    cases = several("organs", "organs", "all", "all")
    _, notes, _ = fitted(cases, load_recipe("default"))
    assert notes == []
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(SMALL | {"labels": {"pseudo": {"classes": "organs"}}}))
    chain, notes, _ = fitted(cases, load_recipe(path))
    assert notes == ["nobody annotated or predicts tumor; trained without: student"]
    assert chain.models["student"].classes == ("organs",)


def test_a_model_whose_cases_are_none_of_its_label_set_is_a_problem(tmp_path):
    changes = {"models": {"student": {"cases": "tumor"}}, "labels": {"pseudo": {"cases": "no_tumor"}}}
    (problem,) = problems_of(tmp_path, several("organs", "organs", "tumor"), **changes)
    assert "models.student.cases: none of the 1 train cases in tumor gets a label of its classes in pseudo" in problem


def test_the_best_weights_need_somebody_to_be_validated_on(tmp_path):
    best = {"models": {name: {"trainer": {"export": "best"}} for name in ("teacher", "teacher_b")}}
    (first, second) = problems_of(tmp_path, several("organs", "tumor", ""), **best)
    assert first.startswith("models.teacher.trainer.export: best needs a validation case, and none of 1 can be one")
    assert second.startswith("models.teacher_b.")
    assert problems_of(tmp_path, several("organs", "organs", "tumor", ""), **best) == []


def test_a_student_is_not_validated_on_what_its_teacher_learned_from(tmp_path):
    student, cases = {"trainer": {"export": "best"}}, several("organs", "organs", "")
    assert problems_of(tmp_path, cases, models={"student": student}) == []
    whole = {"teacher": {"validation_fraction": 0}, "student": student}
    (problem,) = problems_of(tmp_path, cases, models=whole)
    assert problem.startswith("models.student.trainer.export: best needs a validation case, and none of 3 can be one")
    assert problem.endswith("validation_fraction above 0 for all of these models")


def test_a_promised_dsc_needs_patients_that_nobody_learned_from(tmp_path):
    labels = {"pseudo": {"select": {"target_dsc": 0.8}}}
    everybody = {name: {"validation_fraction": 0} for name in ("teacher", "teacher_b")}
    (problem,) = problems_of(tmp_path, several("organs", "organs"), labels=labels, models=everybody)
    assert problem.startswith(
        "labels.pseudo.select.target_dsc: asks labeled patients that no model behind the label set"
    )
    assert problems_of(tmp_path, several("organs", "organs"), labels=labels) == []
    assert problems_of(tmp_path, several("organs", "tumor"), labels=labels, models=everybody) == []  # the second one


def test_batches_and_pasted_objects_need_cases(tmp_path):
    batches = {"min_cases": 3, "full": "tumor"}
    trainer = {"kind": "partial", "batches": batches, "cutmix": {"name": "tumor"}}
    student = {"labels": "truth", "init_from": None, "trainer": trainer}
    cases = several("organs", "organs", "liver;tumor", "")
    (few,) = problems_of(tmp_path, cases, models={"student": student})
    assert few.startswith("models.student.trainer.batches.min_cases: 3 cases annotated alike, and the most frequent")
    student["trainer"] = trainer | {"batches": batches | {"min_cases": 1, "full": "organs_full_no_tumor"}}
    assert problems_of(tmp_path, cases, models={"student": student}) == []
    (none,) = problems_of(tmp_path, several("organs", "liver;tumor"), models={"student": student | {"cases": "tumor"}})
    assert none == "models.student.trainer.batches.full: none of 1 case is in organs_full_no_tumor"
    pasted = {"labels": "pseudo", "init_from": None, "cases": "no_tumor", "classes": "all",
              "trainer": {"kind": "partial", "cutmix": {"name": "liver"}}}  # fmt: skip
    (nowhere,) = problems_of(tmp_path, several("spleen", "organs", "tumor"), models={
        "teacher": {"cases": "no_tumor", "trainer": "partial"},
        "teacher_b": {"cases": "no_tumor", "trainer": "partial"},
        "student": pasted | {"cases": "type:3"},
    })  # fmt: skip
    assert nowhere.startswith("models.student.trainer.cutmix: liver is annotated in none of its 1 case")


def test_a_translator_needs_both_looks_and_its_reference(tmp_path):
    recipe = load_recipe("ct_to_mr")
    ct, mr = [case(n, "organs") for n in range(3)], [mr_case(n, "t1w") for n in range(3, 6)]
    assert not [line for line in fitted([*ct, *mr], recipe)[2] if "learns from CT and MR" in line]
    (missing,) = [line for line in fitted(ct, recipe)[2] if "learns from CT and MR" in line]
    assert missing.endswith("no train case in them is MR")


def mr_case(number: int, sequence: str) -> Case:
    return case(number).model_copy(update={"modality": "MR", "sequence": sequence})


def test_a_slice_classifier_needs_ct_and_learns_from_nothing_else(tmp_path):
    recipe = load_recipe("two_stage")
    mr = [mr_case(n, "t1w").model_copy(update={"label": "/labels/mr.nii.gz", "annotated": "organs"}) for n in range(6)]
    (problem,) = [line for line in fitted(mr, recipe)[2] if line.startswith("models.abdomen.")]
    assert (
        problem
        == "models.abdomen.cases: a slice classifier learns from CT, and no train case in organs_full_no_tumor is CT"
    )
    ct = [case(n, "organs") for n in range(6, 12)]
    expected = Expected([*mr, *ct], unroll(recipe))
    assert not [line for line in checks.of_cases(expected) if line.startswith("models.abdomen.")]
    split = expected.split("abdomen")
    assert split.train | split.validation == {one.case for one in ct}


def test_labels_are_carried_from_a_sequence_that_there_is(tmp_path):
    one = {"pseudo": {"predict": ["teacher"], "select": {"min_pairwise_dice": None}}}
    cases = [*several("organs", "organs"), mr_case(2, "t1w"), mr_case(3, "t2w")]
    labels = {"pseudo": one["pseudo"] | {"transfer": {"source": "t1"}}}
    (problem,) = problems_of(tmp_path, cases, labels=labels)
    assert problem == "labels.pseudo.transfer.source: no train case is of the sequence 't1'; did you mean 't1w'?"
    labels = {"pseudo": one["pseudo"] | {"transfer": {"source": "t1w"}}}
    assert problems_of(tmp_path, cases, labels=labels) == []


def test_inference_no_longer_asks_for_a_class_that_its_models_lost(tmp_path):
    steps = [
        {"segment": "student", "merge": {"tumor": "union"}},
        {"clean": {"keep_largest": "tumor"}},
        {"clean": [{"remove_islands": "tumor", "below_ml": 1}, {"keep_largest": ["liver", "tumor"]}]},
        {"clean": {"remove_distant_islands": "all", "of": "tumor", "beyond_z_mm": 5}},
        {"compose": {"organs": "student", "tumor": "student"}},
    ]
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(SMALL | {"inference": steps}))
    recipe = unroll(load_recipe(path))
    chain, _, _ = fitted(several("organs", "organs"), recipe)
    told = [step.model_dump(exclude_defaults=True) for step in chain.inference]
    assert told == [
        {"segment": ("student",)},
        {"clean": ({"keep_largest": ("liver", "tumor")},)},
        {"compose": {"organs": "student"}},
    ]  # fmt: skip
    assert fitted(several("all", "all"), recipe)[0].inference == recipe.inference


def test_files_that_a_recipe_names_are_looked_into(tmp_path):
    (tmp_path / "fitted.yaml").write_text("classes: other\nsource: x\ncoverage: 0.9\nconfidence: 0.9\nthresholds: {}\n")
    table = tmp_path / "calibration.csv"
    table.write_text(
        ",".join(TABLES["calibration"])
        + "\n"
        + ",".join(
            {"class": "liver", "target_dsc": "0.7", "confidence": "0.9"}.get(c, "") for c in TABLES["calibration"]
        )
        + "\n"
    )
    scheme = yaml.safe_load((CONFIG / "classes" / "flare.yaml").read_text())
    scheme["rules"][0]["kind"] = "volum"
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(scheme))
    select = {"target_dsc": 0.8, "calibration": str(table)}
    labels = {"pseudo": {"thresholds": str(tmp_path / "fitted.yaml"), "select": select}}
    found = problems_of(tmp_path, several("organs", "organs"), classes="ours.yaml", labels=labels)
    assert [line.partition(": ")[0] for line in found] == [
        "classes", "labels.pseudo.thresholds", "labels.pseudo.select.calibration",
    ]  # fmt: skip
    assert "kind: 'volum' is none of" in found[0] and "'other'" in found[1] and "0.7" in found[2]


def test_predicted_quality_asks_labeled_patients_before_the_first_job(tmp_path):
    labels = {"pseudo": {"predict": ["teacher"], "select": {"min_pairwise_dice": None, "min_quality": 0.8}}}
    (problem,) = problems_of(tmp_path, several(*["organs"] * 9, ""), labels=labels)
    assert problem.startswith("labels.pseudo.select.min_quality: asks 10 labeled patients")
    assert "there are 9" in problem
    assert problems_of(tmp_path, several(*["organs"] * 10, ""), labels=labels) == []
    labels["pseudo"]["select"] = {"min_pairwise_dice": None, "target_dsc": 0.8, "score": "quality"}
    problems = problems_of(tmp_path, several(*["organs"] * 9, ""), labels=labels)
    assert any(line.startswith("labels.pseudo.select.score: asks 10 labeled patients") for line in problems)
