"""MetaImage and NRRD files whose voxels are not what the header says: ITK reads each of them, and returns something."""

import gzip
import tracemalloc
import zlib

import numpy as np
import pytest

from bad_inputs import ct_values, save
from labelloop.base.errors import CaseError
from labelloop.images.scan import LARGE, ScanFile, read_scan

VOXELS = ct_values().T.astype("<i2")
RAW, PACKED = VOXELS.tobytes(), zlib.compress(VOXELS.tobytes())
META = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0", "ElementSpacing": "1.5 1.5 3",
    "DimSize": "24 20 16", "ElementType": "MET_SHORT",
}  # fmt: skip
NRRD = {
    "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "24 20 16",
    "space directions": "(1.5,0,0) (0,1.5,0) (0,0,3)", "kinds": "domain domain domain", "endian": "little",
    "encoding": "raw", "space origin": "(0,0,0)",
}  # fmt: skip


def written(path, fields, data):
    """Write a file with a text header; a field that is None is left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    if path.suffix == ".mha":
        lines = [*(f"{name} = {value}" for name, value in given.items()), "ElementDataFile = LOCAL\n"]
    else:
        lines = ["NRRD0005", *(f"{name}: {value}" for name, value in given.items()), "\n"]
    path.write_bytes("\n".join(lines).encode() + data)
    return path


META_FAULTS = {
    "cut stream": ({"CompressedData": "True"}, PACKED[:3000], "truncated"),
    "stream of a part": ({"CompressedData": "True"}, zlib.compress(RAW[:5000]), "truncated"),
    "stream of more": ({"CompressedData": "True"}, zlib.compress(RAW + RAW), "corrupt"),
    "damaged stream": ({"CompressedData": "True"}, PACKED[:50] + b"XXXX" + PACKED[54:], "corrupt"),
    "wrong checksum": ({"CompressedData": "True"}, PACKED[:-4] + b"1234", "corrupt"),
    "more behind": ({}, RAW + b"x" * 1000, "corrupt"),
    "half the slices named": ({"DimSize": "24 20 8"}, RAW, "corrupt"),
    "no voxel size": ({"ElementSpacing": None}, RAW, "spacing_invalid"),
    "negative behind a positive": ({"ElementSpacing": None, "ElementSize": "1 1 1",
                                    "ElementSpacing ": "-1.5 1.5 3"}, RAW, "spacing_invalid"),
    "no type": ({"ElementType": None}, RAW, "not_an_image"),
    "text": ({"BinaryData": "False"}, " ".join(map(str, VOXELS.ravel())).encode(), "not_an_image"),
}  # fmt: skip
NRRD_FAULTS = {
    "cut stream": ({"encoding": "gzip"}, gzip.compress(RAW)[:-3000], "truncated"),
    "stream of a part": ({"encoding": "gzip"}, gzip.compress(RAW[:5000]), "truncated"),
    "stream of more": ({"encoding": "gzip"}, gzip.compress(RAW + RAW), "corrupt"),
    "more behind": ({}, RAW + RAW, "corrupt"),
    "too little": ({}, RAW[:5000], "truncated"),
    "no voxel size": ({"space directions": None, "space": None, "space origin": None}, RAW, "spacing_invalid"),
    "an axis without": ({"space directions": "(1.5,0,0) (0,1.5,0) none"}, RAW, "spacing_invalid"),
    "another encoding": ({"encoding": "bzip2"}, RAW, "not_an_image"),
    "no byte order": ({"endian": None}, RAW, "not_an_image"),
}


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("fault", META_FAULTS)
def test_metaimages_that_are_not_whole_are_refused(tmp_path, fault, kind):
    fields, data, code = META_FAULTS[fault]
    with pytest.raises(CaseError, match=f"^{kind}_{code}: "):
        read_scan(written(tmp_path / "a.mha", META | fields, data), kind)


@pytest.mark.parametrize("fault", NRRD_FAULTS)
def test_nrrd_files_that_are_not_whole_are_refused(tmp_path, fault):
    fields, data, code = NRRD_FAULTS[fault]
    with pytest.raises(CaseError, match=f"^image_{code}: "):
        read_scan(written(tmp_path / "a.nrrd", NRRD | fields, data), "image")


SOUND = {
    "a.mha": [({}, RAW), ({"CompressedData": "True"}, PACKED), ({"CompressedData": "True"}, gzip.compress(RAW)),
              ({"CompressedData": "True", "CompressedDataSize": "200"}, PACKED), ({}, RAW + bytes(100)),
              ({"BinaryDataByteOrderMSB": "True"}, VOXELS.byteswap().tobytes())],
    "a.nrrd": [({}, RAW), ({"encoding": "gz"}, gzip.compress(RAW)), ({"endian": "big"}, VOXELS.byteswap().tobytes()),
               ({"byte skip": "100"}, b"x" * 100 + RAW), ({"byte skip": "-1"}, b"x" * 100 + RAW),
               ({"dimension": "4", "sizes": "1 24 20 16", "kinds": "list domain domain domain",
                 "space directions": "none (1.5,0,0) (0,1.5,0) (0,0,3)"}, RAW)],
}  # fmt: skip


@pytest.mark.parametrize(("name", "number"), [(name, i) for name, some in SOUND.items() for i in range(len(some))])
def test_whole_files_are_read_as_they_are(tmp_path, name, number):
    fields, data = SOUND[name][number]
    scan = read_scan(written(tmp_path / name, (META if name == "a.mha" else NRRD) | fields, data), "image")
    np.testing.assert_array_equal(scan.stored, VOXELS)
    assert scan.geometry.spacing == (1.5, 1.5, 3.0)
    assert not scan.warnings


@pytest.mark.parametrize(
    ("name", "fields"),
    [("a.mha", {"TransformMatrix": None}), ("a.nrrd", {"space": "3D-right-handed"}),
     ("a.nrrd", {"space": "scanner-xyz"}),
     ("a.nrrd", {"space": None, "space directions": None, "space origin": None, "spacings": "1.5 1.5 3"})],
)  # fmt: skip
def test_headers_that_do_not_say_where_left_is_are_told(tmp_path, name, fields):
    path = written(tmp_path / name, (META if name == "a.mha" else NRRD) | fields, RAW)
    assert [code for code, _ in read_scan(path, "image").warnings] == ["image_orientation_unknown"]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
def test_a_file_far_longer_than_its_header_says_is_not_read(tmp_path, name):
    """A sparse file takes no room on the disk, and all memory there is."""
    path = tmp_path / name
    if ".nii" in name:
        save(path, ct_values())
    else:
        written(path, META if name == "a.mha" else NRRD, RAW)
    with path.open("r+b") as handle:
        handle.truncate(2 * LARGE)
    for ask in (ScanFile(path, "image").sha256, ScanFile(path, "image").scan):
        tracemalloc.start()
        with pytest.raises(CaseError, match=r"image_corrupt: .*, where the header says \d+"):
            ask()
        assert tracemalloc.get_traced_memory()[1] < LARGE / 8
        tracemalloc.stop()


def test_lines_that_end_as_on_windows_do_not_shift_the_voxels(tmp_path):
    path = written(tmp_path / "a.mha", META, RAW)
    header, local, voxels = path.read_bytes().partition(b"LOCAL\n")
    path.write_bytes((header + local).replace(b"\n", b"\r\n") + voxels)
    np.testing.assert_array_equal(read_scan(path, "image").stored, VOXELS)
