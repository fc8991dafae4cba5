"""Images to segment are read once, as ITK reads them, and checked as the survey does."""

import gzip
import hashlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import random_volume, turned

from labelloop.base.errors import CaseError
from labelloop.images import nifti, scan
from labelloop.images.scan import read_image, read_label, read_surveyed
from labelloop.images.volume import read, write
from labelloop.inference.reading import Image, InputImage
from strategies import orientations, seeds, spacings


@pytest.fixture
def volume(rng):
    return random_volume(rng, (5, 6, 12))


@given(
    orientation=orientations,
    spacing=spacings,
    dtype=st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32]),
    seed=seeds,
)
def test_integers_in_any_orientation(tmp_path, orientation, spacing, dtype, seed):
    path = tmp_path / "scan.nii.gz"
    volume = turned(random_volume(np.random.default_rng(seed), (26, 27, 28), spacing), *orientation)
    write(path, volume.array.astype(dtype), volume.geometry)
    fast, usual = Image(path).volume("MR"), read(path)
    np.testing.assert_array_equal(fast.array, usual.array)
    assert fast.geometry == usual.geometry and fast.array.dtype == usual.array.dtype == dtype


def test_a_file_is_read_once(volume, tmp_path, monkeypatch):
    path = tmp_path / "scan.nii.gz"
    write(path, volume.array, volume.geometry)
    opened = []
    original = type(path).read_bytes
    monkeypatch.setattr(type(path), "read_bytes", lambda self: opened.append(self) or original(self))
    monkeypatch.setattr(sitk, "ReadImage", None)  # ITK is not asked for voxels
    image = Image(path)
    assert image.sha256() == hashlib.sha256(original(path)).hexdigest()
    np.testing.assert_array_equal(image.volume("CT").array, volume.array)
    assert opened == [path]


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nii", "scan.mha"])
def test_other_formats_hash_their_bytes(volume, tmp_path, name):
    write(tmp_path / name, volume.array, volume.geometry)
    image = Image(tmp_path / name)
    assert image.sha256() == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    np.testing.assert_array_equal(image.volume("CT").array, volume.array)


@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_a_header_s_hash_and_dates_cover_the_file_with_its_voxels(volume, tmp_path, suffix):
    path = tmp_path / f"scan.{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(volume.array), str(path), useCompression=False)
    np.testing.assert_array_equal(Image(path).volume("CT").array, volume.array)
    before = Image(path).sha256()
    raw = next(p for p in tmp_path.iterdir() if p != path)
    raw.write_bytes(volume.array[::-1].tobytes())
    assert Image(path).sha256() != before
    np.testing.assert_array_equal(Image(path).volume("CT").array, volume.array[::-1])


@pytest.mark.parametrize("elsewhere", ["/etc/hostname", "../secret.raw", "LIST", "slice%03d.raw 1 5 1"])
def test_a_header_s_voxels_must_be_one_file_in_its_folder(volume, tmp_path, elsewhere):
    path = tmp_path / "in" / "scan.mha"
    write(path, volume.array, volume.geometry)
    (tmp_path / "secret.raw").write_bytes(volume.array.tobytes())
    header = path.read_bytes().partition(b"ElementDataFile")[0].replace(b"True", b"False")
    path.write_bytes(header + f"ElementDataFile = {elsewhere}\n".encode())
    for ask in (Image(path).sha256, lambda: Image(path).volume("CT")):
        with pytest.raises(CaseError, match="image_parts"):
            ask()


def test_a_file_that_is_not_there_is_missing_in_every_door(volume, tmp_path):
    """A header without its voxels, a dead link, no file: one reason in infer, the survey, evaluate and check."""
    header, link = tmp_path / "scan.mhd", tmp_path / "link.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(volume.array), str(header), useCompression=False)
    (tmp_path / "scan.raw").unlink()
    link.symlink_to(tmp_path / "annex" / "key")
    for path, found in ((header, "without its voxels"), (link, "a dead link"), (tmp_path / "a.nii", "no such file")):
        asked = [(lambda p=path: Image(p).volume("CT"), "image"), (lambda p=path: Image(p).sha256(), "image")]
        asked += [(lambda p=path: read_image(p, "CT"), "image"), (lambda p=path: read_label(p), "label")]
        for ask, kind in asked:
            with pytest.raises(CaseError, match=f"{kind}_missing: .*{found}"):
                ask()


