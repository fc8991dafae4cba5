"""Where organs lie: in a body's own units, against each other, whatever a few patients are like."""

import numpy as np
import pytest

from labelloop.images.volume import Geometry
from labelloop.labels.facts import LabelFacts
from labelloop.labels.position import BODY, LARGEST_Z, LEAST_CASES, MEASURES, Positions, body_frame, places

CLASSES = ("liver", "spleen", "stomach", "pancreas", "gallbladder")
AT = {"liver": (0, 0, 0.3), "spleen": (0, -0.1, -0.4), "stomach": (0, 0.1, -0.2), "pancreas": (-0.1, 0, 0)}
AT |= {"gallbladder": (-0.15, 0.2, 0.2)}


def patient(number, moved=(), missing=()):
    """Measures of one patient: all organs up or down by as much as the table goes, each a little on its own."""
    random = np.random.default_rng(number)
    up, large = random.uniform(-1, 1), random.normal(0, 0.1)
    found = {BODY: np.array([np.nan, 0.0, 0.0, *[np.nan] * 4])}
    for name in CLASSES:
        center = np.add(AT[name], random.normal(0, 0.02, 3)) + np.array([up, 0, 0])
        found[name] = np.array([*center, *random.normal(-1, 0.1, 3), large + random.normal(-5, 0.1)])
    for name, measure, by in moved:
        found[name][MEASURES.index(measure)] += by
    return {name: values for name, values in found.items() if name not in missing}


def cases(number=30, **kinds):
    return {f"case{i}": kinds.get(f"case{i}") or patient(i) for i in range(number)}


def largest(scores):
    return max(abs(z) for z in scores.values())


def test_usual_patients_are_usual_however_high_they_lie_in_the_scan():
    found = Positions(cases(), CLASSES)
    scores = [largest(found.z_scores(patient(100 + i))[name]) for i in range(20) for name in CLASSES]
    assert np.median(scores) < 2.5
    assert max(scores) < LARGEST_Z


@pytest.mark.parametrize(("measure", "by"), [("z", 0.3), ("y", -0.3), ("x", 0.4), ("width", 1.0), ("volume", -1.0)])
def test_what_is_unusual_shows_in_its_own_class_and_measure(measure, by):
    scores = Positions(cases(), CLASSES).z_scores(patient(100, [("spleen", measure, by)]))
    assert np.sign(by) * scores["spleen"][measure] > 4
    assert all(largest(scores[name]) < 4 for name in CLASSES if name != "spleen")


def test_a_few_sick_and_operated_people_change_little():
    sick = {f"case{i}": patient(i, [("spleen", "volume", 2.0), ("liver", "z", 1.0)]) for i in range(3)}
    operated = {f"case{i}": patient(i, missing=("gallbladder",)) for i in range(3, 7)}
    plain, mixed = Positions(cases(), CLASSES), Positions(cases(**sick, **operated), CLASSES)
    for number in range(100, 110):
        one, other = plain.z_scores(patient(number)), mixed.z_scores(patient(number))
        assert all(abs(one[n][m] - other[n][m]) < 1.5 for n in CLASSES for m in MEASURES)
    assert mixed.z_scores(patient(100, missing=("gallbladder",)))["liver"]["z"] == pytest.approx(
        plain.z_scores(patient(100))["liver"]["z"], abs=1.5
    )


def test_what_was_not_measured_or_seen_too_seldom_is_unknown():
    scores = Positions(cases(), CLASSES).z_scores(patient(100, missing=("spleen",)))
    assert np.isnan(list(scores["spleen"].values())).all()
    assert np.isfinite(list(scores["liver"].values())).all()
    few = {f"case{i}": patient(i, missing=("spleen",)) for i in range(30 - LEAST_CASES + 1)}
    scores = Positions(cases(**few), CLASSES).z_scores(patient(100))
    assert np.isnan(list(scores["spleen"].values())).all()
    assert np.isfinite(list(scores["liver"].values())).all()
    nobody = Positions({}, CLASSES).z_scores(patient(100))
    assert np.isnan([z for row in nobody.values() for z in row.values()]).all()


def test_a_case_is_judged_without_itself():
    known = cases(LEAST_CASES)
    odd = patient(0, [("spleen", "z", 0.5)])
    found = Positions(known | {"case0": odd}, CLASSES)
    assert np.isnan(found.z_scores(odd, without=["case0"])["liver"]["z"])
    found = Positions(cases(20) | {"case0": odd}, CLASSES)
    alone = Positions({case: one for case, one in cases(20).items() if case != "case0"}, CLASSES)
    assert found.z_scores(odd, without=["case0", "of nobody"]) == alone.z_scores(odd)
    assert found.z_scores(odd) != alone.z_scores(odd)


def test_a_class_may_be_called_body():
    def renamed(found):
        return {name if name != "liver" else "body": values for name, values in found.items()}

    classes = ("body", *CLASSES[1:])
    known = {case: renamed(found) for case, found in cases().items()}
    found = Positions(known, classes).z_scores(renamed(patient(100)))["body"]
    assert found == Positions(cases(), CLASSES).z_scores(patient(100))["liver"]


def test_the_body_gives_the_unit_and_the_middle(anatomy, scheme):
    frame = body_frame(anatomy.image, anatomy.geometry, "CT")
    assert frame.size_mm == pytest.approx(np.sqrt(np.pi * 42 * 56) * 3, rel=0.03)
    assert frame.middle_mm == pytest.approx((50 * 3, 65 * 3), abs=4)
    twice = Geometry(anatomy.geometry.size, (6.0, 6.0, 6.0), direction=anatomy.geometry.direction)
    small = places(LabelFacts(anatomy.labels, anatomy.geometry, scheme), frame)
    large = places(LabelFacts(anatomy.labels, twice, scheme), body_frame(anatomy.image, twice, "CT"))
    assert set(small) == set(large)
    for name in small:
        assert small[name] == pytest.approx(large[name], abs=0.05, nan_ok=True)


def test_what_the_field_of_view_cuts_is_not_measured(anatomy, scheme):
    found = places(LabelFacts(anatomy.labels, anatomy.geometry, scheme), None)
    assert "aorta" not in found
    assert "spleen" in found
    assert BODY not in found
    z, y, x = found["spleen"][:3] * 300
    assert (z, y, x) == pytest.approx((62 * 3, 35 * 3, 30 * 3), abs=1)
