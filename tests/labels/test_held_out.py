"""Held-out labels: labeled cases that no model learned from go the way of unlabeled ones, then their truth is read."""

import pytest
import yaml
from two_models import GRID, SCHEME, Loop, label_map

from labelloop.base.errors import UserError
from labelloop.images.volume import write
from labelloop.recipe import ancestors, load_recipe, unroll
from labelloop.training.split import order_by, validation_cases


@pytest.fixture
def loop(tmp_path):
    loop = Loop(tmp_path)
    loop.add("fair", label_map(10), label_map(5), label_map(5))
    loop.add("seen", label_map(10), label_map(10), label_map(10))
    loop.add("seen_by_one", label_map(10), label_map(10), label_map(10))
    loop.add("unlabeled", None, label_map(10), label_map(10))
    loop.learned = {"m": ["seen", "seen_by_one"], "n": ["seen"]}
    return loop


def test_only_labeled_cases_that_no_model_learned_from_are_asked(loop):
    assert set(loop.table({}).index.get_level_values("case")) == {"fair"}


def test_truth_that_reviewers_overruled_is_not_asked_and_what_they_called_right_is(loop):
    said = [("liver", "wrong", "unknown"), ("spleen", "right", "present")]
    loop.reviewed = [{"case": "fair", "class": name, "decision": d, "state": state} for name, d, state in said]
    assert set(loop.table({}).index) == {("fair", "spleen")}
    loop.reviewed[0]["state"] = ""  # it could not be used
    assert set(loop.table({}).index) == {("fair", "liver"), ("fair", "spleen")}


def test_data_sets_that_an_external_model_may_have_seen_are_not_asked(loop):
    assert set(loop.table({}, learned_from=["amos"]).index.get_level_values("case")) == {"fair"}
    assert not len(loop.table({}, learned_from=["phantom"]))
    assert set(loop.table({}, learned=[]).index.get_level_values("case")) == {"fair", "seen", "seen_by_one"}


def test_labels_of_another_sequence_take_the_place_of_predictions(loop):
    given = loop.carry(fair=label_map(10))
    assert loop.table({}, **given).loc[("fair", "liver"), "dsc"] == 1
    assert not len(loop.table({}, **loop.carry(fair=None)))


def test_other_scans_of_patients_that_a_model_learned_from_are_not_asked(loop):
    """Wherever the scan lies that was learned from: here one of the same shard, and one of another."""
    loop.patients = {"sibling": "seen", "second": "p", "elsewhere": "p"}
    for case in ("sibling", "second"):
        loop.add(case, label_map(10), label_map(10), label_map(10))
    loop.learned["n"].append("elsewhere")
    assert set(loop.table({}).index.get_level_values("case")) == {"fair"}


def test_whose_scan_it_is_stands_in_the_table_as_the_case_table_says_today(loop):
    loop.patients = {"second": "fair"}
    loop.add("second", label_map(10), label_map(10), label_map(10))
    assert set(loop.table({})["patient"]) == {"fair"}
    loop.rows[-1]["patient"] = "another"
    patients = loop.table({}).reset_index().groupby("case")["patient"].agg(set)
    assert patients.to_dict() == {"fair": {"fair"}, "second": {"another"}}


def test_the_pseudo_label_is_held_against_the_truth_not_the_truth_against_itself(loop):
    table = loop.table({})
    assert table.loc[("fair", "liver"), "dsc"] == pytest.approx(2 * 5 / 15)
    assert table.loc[("fair", "liver"), "pairwise_dice"] == 1
    assert table.loc[("fair", "spleen"), "dsc"] == 1
    assert set(table["decision"]) == {"accepted"}


def test_other_criteria_refuse_as_they_do_elsewhere_and_thresholds_and_ranks_do_not(loop):
    loop.add("doubtful", label_map(10), label_map(5), label_map(10))
    settings = {"min_pairwise_dice": 0.9, "target_dsc": 0.99, "keep_least_uncertain": 0}
    table = loop.table(settings)["decision"]
    assert table["doubtful", "liver"] == "demoted"
    assert table["doubtful", "spleen"] == table["fair", "liver"] == "accepted"


def test_what_held_out_labels_serve_to_predict_does_not_refuse_them(loop):
    assert set(loop.table({"min_quality": 0.9})["decision"]) == {"accepted"}


