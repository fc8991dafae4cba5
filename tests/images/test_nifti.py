"""NIfTI bytes: never more voxels than the header says, never voxels of another file, and ITK's geometry."""

import gzip
import sys
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from bad_inputs import AFFINE, ct_values, patched, save
from labelloop.base.errors import CaseError
from labelloop.images import nifti
from labelloop.images.nifti import RefusedError, begin, read_header, voxels
from labelloop.images.scan import read_image, read_scan
from labelloop.images.volume import read, write


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "a.nii.gz", ct_values())


def unpacked(content: bytes) -> np.ndarray:
    return voxels(content, read_header(begin(content)))


def test_a_gzip_bomb_is_not_inflated(path):
    """A header of a small scan, and behind its voxels 200 MB of zeros in 200 kB."""
    whole = gzip.decompress(path.read_bytes())
    bomb = gzip.compress(whole + bytes(200_000_000), 1)
    tracemalloc.start()
    with pytest.raises(RefusedError, match="corrupt: 15360 bytes of voxels in the header, and more in the file"):
        unpacked(bomb)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_room_is_made_for_no_more_than_a_file_can_hold(path):
    """A few kB whose header says 2000 x 1000 x 1000 voxels, or more than any scan has."""
    patched(path, 42, "3h", 2000, 1000, 1000)
    with pytest.raises(CaseError, match=r"image_truncated: .*cannot hold 4000000352 bytes"):
        read_scan(path, "image")
    patched(path, 42, "3h", 30000, 30000, 30000)
    with pytest.raises(CaseError, match="image_too_large"):
        read_scan(path, "image")


def test_padding_and_several_members_are_no_damage(path):
    content = path.read_bytes()
    whole, array = gzip.decompress(content), unpacked(content)
    members = b"".join(gzip.compress(whole[i : i + 100]) for i in range(0, len(whole), 100))
    for same in (content + bytes(700), gzip.compress(whole + bytes(512)), members, whole):
        np.testing.assert_array_equal(unpacked(same), array)


def test_voxels_are_those_of_the_file_that_was_checked(tmp_path):
    """ITK takes the voxels of p.nii.gz from p.nii, when that lies beside it."""
    path = save(tmp_path / "p.nii.gz", ct_values())
    save(tmp_path / "p.nii", np.full_like(ct_values(), -50))
    np.testing.assert_array_equal(read_scan(path, "image").volume().array, ct_values().T)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "t1.img", "t1.hdr.gz", "t1.nia"])
def test_ids_that_look_like_formats_of_itk_are_written_and_read(tmp_path, name):
    file = tmp_path / f"{name}.nii.gz"
    volume = read(save(tmp_path / "a.nii.gz", ct_values()))
    write(file, volume.array, volume.geometry)
    again = read_scan(file, "label").volume()
    np.testing.assert_array_equal(again.array, volume.array)
    assert again.geometry == volume.geometry
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.nii.gz", file.name])


def test_isal_is_used_where_it_is_installed(path, monkeypatch):
    asked = []
    module = SimpleNamespace(decompressobj=lambda window: asked.append(window) or zlib.decompressobj(window))
    monkeypatch.setitem(sys.modules, "isal", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", module)
    unpacked(path.read_bytes())
    assert asked == [nifti.GZIP, nifti.GZIP]


def test_the_affines_of_a_header_are_those_of_nibabel(tmp_path):
    import nibabel as nib

    turned = AFFINE.copy()
    angle = 0.3
    turned[:3, :3] = (
        np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1]]) @ AFFINE[:3, :3]
    )
    for affine in (AFFINE, turned, np.diag([2.0, 1.0, -3.0, 1.0])):
        file = save(tmp_path / "a.nii.gz", ct_values(), affine)
        header, theirs = read_header(begin(file.read_bytes())), nib.load(file).header
        np.testing.assert_allclose(header.qform, theirs.get_qform(), atol=1e-5)
        np.testing.assert_allclose(header.sform, theirs.get_sform(), atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 348.0, 351.0, 352.5, float("nan")])
def test_voxels_do_not_begin_within_the_header(path, offset):
    """From byte 348 on, as ITK reads an offset of 0, a label map would be moved by four voxels."""
    patched(path, 108, "f", offset)
    with pytest.raises(CaseError, match=r"label_corrupt: .*: voxels that begin at byte"):
        read_scan(path, "label")


def test_a_qform_that_places_nothing_is_refused(path):
    save(path, ct_values(), sform=False)
    patched(path, 268, "f", float("nan"))
    with pytest.raises(CaseError, match="image_direction_not_orthonormal"):
        read_scan(path, "image")


@pytest.mark.filterwarnings("error")
def test_a_slope_that_makes_values_infinite_is_a_fault_of_the_file(path):
    patched(path, 112, "f", 3e38)
    with pytest.raises(CaseError, match="image_not_finite"):
        read_image(path, "CT")
