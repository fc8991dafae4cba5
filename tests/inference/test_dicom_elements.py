"""Lengths of DICOM elements: a file is whole where none claims more bytes than there are."""

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_dicom import SHAPE, body_hu, write_series

from labelloop.base.errors import CaseError
from labelloop.inference.dicom import read_dicom
from labelloop.inference.dicom_elements import is_whole
from labelloop.inference.reading import Image


def test_an_element_cannot_claim_more_memory_than_the_file_has_bytes(tmp_path):
    """GDCM takes as much memory as a header says, up to 4 GiB, before it finds that there is less."""
    file = sorted(write_series(tmp_path).glob("*.dcm"))[3]
    whole, private = file.read_bytes(), struct.pack("<HH2sHI", 9, 0x1001, b"UN", 0, 0xF0000000)
    nested = struct.pack("<HH2sHIHHI", 9, 0x1001, b"SQ", 0, 8 + 12, 0xFFFE, 0xE000, 12) + private
    at = whole.index(struct.pack("<HH", 0x10, 0x10))
    for claim in (private, nested):
        file.write_bytes(whole[:at] + claim + whole[at:])
        assert not is_whole(file)
        with pytest.raises(CaseError, match="dicom_damaged"):
            Image(tmp_path).volume("CT")
    file.write_bytes(whole[:-9])  # the file itself is cut
    assert not is_whole(file)


@pytest.mark.parametrize("length", [20, 0xFFFFFFFF])
def test_sequences_are_gone_through(tmp_path, length):
    file = sorted(write_series(tmp_path).glob("*.dcm"))[3]
    whole, at = file.read_bytes(), file.read_bytes().index(struct.pack("<HH", 0x10, 0x10))
    inside = struct.pack("<HH2sHI", 9, 0x1001, b"UN", 0, 0)
    ends = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0) if length == 0xFFFFFFFF else b""
    head = struct.pack("<HH2sHI", 9, 0x1000, b"SQ", 0, length) + struct.pack("<HHI", 0xFFFE, 0xE000, min(12, length))
    head = head if length == 20 else head[:-4] + struct.pack("<I", length)
    file.write_bytes(whole[:at] + head + inside + ends + whole[at:])
    assert is_whole(file)
    assert Image(tmp_path).volume("CT").array.shape == SHAPE


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("length", [0x4142, 0x14142, 0x5344, 0x14F4C])
def test_a_length_that_looks_like_a_value_representation_is_a_length(tmp_path, implicit, meta, length):
    """Implicit VR puts lengths where others put two letters: AB, DS and LO here, all in private elements."""
    more = {(0x29, 0x10): ("LO", "SIEMENS CSA HEADER"), (0x29, 0x1010): ("UN", b"\xff" * length)}
    write_series(tmp_path, body_hu()[:6], implicit=implicit, meta=meta, more=more)
    np.testing.assert_array_equal(read_dicom(tmp_path).array, body_hu()[:6])
    last = sorted(tmp_path.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-9])
    assert not is_whole(last)


def test_files_of_other_programs_are_whole():
    data = Path(nib.__file__).parent
    files = sorted(data.rglob("*.dcm"))
    assert len(files) > 3 and all(map(is_whole, files))