def test_unanimous_silence_about_an_organ_is_no_accepted_label(loop):
    loop.add("missed", label_map(10), label_map(10, 0), label_map(10, 0))
    row = loop.table({}).loc[("missed", "spleen")]
    assert (row["decision"], row["pairwise_dice"], row["dsc"]) == ("unknown", 1, 0)


def test_a_class_nobody_looked_for_is_not_asked_about(loop):
    loop.add("partial", label_map(10), label_map(10), label_map(10), spleen="unknown")
    assert ("partial", "spleen") not in loop.table({}).index


def test_an_organ_that_was_invented_counts_as_wrong(loop):
    loop.add("operated", label_map(10, 0), label_map(10), label_map(10), spleen="absent")
    row = loop.table({}).loc[("operated", "spleen")]
    assert (row["decision"], row["dsc"]) == ("accepted", 0)


def test_models_behind_a_label_set_are_all_that_it_descends_from():
    chain = unroll(load_recipe("default", rounds=2))
    assert ancestors(chain, "pseudo_round1") & set(chain.models) == {"teacher", "teacher_b"}
    assert ancestors(chain, "pseudo") & set(chain.models) == {"teacher", "teacher_b", "student_round1"}


def test_one_model_cannot_agree_with_itself(tmp_path):
    recipe = tmp_path / "alone.yaml"
    select = "{target_dsc: 0.8, min_pairwise_dice: null}"
    recipe.write_text(f"extends: default\nlabels: {{pseudo: {{predict: teacher, select: {select}}}}}\n")
    with pytest.raises(UserError, match=r"labels\.pseudo\.select\.target_dsc: .* two or more"):
        load_recipe(recipe)


def each_its_own(cases: list[str]) -> dict[str, str]:
    return {case: case for case in cases}


def test_models_of_one_validation_seed_hold_out_nested_cases():
    """So that cases are left that all of several models, or a model and what it descends from, hold out."""
    everyone = [f"case_{i}" for i in range(40)]
    for patients in (each_its_own(everyone), {case: f"patient_{i // 3}" for i, case in enumerate(everyone)}):
        whole = validation_cases(everyone, patients, 0.25, 0)
        for fewer in (everyone[::2], everyone[:7]):
            mine, others = validation_cases(fewer, patients, 0.25, 0), whole & set(fewer)
            assert mine <= others or others <= mine
        assert validation_cases(everyone, patients, 0.25, 1) != whole


def test_a_patient_is_held_out_whole_or_not_at_all():
    patients = {f"case_{i}": f"patient_{i % 7}" for i in range(40)}
    for seed in range(20):
        chosen = validation_cases(patients, patients, 0.25, seed)
        assert 10 <= len(chosen) <= 15
        assert not {patients[case] for case in chosen} & {patients[case] for case in set(patients) - chosen}


def test_a_collection_of_one_scan_a_patient_is_split_by_case():
    """By the order of the cases' own hashes, whatever the patients are called."""
    everyone = [f"case_{i}" for i in range(9)]
    named = {case: f"patient_{9 - i}" for i, case in enumerate(everyone)}
    chosen = validation_cases(everyone, named, 0.25, 3)
    assert chosen == set(sorted(everyone, key=lambda case: order_by(case, 3))[:2])
    assert chosen == validation_cases(everyone, each_its_own(everyone), 0.25, 3)


def test_somebody_is_left_to_learn_from_and_one_patient_is_not_held_out():
    assert validation_cases(["a", "b"], {"a": "p", "b": "p"}, 0.25, 0) == set()
    for seed in range(5):
        assert len(validation_cases(["a", "b"], {"a": "p", "b": "q"}, 0.9, seed)) == 1
    assert validation_cases(["a", "b"], {"a": "p", "b": "q"}, 0, 0) == set()


def test_what_the_truth_ignores_is_no_error_of_the_pseudo_label(loop, tmp_path):
    file, known = loop.results / "truth" / "fair.nii.gz", label_map(10)
    known[:, :, 7:12] = 99
    write(file, known, GRID)
    labels = {**{i: name for name, i in SCHEME.ids.items()}, 99: "ignore"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own", "modality": "CT", "labels": labels}))
    loop.rows[0]["dataset"] = str(tmp_path / "own.yaml")
    table = loop.table({})
    assert table.loc[("fair", "liver"), "dsc"] == table.loc[("fair", "spleen"), "dsc"] == 1
