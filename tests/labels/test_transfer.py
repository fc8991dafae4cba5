"""Labels go to the sequences they fit: the kidneys decide."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny_body import GRID, IDS, draw, stored

from labelloop.base.classes import load_classes
from labelloop.base.errors import CaseError
from labelloop.base.tables import read_table, write_table
from labelloop.images.volume import Volume, canonical
from labelloop.labels.transfer import kidney_dsc, kidney_test, transfer
from labelloop.networks.settings import TransferSettings

FLARE = load_classes("flare")
MOVED = (8.0, -6.0, 0.0)


@pytest.fixture(scope="module")
def carried():
    """A patient whose delay phase shows the kidneys elsewhere: images, and what became of each sequence."""
    images = {
        "t1w": draw()[0],
        "arterial": stored(draw(MOVED, seed=1)[0], "RAS"),
        "delay": draw(MOVED, kidneys=(0, -22, 0), seed=2)[0],
        "in_phase": draw(seed=3, dark_kidneys=True)[0],
        "out_of_phase": draw(seed=4)[0],
    }
    return images, {t.sequence: t for t in transfer(images, draw()[1], FLARE)}


def test_aligned_kidneys_are_accepted_and_shifted_ones_refused(carried):
    _, result = carried
    assert {name: t.accepted for name, t in result.items()} == {
        "arterial": True, "delay": False, "in_phase": True, "out_of_phase": True
    }  # fmt: skip
    assert min(result["arterial"].dsc.values()) > 0.85 > max(result["delay"].dsc.values())


def test_labels_lie_on_the_sequence_as_it_is_stored(carried):
    images, result = carried
    truth = draw(MOVED)[1].array
    label = canonical(Volume(result["arterial"].label, images["arterial"].geometry)).array
    liver, expected = label == IDS["liver"], canonical(Volume(truth, GRID)).array == IDS["liver"]
    assert 2 * (liver & expected).sum() / (liver.sum() + expected.sum()) > 0.93


def test_out_of_phase_follows_in_phase(carried):
    _, result = carried
    assert result["out_of_phase"].transform == result["in_phase"].transform
    assert result["out_of_phase"].reason.startswith("as in_phase")


def test_every_decision_is_a_row(carried, tmp_path):
    images, result = carried
    rows = [t.row(f"p_{name}", "p_t1w", images[name]) for name, t in result.items()]
    write_table(tmp_path / "transfers.csv", pd.DataFrame(rows), "transfers")
    table = read_table(tmp_path / "transfers.csv", "transfers").set_index("sequence")
    assert table.decision.to_dict() == {n: "accepted" if t.accepted else "refused" for n, t in result.items()}
    assert table.translation_mm["arterial"] == pytest.approx(np.hypot(*MOVED[:2]), abs=2)


@pytest.mark.parametrize(
    ("sequence", "right", "left", "criterion"),
    [
        ("arterial", 0.86, 0.1, ""),
        ("arterial", 0.85, 0.85, "one_kidney"),
        ("t2w", 0.86, 0.81, ""),
        ("t2w", 0.86, 0.8, "both_kidneys"),
        ("dwi", 0.84, 0.84, "one_kidney"),
        ("in_phase", 0.99, 0.5, "both_kidneys"),
    ],
)
def test_limits_are_the_published_ones(sequence, right, left, criterion):
    dsc = {"right_kidney": right, "left_kidney": left}
    assert kidney_test(sequence, dsc, TransferSettings())[0] == criterion


def test_a_single_kidney_is_enough_and_none_is_not():
    assert not kidney_test("t2w", {"left_kidney": 0.9}, TransferSettings())[0]
    criterion, reason = kidney_test("t2w", {}, TransferSettings())
    assert criterion == "no_kidney" and "no kidney" in reason


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_score_falls_as_kidneys_move_away(axis):
    label = draw()[1]
    scores = []
    for mm in (0, 8, 20):
        shift = [0.0, 0.0, 0.0]
        shift[axis] = mm * (-1 if axis == 1 else 1)
        dsc = kidney_dsc(draw(kidneys=tuple(shift))[0], label, FLARE, "portal_venous")
        scores.append(max(dsc.values()))
    assert scores[0] > 0.95 and scores[0] > scores[1] > scores[2]


def test_without_a_source_nothing_can_be_carried():
    with pytest.raises(CaseError, match="t1w"):
        transfer({"t2w": draw()[0]}, draw()[1], FLARE)


@pytest.mark.slow
def test_a_sequence_that_cannot_be_registered_is_refused_alone():
    image, label = draw()
    far = Volume(image.array, replace(GRID, origin=(2000.0, 0.0, 0.0)))
    flat = Volume(np.full_like(image.array, 80), GRID)
    images = {"t1w": image, "arterial": far, "portal_venous": flat, "delay": draw(MOVED)[0]}
    result = {t.sequence: t for t in transfer(images, label, FLARE)}
    assert result["delay"].accepted
    assert not result["arterial"].accepted and "do not overlap" in result["arterial"].reason
    assert not result["portal_venous"].accepted and "fills its image" in result["portal_venous"].reason
    assert not result["portal_venous"].label.any()
