import math

import numpy as np
import pandas as pd
import pytest

from labelloop.base.classes import IGNORED, load_classes
from labelloop.images.volume import Geometry, Volume
from labelloop.metrics.lesions import detection, in_words, lesion_rows, match_lesions

SPACING = (5.0, 1.0, 2.0)  # one voxel is 0.01 ml
GRID = Geometry((30, 30, 30), SPACING[::-1])
FLARE = load_classes("flare")


def boxes(*corners, size=4, shape=(30, 30, 30)):
    mask = np.zeros(shape, bool)
    for z, y, x in corners:
        mask[z : z + size, y : y + size, x : x + size] = True
    return mask


def test_found_missed_and_false_positive():
    match = match_lesions(boxes((0, 0, 0), (20, 20, 20)), boxes((0, 0, 1), (10, 10, 10)), SPACING)
    assert (match.detected, match.missed, match.false_positives) == (1, 1, 1)
    assert match.dsc == (pytest.approx(0.75),)
    assert match.missed_ml == match.false_positive_ml == pytest.approx(0.64)


def test_components_touching_at_a_corner_are_one_lesion():
    assert match_lesions(boxes((0, 0, 0), (4, 4, 4)), boxes(), SPACING).missed == 1


def test_matching_is_one_to_one():
    two = boxes((0, 0, 0), (0, 0, 5))
    joined = two | boxes((0, 0, 2))
    match = match_lesions(two, joined, SPACING)
    assert (match.detected, match.missed, match.false_positives) == (1, 1, 0)
    match = match_lesions(joined, two, SPACING)
    assert (match.detected, match.missed, match.false_positives) == (1, 0, 1)


def test_a_small_overlap_is_no_match():
    truth, prediction = boxes((0, 0, 0)), boxes((3, 0, 0))  # IoU 16 / 112
    assert match_lesions(truth, prediction, SPACING, min_iou=0.14).detected == 1
    match = match_lesions(truth, prediction, SPACING, min_iou=0.15)
    assert (match.detected, match.missed, match.false_positives) == (0, 1, 1)


def test_lesions_agree_with_brute_force_on_noise():
    rng = np.random.default_rng(0)
    truth, prediction = (rng.random((20, 20, 20)) > 0.98 for _ in range(2))
    match = match_lesions(truth, truth, SPACING)
    assert match.missed == match.false_positives == 0 and set(match.dsc) == {1.0}
    match = match_lesions(truth, prediction, SPACING)
    assert match.detected + match.missed == match_lesions(truth, boxes(shape=truth.shape), SPACING).missed


def table(*cases):
    """Lesions table of (truth, prediction) masks, in ids of the FLARE classes."""
    rows = []
    for number, masks in enumerate(cases):
        volumes = [Volume(mask * np.uint8(FLARE.ids["tumor"]), GRID) for mask in masks]
        rows += [{"case": str(number), **row} for row in lesion_rows(*volumes, FLARE)]
    return pd.DataFrame(rows)


def test_detection_pools_cases_and_counts_false_alarms_on_tumor_free_scans():
    found, both = boxes((0, 0, 0)), boxes((0, 0, 0), (20, 20, 20))
    lesions = table(
        (both, boxes((0, 0, 0), (10, 10, 10))),
        (boxes(), boxes((0, 0, 0), (9, 9, 9))),
        (boxes(), boxes()),
        (found, found),
    )
    result = detection(lesions)
    assert (result["cases"], result["lesions"], result["detected"], result["false_positives"]) == (4, 3, 2, 3)
    assert (result["sensitivity"], result["precision"], result["dsc"]) == (pytest.approx(2 / 3), 0.4, 1)
    assert result["f1"] == pytest.approx(4 / 8)
    assert (result["free_scans"], result["free_scans_with_finding"], result["false_positive_rate"]) == (2, 1, 0.5)
    assert (result["findings_per_free_scan"], result["ml_per_free_scan"]) == (1, pytest.approx(0.64))
    said = in_words(lesions)
    assert "tumor: 2 of 3 lesions found (sensitivity 66.7 %), 3 false findings" in said
    assert "tumor: 1 of 2 tumor-free scans with a false finding (50.0 %), 1.00 findings and 0.64 ml a scan" in said


def test_only_tumors_that_somebody_looked_for_are_scored():
    volume = Volume(boxes((0, 0, 0)) * np.uint8(FLARE.ids["tumor"]), GRID)
    assert [row["class"] for row in lesion_rows(volume, volume, FLARE)] == ["tumor"]
    for states in ({"tumor": "unknown"}, {"liver": "present"}):
        assert lesion_rows(volume, volume, FLARE, states) == []
    assert lesion_rows(volume, volume, FLARE, {"tumor": "absent"})[0]["detected"] == 1


def test_lesions_do_not_depend_on_how_the_volume_is_stored():
    truth, prediction = boxes((0, 0, 0), (20, 20, 20)), boxes((0, 0, 1), (10, 10, 10))
    far = tuple((n - 1) * spacing for n, spacing in zip(GRID.size, GRID.spacing, strict=True))
    stored = Geometry(GRID.size, GRID.spacing, (far[0], far[1], 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    value = np.uint8(FLARE.ids["tumor"])
    turned = [Volume(prediction[:, ::-1, ::-1] * value, stored), Volume(prediction * value, GRID)]
    rows = [lesion_rows(Volume(truth * value, GRID), volume, FLARE) for volume in turned]
    assert rows[0] == rows[1] and rows[0][0]["detected"] == 1


def test_what_has_no_denominator_is_nan():
    result = detection(table((boxes(), boxes())))
    assert all(math.isnan(result[k]) for k in ("sensitivity", "precision", "f1", "dsc"))
    assert result["false_positive_rate"] == 0
    missed = table((boxes((0, 0, 0)), boxes()))
    assert math.isnan(detection(missed)["false_positive_rate"])
    assert in_words(missed).splitlines() == [
        "tumor: 0 of 1 lesions found (sensitivity 0.0 %), 0 false findings (precision –, F1 0.0 %)",
        "tumor: no tumor-free scan to count false alarms on",
    ]


def test_wrong_arguments():
    with pytest.raises(ValueError):
        match_lesions(boxes(), boxes(shape=(3, 3, 3)), SPACING)
    with pytest.raises(ValueError):
        match_lesions(boxes(), boxes(), SPACING, min_iou=0)


def test_a_finding_beside_ignored_voxels_that_meets_no_lesion_is_no_false_one():
    truth = np.where(boxes((0, 0, 0)), FLARE.ids["tumor"], 0).astype(np.uint8)
    truth[20:26] = IGNORED
    findings = [(0, 0, 0), (18, 4, 4), (21, 20, 20), (10, 10, 10)]  # one reaches into, one lies in ignored voxels
    prediction = np.where(boxes(*findings), FLARE.ids["tumor"], 0).astype(np.uint8)
    (row,) = lesion_rows(Volume(truth, GRID), Volume(prediction, GRID), FLARE)
    assert (row["lesions"], row["detected"], row["false_positives"]) == (1, 1, 1)
    truth[truth == FLARE.ids["tumor"]] = 0
    assert lesion_rows(Volume(truth, GRID), Volume(prediction, GRID), FLARE) == []  # nobody knows if there is a tumor
