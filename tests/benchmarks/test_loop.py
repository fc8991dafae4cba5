"""``benchmarks/loop``: its arms are trained for as long as their control, its folds are fair, its numbers are right."""

import numpy as np
import pandas as pd
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.tables import TABLES, write_table
from labelloop.cases.table import Case
from labelloop.images.volume import Geometry, write
from labelloop.run.chain import updates

SEEDS = range(2)


@pytest.fixture(scope="module")
def loop(load_benchmark):
    return load_benchmark("loop")


@pytest.mark.parametrize("size", ["cpu", "gpu"])
@pytest.mark.parametrize("schedule", [0.05, 0.2, 0.25, 1.0])
def test_every_arm_takes_as_many_updates_as_the_control(loop, load, size, schedule):
    few = load(loop.recipe(loop.SIZES[size], SEEDS, schedule, loop.ARMS))
    all_known = load(loop.oracle_recipe(loop.SIZES[size], SEEDS, schedule))
    for seed in SEEDS:
        taken = {a: updates(few, loop.named(a, seed)) for a in loop.ARMS if a != loop.ORACLE}
        base = taken.pop("labels_only")
        assert 2 * base == updates(few, loop.named("control", seed))
        assert taken.pop("continued_long") == taken.pop("default_long") == 5 * base
        assert set(taken.values()) == {updates(all_known, loop.named(loop.ORACLE, seed))}
        assert {a for a in taken if few.models[loop.named(a, seed)].plan != "p"} == {"large"}


def test_without_agreement_and_without_anatomy_leave_out_that_alone(loop, load):
    labels = load(loop.recipe(loop.SIZES["tiny"], SEEDS)).labels
    whole, bold, loose = (labels[f"set_{arm}0"] for arm in ("default", "without_agreement", "without_anatomy"))
    assert bold.model_copy(update={"select": whole.select}) == whole != bold
    assert loose.model_copy(update={"check": "anatomy"}) == whole != loose
    assert not bold.select.min_pairwise_dice and whole.select.min_pairwise_dice


def test_the_student_has_a_control_and_a_ceiling_that_train_as_it_does(loop, load):
    truth = {"files": "truth/{case}.nii.gz", "dataset": "phantom"}
    few = load(loop.recipe(loop.SIZES["tiny"], SEEDS, 1.0, loop.FEW, truth))
    student, continued, ceiling = (few.models[f"{arm}_seed1"] for arm in ("default", "continued", "true_labels"))
    assert ceiling.model_copy(update={"labels": student.labels}) == student
    assert continued.model_copy(update={"labels": student.labels, "cases": student.cases}) == student
    assert continued.labels == "truth" and continued.cases == few.models["labels_only_seed1"].cases
    assert few.labels[ceiling.labels].predict == ("truth_files",)
    assert few.external["truth_files"].files == truth["files"]


def test_each_real_scan_is_tested_once_and_most_others_have_no_label(loop, tmp_path):
    grid = Geometry((8, 8, 8), (5.0, 5.0, 5.0))
    for number in range(16):
        write(tmp_path / f"s{number:02d}_0000.nii.gz", np.zeros(grid.shape, np.float32), grid)
        write(tmp_path / f"s{number:02d}.nii.gz", np.zeros(grid.shape, np.uint8), grid)
    folds = loop.btcv_folds(tmp_path)
    tested = [c.case for fold in folds for c in fold.cases if c.role == "test"]
    assert sorted(tested) == [f"s{number:02d}" for number in range(16)]
    for fold in folds:
        known = fold.known()
        assert sum(c.role == "train" and bool(c.label) for c in known) == 4 == sum(c.role == "test" for c in known)
        assert all(not c.annotated for c in known if not c.label)
        assert all(c.label for c in fold.cases)
    assert [sorted(fold.labeled) for fold in folds] != [sorted(folds[0].labeled)] * 4


def test_partly_labeled_cases_know_as_much_together_as_four_whole_ones(loop, tmp_path):
    fold = loop.phantom_fold(tmp_path, loop.SIZES["tiny"], loop.PARTLY, partly=True)
    known = [case for case in fold.known() if case.role == "train" and case.label]
    organs = [organ for case in known for organ in case.annotated.split(";")]
    assert len(known) == loop.PARTLY and all(organs.count(organ) == loop.LABELED for organ in loop.ORGANS)
    assert fold.name != loop.phantom_fold(tmp_path, loop.SIZES["tiny"], loop.PARTLY).name
    assert all(case.annotated.split(";") == list(loop.ORGANS) for case in fold.known() if case.role == "test")


