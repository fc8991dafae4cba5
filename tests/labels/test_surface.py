"""What the surface of a label shows: areas, patches, and intensities on both sides."""

import numpy as np
import pytest

from labelloop.images.volume import Geometry
from labelloop.labels.check import check
from labelloop.labels.facts import LabelFacts
from labelloop.labels.surface import LEAST_VOXELS, Surfaces

SIZE, LOW, HIGH = 40, 12, 28


def cube(scheme, spacing=(2.0, 2.0, 2.0), inside=100, outside=0):
    """Surfaces of a liver that is a cube of 16 voxels (32 mm at 2 mm), in an image with a step at its surface."""
    labels = np.zeros((SIZE,) * 3, np.uint8)
    labels[LOW:HIGH, LOW:HIGH, LOW:HIGH] = scheme.ids["liver"]
    image = np.where(labels > 0, inside, outside).astype(np.int16)
    geometry = Geometry(labels.shape[::-1], spacing)
    return Surfaces(LabelFacts(labels, geometry, scheme), image)


def test_area_and_intensities_of_a_cube(scheme):
    surface = cube(scheme).of("liver")
    assert surface.areas.sum() == pytest.approx(6 * 3.2**2)
    assert surface.inner == pytest.approx(100)
    assert surface.outer == pytest.approx(0, abs=0.1)
    assert surface.free == pytest.approx(1)
    assert (surface.middle, surface.spread) == pytest.approx((100, 0))


def test_fine_voxels_are_joined_and_measure_the_same(scheme):
    fine, coarse = cube(scheme, (1.0, 1.0, 1.0)), cube(scheme, (2.0, 2.0, 2.0))
    assert fine.spacing == pytest.approx(coarse.spacing)
    assert fine.of("liver").areas.sum() == pytest.approx(coarse.of("liver").areas.sum() / 4)


def test_patches_are_connected_and_flat_ones_lie_in_one_plane(scheme):
    surface = cube(scheme).of("liver")
    below, above = (
        surface.places[:, 0] == surface.places[:, 0].min(),
        surface.places[:, 0] == surface.places[:, 0].max(),
    )
    assert surface.largest_patch(below | above, flat=True).area == pytest.approx(3.2**2)
    assert surface.largest_patch(below).area > surface.largest_patch(below, flat=True).area  # edges look aside
    assert surface.largest_patch(below | above).area == pytest.approx(surface.largest_patch(below).area)
    assert surface.largest_patch(np.ones(len(surface.places), bool)).area == pytest.approx(6 * 3.2**2)
    assert surface.largest_patch(np.zeros(len(surface.places), bool)) == (0, None)


def test_where_the_volume_ends_there_is_no_surface(scheme):
    labels = np.zeros((16, SIZE, SIZE), np.uint8)
    labels[:, LOW:HIGH, LOW:HIGH] = scheme.ids["liver"]
    facts = LabelFacts(labels, Geometry(labels.shape[::-1], (2.0, 2.0, 2.0)), scheme)
    surface = Surfaces(facts, labels).of("liver")
    assert surface.areas[:, :2].sum() == 0
    assert surface.areas.sum() == pytest.approx(4 * 3.2**2)


def test_what_is_too_small_is_not_judged(scheme):
    labels = np.zeros((SIZE,) * 3, np.uint8)
    labels.flat[: LEAST_VOXELS - 1] = scheme.ids["liver"]
    geometry = Geometry(labels.shape[::-1], (2.0, 2.0, 2.0))
    rows = [row for row in check(labels, geometry, {}, scheme, labels) if row["rule"] == "contrast"]
    reasons = {row["reason"] for row in rows if row["class"] == "liver"}
    assert reasons == {"too small to tell its inside from its border"}


@pytest.mark.parametrize(
    ("modality", "scale", "air"),
    [("MR", 1, 0), ("MR", 40, 0), ("MR", 1, 1024), ("MR", 0.01, -2.5), ("CT", 1, 0)],
)
def test_mr_is_judged_by_its_own_scale(scheme, modality, scale, air):
    """A step of 30 at a median of 100 above air is a border, whatever unit and zero an MR has; one of 10 is none."""
    for outside, verdict in ((70, "pass"), (90, "fail")):
        surfaces = cube(scheme)
        labels = surfaces.labels
        image = np.where(labels > 0, 100, outside)
        image[:2] = 0
        rows = check(labels, Geometry(labels.shape[::-1], (2.0, 2.0, 2.0)), {}, scheme, image * scale + air, modality)
        rule = "contrast" if modality == "CT" else "contrast_mr"
        assert next(row["verdict"] for row in rows if (row["rule"], row["class"]) == (rule, "liver")) == verdict


@pytest.mark.filterwarnings("error")
def test_a_label_that_fills_its_image_has_an_inside_and_no_surface(scheme):
    labels = np.full((SIZE,) * 3, scheme.ids["liver"], np.uint8)
    image = np.random.default_rng(0).normal(100, 10, labels.shape).astype(np.float32)
    surface = Surfaces(LabelFacts(labels, Geometry(labels.shape[::-1], (2.0, 2.0, 2.0)), scheme), image).of("liver")
    assert len(surface.places) == 0
    assert surface.middle == pytest.approx(100, abs=1)
