from itertools import combinations, pairwise

import numpy as np
import pytest

from labelloop.labels.agree import ALL, differing, disagreement

SHAPE = (6, 7, 8)


def dice(a, b):
    return 1.0 if not a.any() and not b.any() else 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("number", [2, 3, 4])
def test_equals_the_definition(scheme, number):
    random = np.random.default_rng(number)
    maps = [random.integers(0, 15, SHAPE, dtype=np.uint8) for _ in range(number)]
    rows = disagreement(maps, scheme, scheme.names)
    assert [r["class"] for r in rows] == [*scheme.names, ALL]
    for r in rows[:-1]:
        masks = [m == scheme.ids[r["class"]] for m in maps]
        assert r["pairwise_dice"] == pytest.approx(np.mean([dice(a, b) for a, b in combinations(masks, 2)]))
        steps = [(a ^ b).sum() / b.sum() for a, b in pairwise(masks)]
        assert r["uncertainty"] == pytest.approx(np.mean(steps))
        assert r["predictions"] == number
    organs = [np.where(m == scheme.ids["tumor"], 0, m) for m in maps]
    whole = [(a != b).sum() / (b > 0).sum() for a, b in pairwise(organs)]
    assert rows[-1]["uncertainty"] == pytest.approx(np.mean(whole))


def test_flare22_formula_for_three(scheme):
    """u = 1/2 (|A != B| / |B > 0| + |B != C| / |C > 0|), by hand."""
    a, b, c = (np.zeros((1, 1, 10), np.uint8) for _ in range(3))
    a[..., :4], b[..., :5], c[..., :8] = 1, 1, 1
    rows = disagreement([a, b, c], scheme, ["liver"])
    assert rows[-1]["uncertainty"] == pytest.approx((1 / 5 + 3 / 8) / 2)
    assert rows[0]["uncertainty"] == rows[-1]["uncertainty"]


def test_a_case_is_ranked_by_its_organs_and_a_tumor_by_itself(scheme):
    first, second = (np.zeros(SHAPE, np.uint8) for _ in range(2))
    first[:3], second[:2] = scheme.ids["liver"], scheme.ids["liver"]
    second[4], first[5] = scheme.ids["tumor"], scheme.ids["tumor"]
    found = {row["class"]: row["uncertainty"] for row in disagreement([first, second], scheme, ["liver", "tumor"])}
    assert found == {"liver": 1 / 2, "tumor": 2, ALL: 1 / 2}
    alone = disagreement([first, second], scheme, ["tumor"])
    assert alone[-1]["uncertainty"] == 2  # of tumors alone, the case is ranked by these


def test_empty_maps_and_single_predictions(scheme):
    empty, full = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 1, np.uint8)
    for row in disagreement([empty, empty], scheme, ["liver", "spleen"]):
        assert (row["pairwise_dice"], row["uncertainty"]) == (1.0, 0.0)
    liver = disagreement([full, empty], scheme, ["liver"])[0]
    assert (liver["pairwise_dice"], liver["uncertainty"]) == (0.0, full.size)
    one = disagreement([full], scheme, ["liver"])
    assert np.isnan([one[0]["pairwise_dice"], one[0]["uncertainty"]]).all()
    assert one[0]["predictions"] == 1
    assert disagreement([], scheme, ["liver"]) == []
    assert disagreement([full, empty], scheme, []) == []  # models that share no class


def test_only_the_given_classes_count(scheme):
    a, b = np.full(SHAPE, 3, np.uint8), np.full(SHAPE, 4, np.uint8)
    assert disagreement([a, b], scheme, ["liver"])[-1]["uncertainty"] == 0.0
    with pytest.raises(ValueError, match="differ in shape"):
        disagreement([a, b[1:]], scheme, ["liver"])


def test_predictions_differ_where_one_alone_has_a_class_that_both_know(scheme):
    random = np.random.default_rng(1)
    maps = [random.integers(0, 15, SHAPE, dtype=np.uint8) for _ in range(3)]
    known = [{1, 2, 3}, {2, 3, 4}, {2, 9}]
    expected = np.zeros(SHAPE, bool)
    for (a, of_a), (b, of_b) in combinations(zip(maps, known, strict=True), 2):
        for index in of_a & of_b & {2, 3, 4}:
            expected |= (a == index) != (b == index)
    assert np.array_equal(differing(maps, known, {2, 3, 4}), expected)
    assert not differing(maps, known, ()).any()
    assert not differing(maps[:1], known[:1], {1}).any()