def fake_scores(folder, name, shift, cases):
    rows = [(c, organ, 0.5 + n / 100 + shift) for n, c in enumerate(cases) for organ in ("liver", "spleen")]
    table = pd.DataFrame(rows, columns=["case", "class", "dsc"]).assign(nsd=0.5)
    empty = {column: np.nan for column in TABLES["scores"] if column not in table}
    write_table(folder / "evaluation" / f"{name}.csv", table.assign(**empty), "scores")


def test_the_report_names_what_is_missing_and_says_what_share_of_the_gap_is_closed(loop, tmp_path):
    cases = [f"c{n}" for n in range(8)]
    fold = loop.Fold("fold0", [], {})
    for seed in SEEDS:
        for arm, shift in (("labels_only", -0.1), ("control", 0.0), ("continued", 0.05), ("default", 0.1)):
            fake_scores(tmp_path / "fold0" / "results", loop.named(arm, seed), shift + seed / 1000, cases)
        fake_scores(tmp_path / "fold0_oracle" / "results", loop.named("oracle", seed), 0.2 + seed / 1000, cases)
    fake_scores(tmp_path / "fold0" / "results", loop.named("best", 0), 0, cases)  # its second seed is not finished
    lines = list(loop.report(tmp_path, [fold], SEEDS))
    assert lines[0].startswith("Not finished:") and "best" in lines[0] and "default" not in lines[0].split(",")
    (row,) = (line for line in lines if line.startswith("| default |"))
    assert "+10.0 (+10.0 to +10.0) | +5.0 (+5.0 to +5.0) | 50 % (50 to 50)" in row


def test_the_true_dsc_of_accepted_and_refused_labels(loop, tmp_path):
    grid, scheme = Geometry((8, 8, 8), (5.0, 5.0, 5.0)), load_classes("flare")
    truth = np.zeros(grid.shape, np.uint8)
    truth[:4], truth[4:] = scheme.ids["liver"], scheme.ids["spleen"]
    label = truth.copy()
    label[4:, :4] = 0
    write(tmp_path / "truth.nii.gz", truth, grid)
    folder = tmp_path / "fold0" / "results" / "labels" / "set_default0"
    write(folder / "a.nii.gz", label, grid)
    write(folder / "b.nii.gz", truth, grid)
    accepted, refused = ("present", "accepted", "", ""), ("unknown", "demoted", "agreement", "why")
    dropped = ("unknown", "dropped", "nothing_known;agreement", "why")
    write(folder / "c.nii.gz", label, grid)
    rows = [("a", "liver", *accepted), ("a", "spleen", *refused), ("b", "spleen", *accepted), ("c", "spleen", *dropped)]
    write_table(folder / "selected.csv", pd.DataFrame(rows, columns=list(TABLES["selected"])), "selected")
    image = str(tmp_path / "truth.nii.gz")
    cases = [
        Case(case=name, image=image, label=image, dataset="phantom", modality="CT", patient=name, role="train")
        for name in "abc"
    ]
    lines = list(loop.label_quality(tmp_path, [loop.Fold("fold0", cases, {})]))
    assert lines[-1] == "| default | 100.0 (2) | 66.7 (2) | +33.3 (1 class) |"


def test_with_the_arm_quality_no_model_learns_from_the_held_out(loop, load, load_benchmark):
    size = loop.SIZES["tiny"]
    few, asked = (load(loop.recipe(size, SEEDS, 1.0, arms)) for arms in (("default",), ("default", "quality")))
    assert not any(select.select.asks_quality for select in few.labels.values())
    assert asked.labels["set_quality0"].select.asks_quality
    assert {model.validation_fraction for model in asked.models.values()} == {load_benchmark("loop", "arms").HELD_OUT}


def test_arms_are_compared_with_the_one_that_was_named(loop, tmp_path):
    cases, fold = [f"c{n}" for n in range(8)], loop.Fold("phantom", [], {})
    for seed in SEEDS:
        for arm, shift in (("control", 0.0), ("default", 0.1), ("quality", 0.05)):
            fake_scores(tmp_path / "phantom" / "results", loop.named(arm, seed), shift, cases)
    lines = list(loop.report(tmp_path, [fold], SEEDS, ("control", "default", "quality"), ("default",)))
    cells = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    assert "against default" in cells["arm"]
    assert "-10.0 (-10.0 to -10.0)" in cells["control"] and "-5.0 (-5.0 to -5.0)" in cells["quality"]
