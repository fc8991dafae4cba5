"""NRRD headers that end the process in ITK's library."""

import numpy as np
import pytest
import SimpleITK as sitk

from bad_inputs import ct_values
from labelloop.base.errors import CaseError
from labelloop.images.scan import ScanFile, read_scan

CHANGES = {
    b"kinds: domain domain domain": (b"kinds: dom" + b"x" * 3000, b"kinds: domain\0 domain domain"),
    b"dimension: 3": (b"dimension: 2000", b"dimension: ", b"dimension: nan", b"dimension: 3\ndimension: 3"),
    b"sizes: 24 20 16": (b"sizes: 24 20", b"sizes: 24 20 -16", b"sizes: 24 20 1e30", b"size: 1"),
    b"(1,0,0) (0,1,0) (0,0,1)": (b"(1,0,0) (0,1,0) (0,0", b"(" * 500, b"(1,0,x) (0,1,0) (0,0,1)", b"(1,0) " * 3),
    b"space origin: (0,0,0)": (b"space origin: (0,0,0) (0,0,0) (0,0,0) (0,0,0)", b"space origin: " + b"9" * 400),
    b"encoding: gzip": (b"encoding: " + b"z" * 900, b"encoding gzip"),
    b"NRRD0004": (b"NRRD", b"\x89PNG"),
}


@pytest.mark.parametrize(("field", "instead"), [(f, i) for f, some in CHANGES.items() for i in some])
def test_headers_that_itk_would_trust_are_refused(tmp_path, field, instead):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(ct_values().T), str(path), useCompression=True)
    whole = path.read_bytes()
    assert field in whole
    path.write_bytes(whole.replace(field, instead, 1))
    for asked in (ScanFile(path, "image").scan, ScanFile(path, "image").geometry):
        with pytest.raises(CaseError):
            asked()


KEYS = b"Segment0_Name:=liver: left\nSegmentation_ConversionParameters:=" + b"a|b&" * 800 + b"\n# a comment\nspace:"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("suffix", ["nrrd", "nhdr"])
@pytest.mark.parametrize("more", [(b"", b""), (b"space:", KEYS), (b"kinds: ", b"thicknesses: NaN NaN 5\nkinds: ")])
def test_what_programs_write_is_read(tmp_path, suffix, packed, more):
    """3D Slicer adds long lines with keys of its own."""
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(ct_values().T), str(path), useCompression=packed)
    path.write_bytes(path.read_bytes().replace(*more, 1))
    np.testing.assert_array_equal(read_scan(path, "image").stored, ct_values().T)
