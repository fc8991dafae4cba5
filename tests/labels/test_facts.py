"""What is measured on label maps, against its definition."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from labelloop.images.volume import Geometry
from labelloop.labels import facts as measured
from labelloop.labels.facts import LabelFacts

SPACING = (1.4, 1.4, 3.0)


def speckled(scheme, parts, seed=0):
    """A liver and many small tumors, some beside it, some far."""
    random, labels = np.random.default_rng(seed), np.zeros((20, 60, 60), np.uint8)
    labels[8:12, 5:20, 5:20] = scheme.ids["liver"]
    for _ in range(parts):
        z, y, x = (int(random.integers(n - 2)) for n in labels.shape)
        labels[z : z + 2, y : y + 2, x] = scheme.ids["tumor"]
    return LabelFacts(labels, Geometry(labels.shape[::-1], SPACING), scheme)


@pytest.mark.parametrize("reach", [3.0, 20.0, 60.0])
def test_each_part_is_as_far_as_its_nearest_voxel(scheme, reach):
    facts = speckled(scheme, 25)
    parts = facts.components("tumor")
    found = facts.distances_mm(parts, parts.by_size, ("liver",), reach)
    liver = np.argwhere(facts.labels == scheme.ids["liver"]) * facts.spacing
    first = [side.start for side in parts.box]
    assert list(found) == parts.by_size
    for number, mm in found.items():
        least = cdist((np.argwhere(parts.labels == number) + first) * facts.spacing, liver).min()
        assert mm == (pytest.approx(least, rel=1e-5) if least <= reach else np.inf)


@pytest.mark.parametrize(
    ("slice_mm", "left_out", "cut"), [(9, 1, True), (9, 2, False), (6.01, 1, True), (2, 3, True), (2, 4, False)]
)
def test_an_outermost_slice_that_annotators_left_out_is_a_cut_however_thick_it_is(scheme, slice_mm, left_out, cut):
    labels = np.zeros((12, 8, 8), np.uint8)
    labels[4 : 12 - left_out, 3:5, 3:5] = scheme.ids["aorta"]
    facts = LabelFacts(labels, Geometry(labels.shape[::-1], (1.0, 1.0, float(slice_mm))), scheme)
    assert facts.cut("aorta") is cut


def test_thousands_of_parts_take_no_longer_than_a_few(scheme, monkeypatch):
    """A label of speckles, as of an early model, once took a map's distances for each of them."""
    facts, transform, asked = speckled(scheme, 1500), measured.edt.edt, []
    monkeypatch.setattr(measured.edt, "edt", lambda *a, **k: asked.append(a) or transform(*a, **k))
    parts = facts.components("tumor")
    assert len(parts.voxels) > 300
    facts.distances_mm(parts, parts.by_size, ("liver",), 60.0)
    assert len(asked) <= 3
