"""MetaImage headers that end the process in ITK's library, or make it take room for more than there is."""

import numpy as np
import pytest
import SimpleITK as sitk

from bad_inputs import ct_values
from labelloop.base.errors import CaseError
from labelloop.images.scan import ScanFile, read_scan

CHANGES = {
    b"NDims = 3": (b"NDims = 8472e48 3", b"NDims = 2000", b"NDims = 2", b"NDims = ", b"NDims = nan"),
    b"DimSize = 24 20 16": (b"DimSize = 24 20", b"DimSize = 24 20 -16", b"DimSize = 24 20 1e30", b"Size = 1"),
    b"TransformMatrix = 1": (b"TransformMatrix = 1 1", b"TransformMatrix = inf"),
    b"Offset = 0 0 0": (b"Offset = 0 0", b"Offset = 0 0 0\nOffset = 0 0 0", b"Offset = " + b"0 " * 999),
    b"CompressedDataSize = ": (b"CompressedDataSize = 99999999999", b"CompressedDataSize = -"),
    b"ElementDataFile": (b"Element" * 100, b"x\nElementDataFile"),
}


@pytest.mark.parametrize(("field", "instead"), [(f, i) for f, some in CHANGES.items() for i in some])
def test_headers_that_itk_would_trust_are_refused(tmp_path, field, instead):
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(ct_values().T), str(path), useCompression=True)
    whole = path.read_bytes()
    assert field in whole
    path.write_bytes(whole.replace(field, instead, 1))
    for asked in (ScanFile(path, "image").scan, ScanFile(path, "image").geometry):
        with pytest.raises(CaseError):
            asked()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("suffix", ["mha", "mhd"])
def test_files_that_end_early_are_told_as_such(tmp_path, suffix, packed):
    """ITK gives "File cannot be read ... Reason: Success" and the like."""
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(ct_values().T), str(path), useCompression=packed)
    header = path.read_bytes().partition(b"ElementDataFile")[0]
    voxels = path if suffix == "mha" else next(p for p in tmp_path.iterdir() if p != path)
    whole = voxels.read_bytes()
    for cut in (whole[: len(whole) // 2 + 200], whole[:-1]):
        voxels.write_bytes(cut)
        with pytest.raises(CaseError, match=r"image_truncated: \S+: \d+ bytes of voxels instead of \d+\. "):
            read_scan(path, "image")
    path.write_bytes(header[:-20])
    with pytest.raises(CaseError, match=r"image_truncated: \S+: \d+ bytes, which end within the header"):
        read_scan(path, "image")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("suffix", ["mha", "mhd"])
def test_what_itk_writes_is_read(tmp_path, suffix, packed):
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(ct_values().T), str(path), useCompression=packed)
    np.testing.assert_array_equal(read_scan(path, "image").stored, ct_values().T)
    assert ScanFile(path, "image").geometry() == read_scan(path, "image").geometry
