"""Stored values for HU: with padding, inverted, times ten; and images that are cut off."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from labelloop.images.hounsfield import clipping_limits, misplaced_fat, not_hu
from tiny_ct import body

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CTS = ["btcv/btcv_14", "btcv/btcv_00", "crlm/crlm_1006", "totalseg/ts_ct"]


def padded(hu: np.ndarray, value: int) -> np.ndarray:
    """Return a CT with ``value`` outside of the circle that was reconstructed."""
    _, height, width = hu.shape
    y, x = np.ogrid[:height, :width]
    outside = ((y - height / 2 + 0.5) / height * 2) ** 2 + ((x - width / 2 + 0.5) / width * 2) ** 2 > 1
    made = hu.copy()
    made[:, outside] = value
    return made


RIGHT = {
    "plain": lambda hu: hu,
    "padded": lambda hu: padded(hu, -2000),
    "padded_more": lambda hu: padded(hu, -3024),
    "of_air": lambda hu: np.maximum(hu, -1000),
    "saturated": lambda hu: np.clip(hu, -125, 275),
    "cropped": lambda hu: hu[:, hu.shape[1] // 4 : -hu.shape[1] // 4, hu.shape[2] // 4 : -hu.shape[2] // 4],
    "metal": lambda hu: np.where(hu > 420, 30000, hu),
    "float": lambda hu: hu.astype(np.float32) + 0.5,
}
WRONG = {
    "raw": lambda hu: hu + 1024,
    "raw_padded": lambda hu: padded(hu + 1024, -2000),
    "raw_padded_little": lambda hu: padded(hu + 1024, -50),
    "inverted": lambda hu: -hu,
    "inverted_padded": lambda hu: padded(-hu, -2000),
    "inverted_saturated": lambda hu: np.clip(-hu, -275, 125),
    "times_ten": lambda hu: hu * 10,
    "times_ten_padded": lambda hu: padded(hu * 10, -20000),
    "unsigned": lambda hu: hu.astype(np.uint16).astype(np.int32) - 100 * (hu > 0),
    "intercept_twice": lambda hu: hu - 1024,
    "eight_bit": lambda hu: (np.clip(hu, -160, 240) + 160) * 255 // 400,
    "z_score": lambda hu: (hu - hu.mean()) / hu.std(),
}
DOUBTFUL = {
    "halved": lambda hu: hu * 0.5,
    "plus_100": lambda hu: hu + 100,
    "minus_100": lambda hu: hu - 100,
    "halved_saturated": lambda hu: np.clip(hu, -125, 275) * 0.5,
    "plus_100_padded": lambda hu: padded(hu + 100, -2000),
}


def judged(values: np.ndarray) -> str | None:
    return not_hu(values, float(values.min()), float(values.max()))


@pytest.mark.parametrize("noise", [0.0, 9.0, 30.0])
def test_what_is_in_hu_passes_and_what_is_not_does_not(noise):
    hu = body(noise)
    assert {name: judged(made(hu)) for name, made in RIGHT.items()} == dict.fromkeys(RIGHT)
    assert [name for name, made in WRONG.items() if judged(made(hu)) is None] == []
    for turn in ((1, 0, 2), (2, 1, 0)):  # whatever the order of axes
        assert judged(hu.transpose(turn)) is None and judged(WRONG["inverted_padded"](hu).transpose(turn))


@pytest.mark.parametrize("noise", [9.0, 30.0])
def test_values_that_are_shifted_or_halved_are_noticed_by_their_fat(noise):
    hu = body(noise)
    assert {name: misplaced_fat(made(hu)) for name, made in RIGHT.items()} == dict.fromkeys(RIGHT)
    assert [name for name, made in DOUBTFUL.items() if misplaced_fat(made(hu)) is None] == []
    assert misplaced_fat(hu[:2] + 100) is None  # too few voxels to tell
    assert misplaced_fat(np.where(hu < 0, -1000, hu + 20)) is None  # no fat


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans of ../shared/data are not here")
@pytest.mark.parametrize("name", CTS)
def test_real_scans_in_right_and_wrong_units(name):
    hu = sitk.GetArrayFromImage(sitk.ReadImage(str(SHARED / f"{name}_0000.nii.gz"))).astype(np.int32)
    saturated = hu.min() == -125
    for right in ("plain", "padded", "saturated", "cropped"):
        assert judged(RIGHT[right](hu)) is misplaced_fat(RIGHT[right](hu)) is None, right
    for doubtful in ("halved", "plus_100", "minus_100"):
        assert misplaced_fat(DOUBTFUL[doubtful](hu)), doubtful
    for wrong in ("raw", "raw_padded", "inverted", "times_ten", "times_ten_padded"):
        assert judged(WRONG[wrong](hu)), wrong
    assert (clipping_limits(hu, float(hu.min()), float(hu.max())) == (-125.0, 275.0)) is bool(saturated)


@pytest.mark.parametrize(
    ("made", "ends"),
    [
        (lambda hu: hu, (None, None)),
        (lambda hu: np.maximum(hu, -1000), (None, None)),
        (lambda hu: padded(hu, -2000), (None, None)),
        (lambda hu: np.clip(hu, -125, 275), (-125.0, 275.0)),
        (lambda hu: np.maximum(hu, -200), (-200.0, None)),
        (lambda hu: np.minimum(hu, 240), (None, 240.0)),
        (lambda hu: np.full(hu.shape, -100), (None, None)),
    ],
)
def test_where_an_image_was_clipped(made, ends):
    values = made(body())
    assert clipping_limits(values, float(values.min()), float(values.max())) == ends


def test_values_of_eight_bits_are_not_hu():
    """Cast to int8, HU wrap around; gray values minus 128 lie where soft tissue does."""
    values = body()
    for eight_bit in (values.astype(np.int8), np.clip(values, -128, 127).astype(np.int8)):
        assert "8 bits" in not_hu(eight_bit, float(eight_bit.min()), float(eight_bit.max()))
    assert not_hu(values, float(values.min()), float(values.max())) is None
