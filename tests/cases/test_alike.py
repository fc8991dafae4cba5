"""The same scan in other bytes, and nearly the same: resampled, cropped."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from labelloop.cases.alike import find_alike, profile, voxel_fingerprint
from labelloop.images.volume import Volume, canonical, geometry_of, to_image
from tiny_ct import GRID, scan


def resampled(volume: Volume, spacing: tuple[float, float, float]) -> Volume:
    image = to_image(volume)
    size = [int(n * s / t) for n, s, t in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
    made = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), spacing, image.GetDirection(), -1000.0
    )
    return Volume(sitk.GetArrayFromImage(made), geometry_of(made))


def part(volume: Volume, box: tuple[slice, slice, slice]) -> Volume:
    array = volume.array[box]
    return Volume(array, replace(volume.geometry, size=array.shape[::-1]))


def test_the_fingerprint_sees_through_formats_headers_and_axes():
    volume = scan(0)
    print_of = voxel_fingerprint(volume.array)
    same = [
        volume.array.astype(np.float32), volume.array.astype(">i4"), canonical(volume).array,
        volume.array[::-1], volume.array[:, :, ::-1], volume.array.transpose(2, 0, 1), volume.array * 0.5 * 2,
    ]  # fmt: skip
    assert {voxel_fingerprint(array) for array in same} == {print_of}
    other = volume.array.copy()
    other[3, 4, 5] += 1
    swapped = volume.array.copy()
    swapped[3, 4, 5], swapped[6, 7, 8] = swapped[6, 7, 8] + 1, swapped[3, 4, 5] - 1
    different = [other, swapped, scan(1).array, volume.array[1:], volume.array + 1024]
    assert len({print_of, *map(voxel_fingerprint, different)}) == 1 + len(different)


COPIES = {
    "resampled": lambda v: resampled(v, (6.0, 6.0, 7.5)),
    "fewer slices": lambda v: part(v, (slice(8, 33), slice(None), slice(None))),
    "cropped to the body": lambda v: part(v, (slice(None), slice(3, -3), slice(3, -3))),
    "cropped and resampled": lambda v: resampled(
        part(v, (slice(5, None), slice(2, -2), slice(2, -2))), (6.0, 6.0, 4.0)
    ),
    "turned": canonical,
    "denoised": lambda v: Volume(gaussian_filter(v.array.astype(np.float32), 0.7), v.geometry),
}


@pytest.mark.parametrize("kind", ["CT", "MR"])
def test_near_copies_are_found_and_other_people_are_not(kind):
    def looked(volume: Volume) -> str:
        return profile(Volume(volume.array + 1100, volume.geometry) if kind == "MR" else volume, kind)

    learned = {f"other {seed}": looked(scan(seed)) for seed in range(1, 13)}
    learned |= {name: looked(made(scan(0))) for name, made in COPIES.items()}
    assert find_alike({"tested": looked(scan(0))}, learned) == dict.fromkeys(COPIES, "tested")
    assert find_alike({}, learned) == find_alike({"tested": looked(scan(0))}, {}) == {}


@pytest.mark.parametrize("kind", ["CT", "MR"])
@pytest.mark.parametrize("slices", [6, 11])
def test_a_short_part_is_found_whichever_side_it_is_on(kind, slices):
    def looked(volume: Volume) -> str:
        return profile(Volume(volume.array + 1100, volume.geometry) if kind == "MR" else volume, kind)

    shorts = {f"from {start}": looked(part(scan(0), (slice(start, start + slices), slice(None), slice(3, -3))))
              for start in (0, 13, 29)}  # fmt: skip
    others = {f"other {seed}": looked(scan(seed)) for seed in range(1, 5)}
    short_others = {f"short {seed}": looked(part(scan(seed), (slice(5, 5 + slices), slice(None), slice(None))))
                    for seed in range(1, 5)}  # fmt: skip
    whole = looked(scan(0))
    assert find_alike({"tested": whole} | others, shorts) == dict.fromkeys(shorts, "tested")
    assert find_alike(shorts, {"learned": whole} | others | short_others) == {"learned": "from 0"}
    assert find_alike({"tested": whole}, short_others) == {}


def test_scans_of_a_few_slices_and_without_a_body_have_a_profile_too():
    few = {n: profile(part(scan(0), (slice(n), slice(None), slice(None))), "CT") for n in (2, 3, 12)}
    empty = profile(Volume(np.zeros((4, 5, 6), np.int16), replace(GRID, size=(6, 5, 4))), "MR")
    assert find_alike({"few": few[12]}, {"whole": profile(scan(0), "CT"), "two": few[2]}) == {"whole": "few"}
    assert find_alike({"empty": empty}, {"whole": profile(scan(0), "CT")}) == {}
