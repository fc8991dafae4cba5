"""Preparation equals nnU-Net's, and does not depend on how the file stores its axes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from scipy.ndimage import gaussian_filter
from tiny_models import tiny_plan

from labelloop.base.classes import IGNORED
from labelloop.base.errors import CaseError
from labelloop.images.volume import Geometry, Volume, canonical
from labelloop.inference.prepare import Frame, nonzero_box, prepare_image, prepare_label
from labelloop.inference.resample import Resampling, resample_labels
from labelloop.networks.grey import to_grey
from labelloop.networks.nnunet_plan import NnunetPlan
from labelloop.networks.settings import GreySettings
from strategies import few, millimeters, orientations, seeds, spacings

GRIDS = [  # spacing of the image (z, y, x), spacing of the network
    ((3.0, 1.1, 1.2), (2.5, 1.5, 1.5)),
    ((5.0, 0.78, 0.78), (2.5, 1.5, 1.5)),  # separate z by the image
    ((1.25, 0.78, 0.78), (6.0, 1.2, 1.2)),  # separate z by the network
    ((0.8, 0.9, 4.0), (2.0, 2.0, 2.0)),  # separate x
    ((4.0, 4.0, 1.0), (2.0, 2.0, 2.0)),  # two coarse axes: trilinear after all
    ((2.5, 1.5, 1.5), (2.5, 1.5, 1.5)),
    ((0.5, 0.5, 0.5), (8.0, 8.0, 8.0)),
]
grids = st.sampled_from(GRIDS) | st.tuples(spacings, st.tuples(*[millimeters(0.6, 5)] * 3)).map(
    lambda drawn: (drawn[0], tuple(round(mm * ratio, 2) for mm, ratio in zip(*drawn, strict=True)))
)
"""Spacing of the image and of the network, the latter 0.6 to 5 times the former."""
# In LPS coordinates, the directions that make an array [z, y, x] canonical.
RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def random_volume(rng, shape=(21, 26, 31), spacing=(3.0, 1.1, 1.2), low=-1000):
    array = gaussian_filter(rng.normal(0, 900, shape), 1).round().astype(np.int16)
    array[array == 0] = low
    return Volume(array, Geometry(shape[::-1], spacing[::-1], (5.0, -7.0, 11.0), RAS))


def turned(volume, permutation, flips):
    """Store a canonical volume with other axes; the header says so."""
    array = np.flip(np.transpose(volume.array, permutation), flips)
    g = volume.geometry
    columns = [2 - permutation[2 - i] for i in range(3)]
    direction = np.asarray(g.direction).reshape(3, 3)[:, columns]
    size, spacing = [g.size[c] for c in columns], [g.spacing[c] for c in columns]
    signs = np.array([-1.0 if 2 - i in flips else 1.0 for i in range(3)])
    corner = [(size[i] - 1) * spacing[i] if signs[i] < 0 else 0 for i in range(3)]
    origin = np.asarray(g.origin) + direction @ corner
    geometry = Geometry(tuple(size), tuple(spacing), tuple(origin), tuple((direction * signs).ravel()))
    return Volume(np.ascontiguousarray(array), geometry)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("percentiles", [(0, 100), (1, 99)])
def test_a_grey_plan_shows_the_network_the_grey_scale_from_minus_one_to_one(rng, modality, percentiles):
    volume = random_volume(rng, spacing=(2.5, 1.5, 1.5))
    settings = GreySettings(mr_percentiles=percentiles)
    (seen,) = prepare_image(volume, tiny_plan(grey=settings), modality).array
    np.testing.assert_allclose(seen, to_grey(volume.array, modality, settings) / 127.5 - 1, atol=1e-5)
    assert seen.min() == -1 and seen.max() == 1


def test_a_plan_without_adaptation_is_what_it_was():
    plan = tiny_plan()
    assert set(plan.images) == {"spacing_mm", "ct", "mr"} and not {"grey", "upright", "translate"} & set(
        plan.model_dump()
    )
    asked = tiny_plan(grey={}, upright=True, translate="to_mr")
    assert asked.images["translate"] == "to_mr" and type(asked).model_validate(asked.model_dump(mode="json")) == asked
    with pytest.raises(ValueError, match="translate needs `grey`"):
        tiny_plan(translate="to_mr")


def stock(volume, plan, modality):
    ct = {"mean": plan.ct.mean, "std": plan.ct.std,
          "percentile_00_5": plan.ct.clip_hu[0], "percentile_99_5": plan.ct.clip_hu[1]}  # fmt: skip
    scheme = "CTNormalization" if modality == "CT" else "ZScoreNormalization"
    configuration = SimpleNamespace(
        spacing=list(plan.spacing_mm),
        normalization_schemes=[scheme],
        use_mask_for_norm=[False],
        resampling_fn_data=resample_torch_fornnunet,
        resampling_fn_seg=lambda *a: resample_torch_fornnunet(*a, is_seg=True),
    )
    plans = SimpleNamespace(transpose_forward=[0, 1, 2], foreground_intensity_properties_per_channel={"0": ct})
    properties = {"spacing": volume.geometry.spacing_zyx}
    data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        volume.array[None], None, properties, plans, configuration, {}
    )
    return data[0], properties


@given(grid=grids, modality=st.sampled_from(["CT", "MR"]), seed=seeds)
def test_image_equals_nnunets(grid, modality, seed):
    spacing, target = grid
    volume = random_volume(np.random.default_rng(seed), spacing=spacing)
    volume.array[:, :3] = volume.array[-2:] = 0
    plan = tiny_plan(spacing_mm=target)
    expected, properties = stock(volume, plan, modality)
    prepared = prepare_image(volume, plan, modality)
    np.testing.assert_allclose(prepared.array[0], expected, atol=1e-5, rtol=0)
    assert [list(part) for part in prepared.frame.crop] == [list(b) for b in properties["bbox_used_for_cropping"]]
    assert (1, *prepared.frame.shape) == prepared.array.shape
    assert prepared.array.dtype == np.float32 and prepared.array.flags.c_contiguous


@few(2)
@given(grid=grids, seed=seeds)
def test_label_equals_argmax_of_resampled_one_hot(grid, seed):
    spacing, target = grid
    shape, rng = (21, 26, 31), np.random.default_rng(seed)
    noise = [gaussian_filter(rng.normal(size=shape), 2) for _ in range(4)]
    ids = np.array([0, 2, 7, 254], np.uint8)
    label = Volume(ids[np.argmax(noise, 0)], Geometry(shape[::-1], spacing[::-1], direction=RAS))
    frame = prepare_image(Volume(np.ones(shape, np.int16), label.geometry), tiny_plan(spacing_mm=target), "CT").frame
    one_hot = [resample_torch_fornnunet((label.array == i).astype(np.float32)[None], frame.shape, spacing, target)[0]
               for i in ids]  # fmt: skip
    result = prepare_label(label, frame)
    np.testing.assert_array_equal(result, ids[np.argmax(one_hot, 0)])
    for voxels in (1, 900):  # many thin slabs
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Resampling.slabs, "__defaults__", (voxels,))
            again = resample_labels(label.array, frame.shape, spacing, target)
        np.testing.assert_array_equal(again, result)


@pytest.mark.parametrize("spacing, target", GRIDS)
def test_ignored_voxels_stay_ignored_and_are_not_mixed_with_classes(rng, spacing, target):
    array = np.zeros((12, 14, 16), np.uint8)
    array[2:9, 3:11, 2:8], array[2:9, 3:11, 8:14] = 13, IGNORED
    label = Volume(array, Geometry(array.shape[::-1], spacing[::-1], direction=RAS))
    frame = prepare_image(
        Volume(np.ones(array.shape, np.int16), label.geometry), tiny_plan(spacing_mm=target), "CT"
    ).frame
    found = prepare_label(label, frame)
    assert set(np.unique(found)) <= {0, 13, IGNORED} and found.shape == frame.shape
    swapped = np.array([0, *[1] * 254, 2], np.uint8)
    np.testing.assert_array_equal(
        prepare_label(Volume(swapped[array], label.geometry), frame), swapped[found]
    )  # resampled as any other label is


@given(orientation=orientations, seed=seeds)
def test_any_orientation_is_prepared_alike(orientation, seed):
    volume = random_volume(np.random.default_rng(seed), (9, 12, 14))
    stored = turned(volume, *orientation)
    np.testing.assert_array_equal(canonical(stored).array, volume.array)
    plain, other = (prepare_image(v, tiny_plan(), "CT") for v in (volume, stored))
    np.testing.assert_array_equal(plain.array, other.array)
    label = Volume((stored.array > 0).astype(np.uint8), stored.geometry)
    expected = prepare_label(Volume((volume.array > 0).astype(np.uint8), volume.geometry), plain.frame)
    np.testing.assert_array_equal(prepare_label(label, other.frame), expected)
    stored_labels, crop = other.frame.zeros()
    crop[:] = canonical(label).array[other.frame.slices]
    np.testing.assert_array_equal(stored_labels, label.array)


def test_frame_survives_json(rng):
    import json

    frame = prepare_image(random_volume(rng), tiny_plan(), "CT").frame
    assert Frame.from_dict(json.loads(json.dumps(frame.as_dict()))) == frame


def test_box_of_an_empty_volume_is_the_volume():
    assert nonzero_box(np.zeros((3, 4, 5))) == ((0, 3), (0, 4), (0, 5))
    prepared = prepare_image(Volume(np.zeros((3, 4, 5)), Geometry((5, 4, 3), (1.0, 1.0, 1.0))), tiny_plan(), "MR")
    assert not prepared.array.any()


def test_thin_volume_keeps_a_voxel():
    volume = Volume(np.ones((1, 9, 9), np.int16), Geometry((9, 9, 1), (1.5, 1.5, 0.5)))
    assert prepare_image(volume, tiny_plan(), "CT").array.shape[1] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(rng, bad):
    volume = random_volume(rng)
    array = volume.array.astype(float)
    array[3, 3, 3] = bad
    with pytest.raises(CaseError, match="1 voxels are not finite"):
        prepare_image(Volume(array, volume.geometry), tiny_plan(), "CT")


def test_more_voxels_than_any_scan_needs_are_refused_with_what_to_do(rng):
    """A voxel size in micrometers makes 36 x 28 x 28 voxels a patient of ten meters, and 10^11 voxels."""
    volume = random_volume(rng, (28, 28, 36), (270.0, 280.0, 280.0))
    with pytest.raises(
        CaseError, match=r"prepared_too_large: image: \d+ voxels at .* mm, of a grid of 280 x 280 x 270 mm"
    ):
        prepare_image(volume, tiny_plan(spacing_mm=(2.5, 1.5, 1.5)), "CT")


def test_modality_and_grid_are_checked(rng):
    volume = random_volume(rng)
    with pytest.raises(ValueError, match="PET"):
        prepare_image(volume, tiny_plan(), "PET")
    frame = prepare_image(volume, tiny_plan(), "CT").frame
    other = Volume(volume.array, Geometry(volume.geometry.size, (9.0, 1.0, 1.0)))
    with pytest.raises(CaseError, match="spacing"):
        prepare_label(other, frame)


NETWORK = {
    "strides": [[1, 1, 1], [2, 2, 2]], "kernels": [[3, 3, 3]] * 2, "norm": {"eps": 1e-5, "affine": True},
    "nonlinearity": {"inplace": True},
}  # fmt: skip


@few()
@given(orientations, st.permutations(range(3)), st.sampled_from(["stored", "canonical"]), seeds)
def test_labels_lie_on_the_images_that_plans_of_nnunet_prepare(orientation, transpose, by, seed):
    """Also from the frame that a file holds: where the image is bright, the label is."""
    labels = random_volume(np.random.default_rng(seed), (7, 8, 9), (2.0, 2.0, 2.0))
    labels = turned(Volume((labels.array > 100).astype(np.uint8), labels.geometry), *orientation)
    plan = {"normalization": {"kind": "none"}, "transpose": transpose, "orientation": by}
    plan = NnunetPlan(**tiny_plan().model_dump(include={"patch", "features"}) | NETWORK | plan, spacing_mm=[2.0] * 3)
    prepared = prepare_image(Volume(labels.array * 100, labels.geometry), plan, "MR")
    frame = Frame.from_dict(json.loads(json.dumps(prepared.frame.as_dict())))
    assert frame == prepared.frame
    assert np.array_equal(prepare_label(labels, frame), prepared.array[0] == 100)


def test_each_channel_that_is_ct_may_have_a_normalization_of_its_own(rng):
    volume = random_volume(rng)
    volume = replace(volume, more=(np.abs(volume.array), volume.array))
    hows = [{"clip_hu": (-100, 100), "mean": 0, "std": 10}, {"clip_hu": (-50, 50), "mean": 5, "std": 2}]
    channels = ("CT", "PET", "CT")
    seen = prepare_image(volume, tiny_plan(channels=channels, ct=hows), "CT").array
    for number, how in enumerate(hows):
        alone = prepare_image(replace(volume, more=()), tiny_plan(ct=how), "CT").array[0]
        np.testing.assert_array_equal(seen[2 * number], alone)
    for wrong in (channels[:2], ()):
        with pytest.raises(ValueError, match=r"2 normalizations, expected one, or one for each of [01] channels CT"):
            tiny_plan(channels=wrong, ct=hows)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["CT", "PET", "zscore", "zscore_inside", "range", "none", "ct"])
@pytest.mark.parametrize("values", [np.int16(0), np.int16(7), np.float32(0.1), np.float32(-3e5)])
def test_a_constant_channel_stays_constant_and_finite_beside_one_that_is_not(rng, kind, values):
    volume = random_volume(rng)
    volume = replace(volume, more=(np.full_like(volume.array, values, dtype=values.dtype),))
    if kind in ("CT", "PET"):
        plan = tiny_plan(channels=("MR", kind))
    else:
        normalization = [{"kind": "zscore"}, {"kind": kind, "clip": [-1000, 1000]}]
        given = {"normalization": normalization, "channels": ["MR", "other"], "spacing_mm": [2.0] * 3}
        plan = NnunetPlan(**tiny_plan().model_dump(include={"patch", "features"}) | NETWORK | given)
    seen, constant = prepare_image(volume, plan, "MR").array
    assert np.isfinite(seen).all() and seen.std() > 0.1
    assert np.isfinite(constant).all() and np.ptp(constant) <= 1e-6 * abs(constant).max()
    if kind in ("PET", "zscore", "zscore_inside"):
        np.testing.assert_allclose(constant, 0, atol=0.01)
