import math

import numpy as np
import pytest

from labelloop.metrics.lesions import detection, match_lesions

SPACING = (5.0, 1.0, 2.0)  # one voxel is 0.01 ml


def boxes(*corners, size=4, shape=(30, 30, 30)):
    mask = np.zeros(shape, bool)
    for z, y, x in corners:
        mask[z : z + size, y : y + size, x : x + size] = True
    return mask


def test_found_missed_and_false_positive():
    match = match_lesions(boxes((0, 0, 0), (20, 20, 20)), boxes((0, 0, 1), (10, 10, 10)), SPACING)
    assert (match.found, match.missed, match.false_positive) == (1, 1, 1)
    assert match.dsc == (pytest.approx(0.75),)
    assert match.volume_missed_ml == match.volume_false_positive_ml == pytest.approx(0.64)


def test_components_touching_at_a_corner_are_one_lesion():
    assert match_lesions(boxes((0, 0, 0), (4, 4, 4)), boxes(), SPACING).missed == 1


def test_matching_is_one_to_one():
    two = boxes((0, 0, 0), (0, 0, 5))
    joined = two | boxes((0, 0, 2))
    match = match_lesions(two, joined, SPACING)
    assert (match.found, match.missed, match.false_positive) == (1, 1, 0)
    match = match_lesions(joined, two, SPACING)
    assert (match.found, match.missed, match.false_positive) == (1, 0, 1)


def test_a_small_overlap_is_no_match():
    truth, prediction = boxes((0, 0, 0)), boxes((3, 0, 0))  # IoU 16 / 112
    assert match_lesions(truth, prediction, SPACING, min_iou=0.14).found == 1
    match = match_lesions(truth, prediction, SPACING, min_iou=0.15)
    assert (match.found, match.missed, match.false_positive) == (0, 1, 1)


def test_small_findings_can_be_ignored_but_small_lesions_never():
    tiny = boxes((5, 5, 5), size=1)
    assert match_lesions(boxes(), tiny, SPACING, min_volume_ml=0.02).false_positive == 0
    assert match_lesions(boxes(), tiny, SPACING, min_volume_ml=0.01).false_positive == 1
    assert match_lesions(tiny, boxes(), SPACING, min_volume_ml=0.02).missed == 1


def test_lesions_agree_with_brute_force_on_noise():
    rng = np.random.default_rng(0)
    truth, prediction = (rng.random((20, 20, 20)) > 0.98 for _ in range(2))
    match = match_lesions(truth, truth, SPACING)
    assert match.missed == match.false_positive == 0 and set(match.dsc) == {1.0}
    match = match_lesions(truth, prediction, SPACING)
    assert match.found + match.missed == match_lesions(truth, boxes(shape=truth.shape), SPACING).missed


def test_detection_pools_cases_and_counts_false_alarms_on_tumor_free_scans():
    cases = [
        match_lesions(boxes((0, 0, 0), (20, 20, 20)), boxes((0, 0, 0), (10, 10, 10)), SPACING),
        match_lesions(boxes(), boxes((0, 0, 0), (9, 9, 9)), SPACING),
        match_lesions(boxes(), boxes(), SPACING),
    ]
    result = detection(cases)
    assert (result["lesions"], result["sensitivity"], result["precision"]) == (2, 0.5, 0.25)
    assert result["f1"] == pytest.approx(2 / 6) and result["dsc"] == 1
    assert (result["tumor_free_scans"], result["false_positive_rate"]) == (2, 0.5)
    assert result["false_positive_ml"] == pytest.approx(0.64)


def test_what_has_no_denominator_is_nan():
    result = detection([])
    assert all(math.isnan(result[k]) for k in ("sensitivity", "precision", "f1", "dsc", "false_positive_rate"))


def test_wrong_arguments():
    with pytest.raises(ValueError):
        match_lesions(boxes(), boxes(shape=(3, 3, 3)), SPACING)
    with pytest.raises(ValueError):
        match_lesions(boxes(), boxes(), SPACING, min_iou=0)
