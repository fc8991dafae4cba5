"""``benchmarks/review buys``: the oracle answers by the truth, once, and the table names what is not finished."""

import numpy as np
import pytest

from labelloop.base.errors import UserError
from labelloop.base.paths import Paths
from labelloop.base.tables import TABLES, write_table
from labelloop.cases.table import Case
from labelloop.images.volume import read, write
from labelloop.review.decisions import Decision, append
from labelloop.review.decisions import read as read_decisions
from labelloop.run.chain import updates
from tiny_review import ASKED, GRID, SPLEEN, label_map, write_results


@pytest.fixture(scope="module")
def buys(load_benchmark):
    return load_benchmark("review").buys


@pytest.fixture
def fold(buys, tmp_path):
    """A fold whose models found the liver of ``a``, missed a part of its spleen, and saw one in ``b``."""
    labels, truth = label_map(), {"a": label_map(), "b": np.zeros(GRID.shape, np.uint8)}
    truth["a"][4:6, 2:6, 8:10] = SPLEEN
    images = {case: tmp_path / f"{case}_0000.nii.gz" for case in truth}
    cases = []
    for case, array in truth.items():
        write(images[case], np.arange(960).reshape(GRID.shape).astype(np.int16), GRID)
        write(tmp_path / f"{case}.nii.gz", array, GRID)
        files = {"image": str(images[case]), "label": str(tmp_path / f"{case}.nii.gz")}
        known = {"dataset": "phantom", "modality": "CT", "patient": case, "role": "train", "annotated": "liver;spleen"}
        cases.append(Case(case=case, **files, **known))
    name = buys.CONTROL.labels(0)
    root = write_results(tmp_path / "fold", images, dict.fromkeys(truth, (labels, GRID)), ASKED, labels=name)
    for kind in ("verdicts", "disagreement"):
        write_table(Paths(str(root)).label_table(kind, name), [dict.fromkeys(TABLES[kind], "")][:0], kind)
    return buys.Fold("fold", cases, frozenset())


def said(buys, tmp_path, arm) -> list[tuple[str, str, str]]:
    folder = tmp_path / "fold" / "results-reviews" / arm.labels(0)
    return [(one.case, one.name, one.decision) for one in read_decisions(folder)[0]]


def test_the_oracle_answers_by_the_truth_once_and_no_more_than_there_is(buys, fold, tmp_path):
    oracle, arm = buys.Oracle(fold, tmp_path / "fold"), buys.Arm(buys.QUEUE, 100)
    answers = [("a", "liver", "right"), ("a", "spleen", "edited"), ("b", "liver", "absent")]
    for _ in range(2):
        oracle.review(arm, 0)
        assert said(buys, tmp_path, arm) == answers
    folder = tmp_path / "fold" / "results-reviews" / arm.labels(0)
    edited = read_decisions(folder)[0][1]
    assert ((read(folder / edited.file).array == SPLEEN) == (read(tmp_path / "a.nii.gz").array == SPLEEN)).all()
    assert buys.work_of([fold], tmp_path, arm, range(1))[1] == (3 * buys.LOOK_S + buys.DRAW_S) / 60
    short, cheap = buys.Arm(buys.QUEUE, 2), buys.Arm(buys.QUEUE, 2, "wrong")
    oracle.review(short, 0)
    oracle.review(cheap, 0)
    assert said(buys, tmp_path, short) == answers[:2]
    assert said(buys, tmp_path, cheap) == [answers[0], ("a", "spleen", "wrong")]
    append(folder, [Decision("oracle", "b", "spleen", "wrong")])
    with pytest.raises(UserError, match="decisions about other labels"):
        oracle.review(arm, 0)


def test_random_labels_are_others_in_another_seed_and_the_first_of_one_order(buys, fold, tmp_path):
    oracle = buys.Oracle(fold, tmp_path / "fold")
    few, more = buys.Arm(buys.RANDOM, 3), buys.Arm(buys.RANDOM, 6)
    oracle.review(few, 0)
    oracle.review(more, 0)
    assert said(buys, tmp_path, few) == said(buys, tmp_path, more)[:3] and len(said(buys, tmp_path, more)) == 6


def test_every_arm_takes_as_many_updates_as_the_student_without_review(buys, load):
    recipe, arms = load(buys.fold_recipe(buys.SIZES["cpu"], range(2), buys.ARMS)), (buys.CONTROL, *buys.ARMS)
    assert len({updates(recipe, buys.named(arm.name, seed)) for arm in arms for seed in range(2)}) == 1


def test_the_table_names_what_is_missing_and_compares_with_no_review(buys, tmp_path):
    fold, paths = buys.Fold("fold", [], frozenset()), Paths(str(tmp_path / "fold" / "results"))
    for seed in range(2):
        for arm, dsc in ((buys.CONTROL, 0.5), (buys.MAIN[0], 0.6), (buys.MAIN[1], 0.7)):
            if (arm, seed) != (buys.MAIN[1], 1):  # its second seed is not finished
                rows = [{"case": case, "class": "liver", "dsc": dsc, "nsd": 0.5} for case in "abc"]
                empty = {column: np.nan for column in TABLES["scores"] if column not in rows[0]}
                write_table(paths.scores(buys.named(arm.name, seed)), [row | empty for row in rows], "scores")
    missing, _, *lines = buys.report([fold], tmp_path, range(2))
    assert missing.startswith("Not finished: ") and "queue_30" in missing and "queue_10," not in missing
    assert lines[2].startswith("| none | 0 |") and lines[3].startswith("| queue | 0 |") and len(lines) == 4
    assert "| 60.0 | +10.0 (+10.0 to +10.0) |" in lines[3]
