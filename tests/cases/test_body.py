"""Body masks of difficult images, and volumes that stand on their head."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes
from tiny_body import draw, ellipsoid, stored

from labelloop.base.errors import CaseError
from labelloop.cases.body import body_mask, body_threshold, judge_upright, otsu
from labelloop.images.volume import Volume, read
from labelloop.networks.grey import to_grey
from labelloop.networks.settings import GreySettings

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
BODY = ellipsoid((0, 0, 0), (125, 92, 400))


@pytest.fixture(scope="module")
def body() -> Volume:
    return draw()[0]


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_otsu_equals_trying_every_threshold():
    values = np.concatenate([np.random.default_rng(1).normal(m, s, n) for m, s, n in ((10, 3, 900), (60, 9, 300))])

    def between(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(t) for t in np.sort(values)[:-1])
    assert between(otsu(values)) > 0.999 * best
    assert otsu(np.full(5, 3.0)) == 3.0


@pytest.mark.parametrize("spoil", ["plain", "hot voxels", "saturated", "bright fat"])
def test_the_mask_is_the_body(body, spoil):
    array = body.array.copy()
    if spoil == "hot voxels":
        array[20, 25:31, 30:40] = 4000
    elif spoil == "saturated":
        array = np.minimum(array * 3, 255)
    elif spoil == "bright fat":
        array[BODY & ~ellipsoid((0, 0, 0), (105, 75, 400))] = 250
    mask = body_mask(Volume(array, body.geometry))
    assert dice(np.stack([binary_fill_holes(section) for section in mask]), BODY) > 0.97


def test_an_image_without_air_is_all_body(body):
    inner = body.array[:15, 18:38, 20:52]
    assert body_threshold(inner) is None
    geometry = replace(body.geometry, size=inner.shape[::-1])
    assert body_mask(Volume(inner, geometry)).all()
    assert not judge_upright(Volume(inner, geometry), "MR").upside_down


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAI"])
def test_upside_down_is_a_matter_of_the_patient_not_of_storage(body, orientation):
    wrong = Volume(body.array[::-1].copy(), body.geometry)
    for modality in ("CT", "MR"):
        assert not judge_upright(stored(body, orientation), modality).upside_down
        assert judge_upright(stored(wrong, orientation), modality).upside_down


@pytest.mark.slow
def test_no_real_scan_is_upside_down_until_it_is_turned():
    files = [p for p in sorted(DATA.glob("chaos_mr/*_0000.nii.gz")) if not p.name.startswith("chaos_38")]
    if not files:
        pytest.skip(f"no real scans in {DATA}")
    for file in files[:3]:
        volume = read(file)
        grey = Volume(to_grey(volume.array, "MR"), volume.geometry)
        assert not judge_upright(grey, "MR").upside_down, file.name
        turned = stored(grey, "LPS").array if grey.geometry.direction[8] > 0 else grey.array
        axis = int(np.argmax(np.abs(np.reshape(grey.geometry.direction, (3, 3))[2])))
        wrong = Volume(np.ascontiguousarray(np.flip(turned, 2 - axis)), grey.geometry)
        assert judge_upright(wrong, "MR").upside_down, file.name


def test_ct_window_is_level_40_width_400():
    hu = np.array([[[-1024, -160, 40, 240, 3000]]], np.int16)
    assert to_grey(hu, "CT").ravel().tolist() == [0, 0, 127.5, 255, 255]


def test_mr_goes_from_black_to_white_whatever_its_units():
    array = draw(seed=3)[0].array
    grey = to_grey(array, "MR")
    assert grey.min() == 0 and grey.max() == 255
    assert np.allclose(to_grey(array * 7 + 300, "MR"), grey, atol=0.01)
    hot = array.copy()
    hot[0, 0, 0] = 1e5
    robust = GreySettings(mr_percentiles=(0, 99.9))
    assert np.abs(to_grey(hot, "MR", robust) - to_grey(array, "MR", robust)).mean() < 1


def test_what_is_not_finite_or_of_no_known_modality_is_refused():
    with pytest.raises(CaseError, match="not finite"):
        to_grey(np.array([np.nan]), "MR")
    with pytest.raises(ValueError, match="PET"):
        to_grey(np.zeros(3), "PET")
