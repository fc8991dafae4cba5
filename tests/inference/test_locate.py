"""Parts of an image: in mm, wherever the file puts its axes, and back at the same place."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import RAS, random_volume, turned
from tiny_models import IDS, save_model, tiny_plan

from labelloop.images.volume import Geometry, Volume, canonical, to_image
from labelloop.inference.engine import Predictor
from labelloop.inference.locate import box_of_mask, box_of_slices, grown, height_mm, part_of, span
from labelloop.inference.postprocess import Chain, State
from labelloop.inference.prepare import Frame
from labelloop.inference.slices import SliceClassifier
from labelloop.inference.steps import Locate
from strategies import ORIENTATIONS, millimeters, orientations

SPACING = (4.0, 2.0, 2.0)
NEAR_LIVER = {"remove_distant_islands": "all", "of": "liver", "beyond_z_mm": 40}
HU = {"background": -100, "liver": 50, "spleen": 150, "tumor": 250}


class ByIntensity(torch.nn.Module):
    """A network that knows each class by its intensity."""

    def forward(self, x):
        targets = (torch.tensor(list(HU.values())) - 60) / 100  # as the plan normalizes
        return -((x - targets[None, :, None, None, None]) ** 2)


class BrightSlices(SliceClassifier):
    """A classifier that finds the slices with anything brighter than the background."""

    def __init__(self, plan):
        self.model = SimpleNamespace(plan=plan, name="bright", weights_sha256="")

    def find(self, prepared):
        return (prepared.array[0] > -1).any((1, 2))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, plan = tmp_path_factory.mktemp("models"), tiny_plan(spacing_mm=SPACING)
    found = {name: Predictor(save_model(folder / name, plan), "cpu") for name in ("coarse", "fine", "other")}
    for predictor in found.values():
        predictor.network = ByIntensity()
    return found | {"slices": BrightSlices(tiny_plan(spacing_mm=(3.0, 2.0, 2.0)))}


@pytest.fixture
def truth():
    """A canonical label map [z, y, x]: liver and a spleen beside it, a tumor inside and one far above."""
    labels = np.zeros((30, 24, 26), np.uint8)
    labels[8:14, 6:14, 5:12] = IDS["liver"]
    labels[10:12, 8:12, 15:20] = IDS["spleen"]
    labels[9:12, 8:11, 7:10] = IDS["tumor"]
    labels[24:26, 20:22, 20:22] = IDS["tumor"]
    return labels


def image_of(labels, spacing=SPACING):
    values = np.full(256, HU["background"], np.int16)
    for name, i in IDS.items():
        values[i] = HU[name]
    geometry = Geometry(labels.shape[::-1], spacing[::-1], (5.0, -7.0, 11.0), RAS)
    return Volume(values[labels], geometry)


def boxed(labels, *box):
    result = np.zeros_like(labels)
    where = tuple(slice(*part) for part in box)
    result[where] = labels[where]
    return result


@pytest.mark.parametrize(
    ("found", "gap", "expected"),
    [
        ("..##.#......#..", None, (2, 13)),  # Mao: all between the first and the last
        ("..##.#......#..", 20.0, (2, 6)),  # 6 planes of 4 mm between: not one part
        ("..##.#......#..", 24.0, (2, 13)),
        ("#....###", 8.0, (5, 8)),
        ("##..##", 4.0, (0, 2)),  # equally long: the lower
        ("......", None, None),
        ("#", 0.0, (0, 1)),
    ],
)
def test_span(found, gap, expected):
    assert span(np.array([c == "#" for c in found]), 4.0, gap) == expected


@given(spacing=st.tuples(*[millimeters(0.7, 8)] * 3), margin=millimeters(0, 33))
def test_margins_are_mm(spacing, margin):
    mask = np.zeros((200, 210, 220), bool)
    mask[90:100, 80:120, 100:101] = True
    box = box_of_mask(mask, spacing, Locate(locate="m", margin_mm=margin))
    for part, (start, stop), size in zip(box, ((90, 100), (80, 120), (100, 101)), spacing, strict=True):
        for extra in (start - part[0], part[1] - stop):
            assert margin - 1e-6 <= extra * size < margin + size + 1e-6
    only_z = box_of_mask(mask, spacing, Locate(locate="m", margin_mm=margin, axes="z"))
    assert only_z == (box[0], (0, 210), (0, 220))
    assert box_of_mask(mask & False, spacing, Locate(locate="m")) is None


def test_margins_end_at_the_image():
    assert grown((2, 5), 100.0, 5.0, 12) == (0, 12)


@given(stored_mm=millimeters(0.5, 6), network_mm=millimeters(1, 8))
def test_planes_of_the_network_become_slices_of_the_image(stored_mm, network_mm):
    geometry = Geometry((8, 8, 120), (2.0, 2.0, stored_mm), (0, 0, 0), RAS)
    frame = Frame(geometry, geometry, ((10, 110), (0, 8), (0, 8)), (network_mm, 2.0, 2.0))
    planes = frame.shape[0]
    found = np.zeros(planes, bool)
    found[planes // 3 : planes // 2] = True
    z, *rest = box_of_slices(found, frame, Locate(locate="m", margin_mm=7))
    assert rest == [(0, 8), (0, 8)]
    low, high = (10 + 100 * part / planes for part in (planes // 3, planes // 2))  # in slices of the image
    for extra in ((low - z[0]) * stored_mm, (z[1] - high) * stored_mm):
        assert 7 - 1e-6 <= extra < 7 + 2 * stored_mm


@given(orientation=orientations)
def test_a_part_lies_where_it_lay_in_the_patient(orientation, truth):
    whole = canonical(turned(image_of(truth), *orientation))
    part = part_of(whole, ((4, 9), (3, 20), (11, 13)))
    assert part.array.shape == part.geometry.shape == (5, 17, 2)
    images = [to_image(volume) for volume in (whole, part)]
    place = images[1].TransformIndexToPhysicalPoint((1, 5, 2))
    assert images[0].TransformPhysicalPointToIndex(place) == (1 + 11, 5 + 3, 2 + 4)
    assert images[0][12, 8, 6] == images[1][1, 5, 2]


@given(orientation=orientations)
def test_located_labels_land_where_they_belong(orientation, truth, models):
    volume = turned(image_of(truth), *orientation)
    steps = [{"locate": "coarse", "classes": ["liver", "spleen"], "margin_mm": 6}, {"segment": "fine"}]
    result = Chain(steps, models).predict(volume, "CT")
    expected = boxed(truth, (6, 16), (3, 17), (2, 23))  # two slices of 4 mm, three voxels of 2 mm
    np.testing.assert_array_equal(canonical(Volume(result.labels, volume.geometry)).array, expected)
    assert result.labels.shape == volume.array.shape
    volumes = {row["class"]: row["volume_ml"] for row in result.rows}
    assert volumes["tumor"] == pytest.approx((expected == IDS["tumor"]).sum() * 16 / 1000)


@given(orientation=orientations)
def test_a_part_is_seen_with_its_axes_as_stored(orientation, truth):
    volume = turned(image_of(truth), *orientation)
    state, box = State(volume, "CT"), ((4, 9), (3, 20), (11, 13))
    state.narrow(box)
    whole, part = to_image(volume), to_image(state.volume)
    np.testing.assert_allclose(part.GetDirection(), whole.GetDirection())
    place = whole.TransformPhysicalPointToIndex(part.TransformIndexToPhysicalPoint((0, 0, 0)))
    inside = tuple(slice(start, start + n) for start, n in zip(place[::-1], state.volume.array.shape, strict=True))
    np.testing.assert_array_equal(state.volume.array, volume.array[inside])
    np.testing.assert_array_equal(canonical(state.volume).array, part_of(canonical(volume), box).array)


@pytest.mark.parametrize("orientation", [ORIENTATIONS[0], ORIENTATIONS[13], ORIENTATIONS[-1]], ids=str)
def test_located_by_slices(orientation, truth, models):
    volume = turned(image_of(truth), *orientation)
    steps = [{"locate": "slices", "gap_mm": 20, "margin_mm": 4}, {"segment": "fine"}]
    found = canonical(Volume(Chain(steps, models).predict(volume, "CT").labels, volume.geometry)).array
    np.testing.assert_array_equal(found, boxed(truth, (0, 20), (0, 24), (0, 26)))  # without the tumor far above
    steps[0].pop("gap_mm")
    found = canonical(Volume(Chain(steps, models).predict(volume, "CT").labels, volume.geometry)).array
    np.testing.assert_array_equal(found, truth)  # Mao: from the first to the last


def test_located_twice(truth, models):
    volume = turned(image_of(truth), *ORIENTATIONS[13])
    steps = [
        {"locate": "slices", "gap_mm": 20},
        {"locate": "coarse", "classes": ["spleen"], "axes": "all"},
        {"segment": "fine"},
    ]
    found = canonical(Volume(Chain(steps, models).predict(volume, "CT").labels, volume.geometry)).array
    np.testing.assert_array_equal(found, boxed(truth, (10, 12), (8, 12), (15, 20)))
    steps[0], steps[1] = steps[1], steps[0]  # the classifier sees the part alone
    found = canonical(Volume(Chain(steps, models).predict(volume, "CT").labels, volume.geometry)).array
    assert found.any() and (found[truth == IDS["spleen"]] == IDS["spleen"]).all()


def test_a_cleaned_result_locates(truth, models):
    volume = image_of(truth)
    segment, locate, last = {"segment": "coarse"}, {"locate": "coarse"}, {"segment": "fine"}
    everything = Chain([segment, locate, last], models).predict(volume, "CT").labels
    np.testing.assert_array_equal(everything, truth)
    clean = {"clean": {"keep_largest": ["tumor"]}}
    result = Chain([segment, clean, locate, last], models).predict(volume, "CT").labels
    np.testing.assert_array_equal(result, boxed(truth, (8, 14), (6, 14), (5, 20)))
    near = {"clean": [NEAR_LIVER, {"keep_largest": ["liver"]}]}
    np.testing.assert_array_equal(Chain([segment, near, locate, last], models).predict(volume, "CT").labels, result)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"locate": "coarse", "min_height_mm": 121}, "not needed"),
        ({"locate": "slices", "min_height_mm": 121}, "not needed"),
    ],
)
def test_short_images_are_taken_whole(truth, models, step, said, caplog):
    caplog.set_level(logging.INFO)
    volume = image_of(truth)
    assert height_mm(volume) == 120
    np.testing.assert_array_equal(Chain([step, {"segment": "fine"}], models).predict(volume, "CT").labels, truth)
    assert said in caplog.text


@pytest.mark.parametrize("model", ["coarse", "slices"])
def test_where_nothing_is_found_all_is_segmented(model, models, caplog):
    empty = image_of(np.zeros((30, 24, 26), np.uint8))
    chain = Chain([{"locate": model, "margin_mm": 5}, {"segment": "fine"}], models)
    result = chain.predict(empty, "CT")
    assert result.labels.shape == empty.array.shape and not result.labels.any()
    assert "nothing found" in caplog.text


def test_the_whole_cascade(truth, models, monkeypatch):
    """Meng's chain: islands go, a box, tumors of two models, organs of a third, organs and tumor composed."""
    steps = [
        {"segment": "coarse", "step": 1},
        {"clean": [NEAR_LIVER, {"keep_largest": ["liver", "spleen"]}]},
        {"locate": "coarse", "margin_mm": 4},
        {"segment": ["fine", "other"], "merge": {"tumor": "union"}, "as": "tumors"},
        {"segment": "coarse"},
        {"compose": {"liver": "coarse", "spleen": "coarse", "tumor": "tumors"}},
    ]
    blind = models["other"].network

    class NoTumor(torch.nn.Module):
        def forward(self, x):
            scores = blind(x)
            return torch.cat([scores[:, :3], torch.full_like(scores[:, 3:], -99)], 1)

    monkeypatch.setattr(models["other"], "network", NoTumor())
    result = Chain(steps, models).predict(image_of(truth), "CT")
    np.testing.assert_array_equal(result.labels, boxed(truth, (7, 15), (4, 16), (3, 22)))


def test_one_model_on_a_part_says_what_it_says_of_that_part_alone(tmp_path, rng):
    predictor = Predictor(save_model(tmp_path / "a", seed=1), "cpu")
    finder = BrightSlices(tiny_plan(spacing_mm=(3.0, 2.0, 2.0)))
    finder.find = lambda prepared: np.arange(prepared.array.shape[1]) // 4 == 1
    volume = random_volume(rng)
    result = Chain([{"locate": "b"}, {"segment": "a"}], {"a": predictor, "b": finder}).predict(volume, "CT")
    assert (z := np.flatnonzero(result.labels.any((1, 2)))).size
    alone = predictor.predict(part_of(volume, ((4, 8), (0, 26), (0, 31))), "CT")
    np.testing.assert_array_equal(result.labels[4:8], alone.labels)
    assert z.min() >= 4 and z.max() < 8 and result.rows == alone.rows