def test_a_surveyed_file_that_is_gone_or_memory_that_is_full_says_nothing_of_the_image(volume, tmp_path, monkeypatch):
    """It may be back at the next try, and the case is not set aside for it."""
    gone = tmp_path / "gone.nrrd"
    with pytest.raises(FileNotFoundError):
        Image.of(InputImage("gone", gone, image_sha256="known")).volume("CT")
    with pytest.raises(FileNotFoundError):
        read_surveyed(gone)
    path = tmp_path / "scan.nii.gz"
    write(path, volume.array, volume.geometry)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(nifti, "_pieces", full)
    with pytest.raises(MemoryError):
        Image(path).volume("CT")


def test_what_is_doubtful_is_told_and_which_form_is_used(volume, tmp_path, caplog):
    affine = np.diag([-1.5, -1.5, 3.0, 1.0])
    image = nib.Nifti1Image(volume.array.T, affine)
    moved = affine.copy()
    moved[0, 3] = 100
    for code, used in ((1, "sform"), (2, "qform")):
        image.set_sform(moved, code)
        image.set_qform(affine, 1)
        nib.save(image, tmp_path / "scan.nii.gz")
        caplog.clear()
        origin = Image(tmp_path / "scan.nii.gz").volume("CT").geometry.origin
        assert origin[0] == {"sform": -100, "qform": 0}[used]
        assert f"100 mm apart; the {used} is used" in caplog.text and "image_placement_ambiguous" in caplog.text


def cut_before_it_was_zipped(content):
    return gzip.compress(gzip.decompress(content)[:-300])


DAMAGES = [
    (lambda c: c[: len(c) // 2], "image_truncated"),
    (lambda c: c[:-20], "image_truncated"),
    (cut_before_it_was_zipped, "image_truncated"),
    (lambda c: gzip.decompress(c)[:-300], "image_truncated"),
    (lambda c: c[:40] + b"xx" + c[42:], "image_corrupt"),
    (lambda c: c[:-8] + b"xxxx" + c[-4:], "image_corrupt"),
    (lambda c: c + b"garbage", "image_corrupt"),
    (lambda c: gzip.compress(gzip.decompress(c) + b"more voxels"), "image_corrupt"),
    (lambda c: b"not gzip", "image_not_an_image"),
    (lambda c: b"", "image_file_empty"),
]


@pytest.mark.parametrize(("damage", "code"), DAMAGES)
@pytest.mark.parametrize("dtype", [np.int16, np.float32, ">i2"])
def test_damage_is_an_error(volume, tmp_path, damage, code, dtype):
    """ITK reads most of these without a word."""
    path = tmp_path / "scan.nii.gz"
    image = nib.Nifti1Image(volume.array.T, np.diag([-1.5, -1.5, 3.0, 1.0]))
    image = nib.Nifti1Image(volume.array.T, image.affine, nib.Nifti1Header(endianness=">" if dtype == ">i2" else "<"))
    image.set_data_dtype(dtype)
    nib.save(image, path)
    np.testing.assert_array_equal(Image(path).volume("CT").array, volume.array)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CaseError, match=code):
        Image(path).volume("CT")


def test_images_that_cannot_be_used_are_refused(volume, tmp_path):
    path = tmp_path / "scan.nii.gz"
    hollow = volume.array.astype(np.float32)
    hollow[0, 0, 0] = np.nan
    images = {"not_finite": hollow, "constant": np.zeros_like(volume.array), "not_hu": volume.array + 3000}
    for code, array in images.items():
        write(path, array, volume.geometry)
        with pytest.raises(CaseError, match=f"image_{code}"):
            Image(path).volume("CT")


def test_threads_lose_no_line_of_each_other_while_itk_reads(volume, tmp_path, capfd):
    """ITK is kept quiet by closing the terminal to all: that is no way where others may have something to say."""
    from concurrent.futures import ThreadPoolExecutor

    def chatty(path):
        print("said meanwhile", flush=True)
        return read(path)

    path = tmp_path / "scan.nrrd"
    write(path, volume.array, volume.geometry)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(scan.in_itk, path, "image", lambda: chatty(path)).result()
    assert capfd.readouterr().out == "said meanwhile\n"
