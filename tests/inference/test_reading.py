"""The fast way to read a gzipped NIfTI file gives what ITK gives, and leaves to ITK what is unusual."""

import gzip
import hashlib
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import random_volume, turned

from labelloop.errors import CaseError
from labelloop.inference import reading
from labelloop.inference.reading import Image, decode_nifti, gunzip
from labelloop.volume import read, write
from strategies import orientations, seeds, spacings


@given(
    orientation=orientations,
    spacing=spacings,
    dtype=st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32]),
    seed=seeds,
)
def test_integers_in_any_orientation(tmp_path, orientation, spacing, dtype, seed):
    path = tmp_path / "scan.nii.gz"
    volume = turned(random_volume(np.random.default_rng(seed), (5, 6, 7), spacing), *orientation)
    write(path, volume.array.astype(dtype), volume.geometry)
    fast, usual = decode_nifti(path.read_bytes(), path), read(path)
    np.testing.assert_array_equal(fast.array, usual.array)
    assert fast.geometry == usual.geometry and fast.array.dtype == usual.array.dtype == dtype


def rewritten(path, change):
    """Change the header of a gzipped NIfTI file."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    change(raw)
    path.write_bytes(gzip.compress(bytes(raw)))


def scaled(raw):
    raw[112:116] = np.float32(2).tobytes()


def four_dimensional(raw):
    raw[40:50] = np.array([4, 7, 6, 5, 1], "<i2").tobytes()


@pytest.mark.parametrize("change", [scaled, four_dimensional])
def test_unusual_headers_are_read_by_itk(rng, tmp_path, change):
    path = tmp_path / "scan.nii.gz"
    volume = random_volume(rng, (5, 6, 7))
    write(path, volume.array, volume.geometry)
    rewritten(path, change)
    assert decode_nifti(path.read_bytes(), path) is None
    np.testing.assert_array_equal(Image(path).volume().array, read(path).array)


def test_floats_and_several_gzip_members_are_read_by_itk(rng, tmp_path):
    path = tmp_path / "scan.nii.gz"
    volume = random_volume(rng, (5, 6, 7))
    write(path, volume.array.astype(np.float32), volume.geometry)
    assert decode_nifti(path.read_bytes(), path) is None
    write(path, volume.array, volume.geometry)
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:]))
    np.testing.assert_array_equal(Image(path).volume().array, volume.array)


def cut_before_it_was_zipped(content):
    raw = gzip.decompress(content)
    return gzip.compress(raw[: len(raw) // 2])


DAMAGES = (lambda c: c[: len(c) // 2], lambda c: c[:-20], lambda c: c[:40] + b"xx" + c[42:], cut_before_it_was_zipped)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_damage_is_an_error(rng, tmp_path, damage, dtype):
    """ITK reads most of these without a word."""
    path = tmp_path / "scan.nii.gz"
    volume = random_volume(rng, (15, 16, 17))
    write(path, volume.array.astype(dtype), volume.geometry)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CaseError, match="image_corrupt"):
        Image(path).volume()


def test_what_is_not_gzipped_is_left_to_itk(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"not gzip")
    assert decode_nifti(path.read_bytes(), path) is None
    with pytest.raises(CaseError, match=r"image_unreadable.*Unable to determine ImageIO"):
        Image(path).volume()


def test_a_file_that_is_gone_or_memory_that_is_full_says_nothing_of_the_image(rng, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        Image(tmp_path / "gone.nrrd").volume()
    path = tmp_path / "scan.nii.gz"
    write(path, random_volume(rng, (5, 6, 7)).array, random_volume(rng, (5, 6, 7)).geometry)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(reading, "gunzip", full)
    with pytest.raises(MemoryError):
        Image(path).volume()


def test_a_file_is_read_once(rng, tmp_path, monkeypatch):
    path = tmp_path / "scan.nii.gz"
    volume = random_volume(rng, (5, 6, 7))
    write(path, volume.array, volume.geometry)
    opened = []
    original = type(path).read_bytes
    monkeypatch.setattr(type(path), "read_bytes", lambda self: opened.append(self) or original(self))
    monkeypatch.setattr(reading, "read", None)  # ITK is not asked for voxels
    image = Image(path)
    assert image.sha256() == hashlib.sha256(original(path)).hexdigest()
    np.testing.assert_array_equal(image.volume().array, volume.array)
    assert opened == [path]


def test_isal_is_used_where_it_is_installed(monkeypatch):
    content = gzip.compress(b"voxels" * 1000)
    assert gunzip(content) == b"voxels" * 1000
    asked = []
    module = SimpleNamespace(decompress=lambda *a: asked.append(a) or zlib.decompress(*a))
    monkeypatch.setitem(sys.modules, "isal", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", module)
    assert gunzip(content) == b"voxels" * 1000 and len(asked) == 1


def test_other_formats_hash_their_bytes(rng, tmp_path):
    volume = random_volume(rng, (5, 6, 7))
    for name in ("scan.nrrd", "scan.nii"):
        write(tmp_path / name, volume.array, volume.geometry)
        image = Image(tmp_path / name)
        assert image.sha256() == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        np.testing.assert_array_equal(image.volume().array, volume.array)


def test_sitk_agrees_on_the_order_of_axes(rng, tmp_path):
    path = tmp_path / "scan.nii.gz"
    volume = random_volume(rng, (5, 6, 7))
    write(path, volume.array, volume.geometry)
    assert sitk.ReadImage(str(path))[6, 5, 4] == Image(path).volume().array[4, 5, 6]
