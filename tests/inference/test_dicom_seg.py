"""DICOM segmentations lie where the organs lie: held against places in the patient, read by pydicom and by dcmqi."""

import json
import logging
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedMRImage
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from scipy.spatial.transform import Rotation
from tiny_dicom import body_hu
from tiny_dicom import write_series as write_bytes
from tiny_models import save_model, tiny_plan

from labelloop.base.classes import load_classes
from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import write_json
from labelloop.images.volume import Geometry, Volume, read, write
from labelloop.inference.dicom import read_dicom
from labelloop.inference.dicom_seg import SIDES, Segmentations
from labelloop.inference.infer import infer
from labelloop.inference.reading import InputImage
from strategies import few

FLARE = load_classes("flare")
IDS = {"liver": 1, "spleen": 3}
ORGANS = {"liver": ((-9, 6, -8), (9, 7, 8)), "spleen": ((8, -5, 7), (5, 6, 4))}
"""Middle and half axes (mm) of what lies in the patient, in LPS from the middle of the volume."""
MR_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
AXIAL, SAGITTAL, CORONAL = ((1, 0, 0), (0, 1, 0)), ((0, 1, 0), (0, 0, -1)), ((1, 0, 0), (0, 0, -1))


@dataclass
class Series:
    """Slices in a patient: their axes (along a row, along a column, from slice to slice), pixel sizes and places."""

    axes: np.ndarray
    spacing: np.ndarray
    first: np.ndarray
    shape: tuple[int, int, int] = (14, 18, 16)

    def points(self) -> np.ndarray:
        """Return the place of each voxel [slice, row, column, 3] in LPS mm."""
        index = np.moveaxis(np.indices(self.shape), 0, -1)[..., ::-1]  # column, row, slice
        return self.first + (index * self.spacing) @ self.axes

    def index(self, points: np.ndarray) -> np.ndarray:
        """Return slice, row and column of places, which are those of voxels."""
        found = (points - self.first) @ self.axes.T / self.spacing
        np.testing.assert_allclose(found, np.rint(found), atol=0.01)
        return np.rint(found).astype(int)[:, ::-1]

    def organ(self, name: str) -> np.ndarray:
        """Return the voxels whose middles lie in an organ."""
        middle, half = map(np.asarray, ORGANS[name])
        points = self.points()
        return (((points - points.mean(axis=(0, 1, 2)) - middle) / half) ** 2).sum(axis=-1) < 1


def series(row=(1, 0, 0), column=(0, 1, 0), turn=None, up=1, spacing=(2.0, 2.5, 3.0), first=(-31.5, 20.25, -410.0)):
    """Return a series; ``turn``: degrees about three axes; ``up``: -1 for slices stored against their normal."""
    axes = np.array([row, column, up * np.cross(row, column)], float)
    if turn is not None:
        axes = axes @ Rotation.from_euler("xyz", turn, degrees=True).as_matrix().T
    return Series(axes, np.asarray(spacing), np.asarray(first, float))


def write_series(folder, made: Series, order=None, **more):
    """Write a series of MR by pydicom, its files and numbers in some ``order`` of the slices."""
    folder.mkdir(parents=True)
    values = np.full(made.shape, 100, np.uint16)
    for number, name in enumerate(ORGANS, start=1):
        values[made.organ(name)] = 100 + 400 * number
    for number, k in enumerate(range(made.shape[0]) if order is None else order):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_.SOPClassUID, slice_.SOPInstanceUID = MR_STORAGE, f"1.2.3.4.{k + 1}"
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.9"
        slice_.Modality, slice_.PatientID, slice_.PatientName = "MR", "p1", "Doe^J"
        slice_.SeriesNumber, slice_.InstanceNumber = 4, number + 1
        slice_.ImagePositionPatient = [f"{v:.8g}" for v in made.points()[k, 0, 0]]
        slice_.ImageOrientationPatient = [f"{v:.8f}" for v in (*made.axes[0], *made.axes[1])]
        slice_.PixelSpacing = [made.spacing[1], made.spacing[0]]  # from row to row first
        slice_.SliceThickness = made.spacing[2]
        slice_.Rows, slice_.Columns = made.shape[1:]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 0
        slice_.PixelData = values[k].tobytes()
        for key, value in more.items():
            setattr(slice_, key, value)
        slice_.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    return folder


def segmented(folder, out, scheme=FLARE) -> tuple[Dataset, Volume]:
    """Return the segmentation of a series whose organs are known by their intensities, and the label map."""
    volume = read_dicom(folder)
    labels = Volume(np.select([volume.array == 500, volume.array == 900], [1, 3]).astype(np.uint8), volume.geometry)
    case = InputImage("p", folder, "MR")
    write(out / "p.nii.gz", labels.array, labels.geometry)
    writer = Segmentations(out, scheme)
    writer.begin([case], IDS)
    writer.write(case, labels)
    assert not writer.lacks(case)
    return pydicom.dcmread(out / "dicom_seg" / "p.dcm"), labels


def read_segments(found: Dataset) -> dict[str, np.ndarray]:
    """Return the place of each voxel of each segment by its name: what the standard says, and nothing of labelloop."""
    names = {s.SegmentNumber: s.SegmentLabel for s in found.SegmentSequence}
    shared = found.SharedFunctionalGroupsSequence[0]
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    points: dict[str, list[np.ndarray]] = {name: [] for name in names.values()}
    for frame, about in zip(found.pixel_array, found.PerFrameFunctionalGroupsSequence, strict=True):
        holder = about if "PlaneOrientationSequence" in about else shared
        cosines = np.array(holder.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        corner = np.array(about.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        places = corner + np.outer(columns * between_columns, cosines[:3]) + np.outer(rows * between_rows, cosines[3:])
        points[names[about.SegmentIdentificationSequence[0].ReferencedSegmentNumber]].append(places)
    return {name: np.concatenate(some) for name, some in points.items()}


def places_of(labels: Volume, value: int) -> np.ndarray:
    """Return the place of each voxel of a class of a label map, by its header."""
    g = labels.geometry
    index = np.argwhere(labels.array == value)[:, ::-1] * np.asarray(g.spacing)
    return np.asarray(g.origin) + index @ np.asarray(g.direction).reshape(3, 3).T


def check_places(made: Series, found: Dataset, labels: Volume) -> None:
    """Segments, label map and patient agree in every voxel."""
    segments = read_segments(found)
    assert sorted(segments) == sorted(ORGANS)
    for name, points in segments.items():
        truth = made.organ(name)
        assert truth.any()
        for places in (points, places_of(labels, IDS[name])):
            there = np.zeros(made.shape, int)
            np.add.at(there, tuple(made.index(places).T), 1)
            np.testing.assert_array_equal(there, truth)


SERIES = {
    "axial": series(*AXIAL),
    "sagittal": series(*SAGITTAL),
    "coronal": series(*CORONAL),
    "from head to foot": series(*AXIAL, up=-1),
    "sagittal, from left to right": series(*SAGITTAL, up=-1),
    "rows flipped": series((-1, 0, 0), (0, 1, 0)),
    "columns flipped": series((1, 0, 0), (0, -1, 0)),
    "lying on the face": series((-1, 0, 0), (0, -1, 0)),
    "rows are columns": series((0, 1, 0), (1, 0, 0)),
    "oblique": series(*AXIAL, turn=(17, -8, 31)),
    "oblique, coronal, flipped": series(*CORONAL, turn=(-12, 21, 5), up=-1),
}


@pytest.mark.parametrize("kind", SERIES)
def test_a_segmentation_lies_where_the_organs_lie(tmp_path, kind):
    folder = write_series(tmp_path / "in", SERIES[kind])
    check_places(SERIES[kind], *segmented(folder, tmp_path / "out"))


@pytest.mark.parametrize("kind", SERIES)
def test_dcmqi_reads_it_where_the_organs_lie(tmp_path, kind):
    """dcmqi stands on DCMTK and ITK: it shares no code with what writes the segmentation, and is in 3D Slicer."""
    dcmqi = pytest.importorskip("dcmqi", reason="dcmqi is not installed (pip install labelloop[dev])")
    made, out = SERIES[kind], tmp_path / "out"
    segmented(write_series(tmp_path / "in", made), out)
    program = Path(dcmqi.__file__).parent / "bin" / "segimage2itkimage"
    asked = ["--inputDICOM", out / "dicom_seg" / "p.dcm", "--outputDirectory", tmp_path, "--outputType", "nii"]
    subprocess.run([program, *asked], check=True, capture_output=True, timeout=60)
    about = [segment for (segment,) in json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"]]
    assert sorted(segment["SegmentLabel"] for segment in about) == sorted(ORGANS)
    for number, segment in enumerate(about, start=1):
        read_back = nib.load(tmp_path / f"{number}.nii.gz")
        voxels = np.argwhere(np.asarray(read_back.dataobj) == segment["labelID"])
        places = nib.affines.apply_affine(read_back.affine, voxels) * (-1, -1, 1)  # NIfTI's RAS to LPS
        there = np.zeros(made.shape, int)
        np.add.at(there, tuple(made.index(places).T), 1)
        np.testing.assert_array_equal(there, made.organ(segment["SegmentLabel"]))


@few()
@given(
    axes=st.permutations([0, 1, 2]), signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    turn=st.tuples(*[st.integers(-40, 40)] * 3), spacing=st.tuples(*[st.sampled_from([1.25, 2.0, 2.5])] * 3),
    order=st.permutations(range(14)),
)  # fmt: skip
def test_it_does_so_however_a_series_is_stored(tmp_path_factory, axes, signs, turn, spacing, order):
    row, column, _ = (np.eye(3)[axis] * sign for axis, sign in zip(axes, signs, strict=True))
    made = series(row, column, turn=turn, up=signs[2], spacing=spacing)
    place = tmp_path_factory.mktemp("series")
    check_places(made, *segmented(write_series(place / "in", made, order), place / "out"))


def write_many(folder: Path, made: Series) -> Path:
    """Write a series as one file of many frames; return it."""
    given = {"PatientBirthDate": "", "PatientSex": "", "StudyID": "", "StudyDate": "", "StudyTime": "",
             "AccessionNumber": "", "ReferringPhysicianName": "", "ImageType": ["ORIGINAL", "PRIMARY", "M"],
             "AcquisitionNumber": 1}  # fmt: skip
    one = write_series(folder / "one", made, **given)
    slices = [pydicom.dcmread(file) for file in sorted(one.iterdir())]
    about = {"series_instance_uid": "1.2.7", "series_number": 3, "sop_instance_uid": "1.2.7.1", "instance_number": 1}
    file = folder / "many" / "all.dcm"
    file.parent.mkdir()
    LegacyConvertedEnhancedMRImage(slices, **about).save_as(file)
    return file


@pytest.mark.parametrize("kind", ["axial", "from head to foot", "oblique, coronal, flipped"])
def test_it_does_so_where_one_file_holds_all_slices(tmp_path, kind):
    """ITK may read its frames from head to foot, on axes that are left-handed."""
    file = write_many(tmp_path, SERIES[kind])
    check_places(SERIES[kind], *segmented(file.parent, tmp_path / "out"))


def beyond(places: list[list[float]]) -> list[float]:
    """Return the place that would come next."""
    return [2 * last - before for before, last in zip(*places[-2:], strict=True)]


FRAMES = {
    "two echoes": (lambda places: places[:7] * 2, "dicom_phases"),
    "one missing": (lambda places: [*places[:7], *places[8:], beyond(places)], "dicom_irregular_slices"),
    "another order": (lambda places: [*places[::2], *places[1::2]], "dicom_irregular_slices"),
    "no place": (lambda places: None, "dicom_no_geometry"),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_slices_of_one_file_that_are_no_volume_are_refused(tmp_path, kind):
    """ITK stacks the frames of a file as they come, whatever places they say."""
    file = write_many(tmp_path, SERIES["axial"])
    assert read_dicom(file.parent).array.shape == SERIES["axial"].shape
    one, (change, code) = pydicom.dcmread(file), FRAMES[kind]
    about = one.PerFrameFunctionalGroupsSequence
    made = change([list(frame.PlanePositionSequence[0].ImagePositionPatient) for frame in about][: len(about)])
    for number, frame in enumerate(about):
        if made is None:
            del frame.PlanePositionSequence
        else:
            frame.PlanePositionSequence[0].ImagePositionPatient = made[number % len(made)]
    one.save_as(file)
    with pytest.raises(CaseError, match=code):
        read_dicom(file.parent)


@pytest.mark.parametrize("key", ["RescaleSlope", "RescaleIntercept"])
def test_slices_of_one_file_that_are_scaled_differently_are_refused(tmp_path, key):
    """ITK scales all of them as the first."""
    file = write_many(tmp_path, SERIES["axial"])
    one = pydicom.dcmread(file)
    shared = one.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    del one.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for number, frame in enumerate(one.PerFrameFunctionalGroupsSequence):
        frame.PixelValueTransformationSequence = deepcopy(shared)
        setattr(frame.PixelValueTransformationSequence[0], key, f"{1 + number / 10:g}")
    one.save_as(file)
    with pytest.raises(CaseError, match=f"dicom_mixed: .*{key} is 1, 1.1"):
        read_dicom(file.parent)


@pytest.mark.parametrize("key", ["StudyInstanceUID", "SOPInstanceUID"])
def test_images_without_names_have_no_segmentation(tmp_path, key):
    folder = write_series(tmp_path / "in", series())
    for file in folder.iterdir():
        slice_ = pydicom.dcmread(file)
        del slice_[key]
        slice_.save_as(file)
    with pytest.raises(CaseError, match=f"dicom_seg_headers: .*{key}"):
        segmented(folder, tmp_path / "out")


def test_segments_have_the_names_and_codes_of_the_class_scheme(tmp_path):
    found, _ = segmented(write_series(tmp_path / "in", series()), tmp_path / "out")
    said = [(s.SegmentLabel, s.SegmentedPropertyTypeCodeSequence[0].CodeValue, s.SegmentAlgorithmType)
            for s in found.SegmentSequence]  # fmt: skip
    assert said == [("liver", "10200004", "AUTOMATIC"), ("spleen", "78961009", "AUTOMATIC")]
    assert (found.PatientID, found.StudyInstanceUID, found.Modality) == ("p1", "1.2.3", "SEG")
    assert found.FrameOfReferenceUID == "1.2.9" and found.SegmentationType == "BINARY"
    referenced = {i.ReferencedSOPInstanceUID for i in found.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {f"1.2.3.4.{k + 1}" for k in range(14)}


def test_sides_and_diseases_are_coded_and_a_class_without_a_code_goes_by_its_name(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules[__name__], "IDS", {"left_kidney": 1, "a_mesh_of_the_abdominal_wall": 3})
    found, _ = segmented(write_series(tmp_path / "a", series()), tmp_path / "1")
    kidney, mesh = found.SegmentSequence
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    own = mesh.SegmentedPropertyTypeCodeSequence[0]
    assert (own.CodingSchemeDesignator, own.CodeMeaning) == ("99LABELLOOP", "a mesh of the abdominal wall")
    assert mesh.SegmentLabel == "a_mesh_of_the_abdominal_wall" and "a_mesh_of_the_abdominal_wall" in caplog.text
    monkeypatch.setattr(sys.modules[__name__], "IDS", {"tumor": 1})
    (tumor,) = segmented(write_series(tmp_path / "b", series()), tmp_path / "2")[0].SegmentSequence
    assert tumor.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"


def test_the_codes_of_the_built_in_classes_are_those_of_dicom():
    for info in FLARE.classes:
        known = getattr(codes.SCT, "".join(word.capitalize() for word in info.code.meaning.split()))
        assert known.value == str(info.code.sct)
        side = next((side for side in SIDES if info.name.startswith(side)), None)
        assert info.code.side == side
    for value, meaning in SIDES.values():
        assert getattr(codes.SCT, meaning).value == str(value)


def test_a_series_without_what_anonymizers_remove_has_a_segmentation(tmp_path):
    removed = dict.fromkeys(["PatientID", "PatientName"], None)
    folder = write_series(tmp_path / "in", SERIES["coronal"], **removed)
    for file in folder.iterdir():
        slice_ = pydicom.dcmread(file)
        for key in (*removed, "FrameOfReferenceUID"):
            del slice_[key]
        slice_.save_as(file)
    check_places(SERIES["coronal"], *segmented(folder, tmp_path / "out"))


@pytest.mark.parametrize("moved", ["origin", "direction", "slices"])
def test_a_label_map_that_lies_elsewhere_is_refused(tmp_path, moved):
    folder = write_series(tmp_path / "in", series())
    volume = read_dicom(folder)
    g, array = volume.geometry, np.ones_like(volume.array, np.uint8)
    other = {
        "origin": Geometry(g.size, g.spacing, (g.origin[0] + 3, *g.origin[1:]), g.direction),
        "direction": Geometry(g.size, g.spacing, g.origin, tuple(-np.asarray(g.direction))),
        "slices": Geometry((*g.size[:2], g.size[2] - 1), g.spacing, g.origin, g.direction),
    }[moved]
    labels = Volume(array[: other.size[2]], other)
    (tmp_path / "out").mkdir()
    write(tmp_path / "out" / "p.nii.gz", labels.array, other)
    writer, case = Segmentations(tmp_path / "out", FLARE), InputImage("p", folder, "MR")
    writer.begin([case], IDS)
    with pytest.raises(CaseError, match="dicom_seg_place"):
        writer.write(case, labels)
    assert not (tmp_path / "out" / "dicom_seg" / "p.dcm").exists()


def test_a_case_in_which_nothing_is_found_has_no_segmentation(tmp_path, caplog):
    folder, out = write_series(tmp_path / "in", series()), tmp_path / "out"
    _, labels = segmented(folder, out)
    nothing = Volume(np.zeros_like(labels.array), labels.geometry)
    write(out / "p.nii.gz", nothing.array, nothing.geometry)
    writer, case = Segmentations(out, FLARE), InputImage("p", folder, "MR")
    writer.begin([case], IDS)
    writer.write(case, nothing)
    assert not (out / "dicom_seg" / "p.dcm").exists() and "no class was found" in caplog.text


def test_infer_writes_segmentations_beside_label_maps(tmp_path, caplog):
    model_folder = save_model(tmp_path / "tiny", tiny_plan(spacing_mm=(5.0, 4.0, 4.0)))
    write_bytes(tmp_path / "in" / "P1", body_hu(), series="1.2.3.7")
    write(tmp_path / "in" / "scan.nii.gz", body_hu().astype(np.int16), Geometry((20, 16, 30), (4.0, 4.0, 5.0)))
    options = {"device": "cpu", "dicom_seg": True, "scheme": FLARE}
    assert infer(tmp_path / "in", model_folder, tmp_path / "out", **options) == 0
    assert any("1 case without a DICOM segmentation, no DICOM: scan" in line for line in caplog.messages)
    file, labels = tmp_path / "out" / "dicom_seg" / "P1.dcm", read(tmp_path / "out" / "P1.nii.gz")
    segments = read_segments(pydicom.dcmread(file))
    assert segments
    for name, places in segments.items():
        own = places_of(labels, FLARE.ids[name])
        assert sorted(map(tuple, np.round(places, 2))) == sorted(map(tuple, np.round(own, 2)))
    written = file.stat().st_mtime_ns
    assert infer(tmp_path / "in", model_folder, tmp_path / "out", **options) == 0
    assert file.stat().st_mtime_ns == written
    file.unlink()
    assert infer(tmp_path / "in", model_folder, tmp_path / "out", **options) == 0 and file.is_file()
    write_json(file, {})
    (tmp_path / "out" / "shards" / ".infer.names").write_text("P1.nii.gz\nscan.nii.gz\n")
    with pytest.raises(UserError, match="labelloop did not write it"):
        infer(tmp_path / "in", model_folder, tmp_path / "out", **options)


def test_a_series_without_a_segmentation_does_not_stop_those_after_it(tmp_path):
    """Also where the label maps were finished before."""
    model_folder = save_model(tmp_path / "tiny", tiny_plan(spacing_mm=(5.0, 4.0, 4.0)))
    for number, name in enumerate(("P1", "P2"), start=7):
        write_bytes(tmp_path / "in" / name, body_hu(), series=f"1.2.3.{number}")
    for file in (tmp_path / "in" / "P1").iterdir():
        slice_ = pydicom.dcmread(file, force=True)
        slice_.StudyInstanceUID = ""
        slice_.save_as(file)
    options, out = {"device": "cpu", "scheme": FLARE}, tmp_path / "out"
    assert infer(tmp_path / "in", model_folder, out, **options) == 0
    for _ in range(2):
        assert infer(tmp_path / "in", model_folder, out, dicom_seg=True, **options) == 1
        assert {file.name for file in out.rglob("P?.*")} == {"P1.nii.gz", "P2.nii.gz", "P2.dcm"}
        assert "dicom_seg_headers" in (out / "shards" / "infer.csv").read_text()
    assert infer(tmp_path / "in", model_folder, out, **options) == 0


def test_what_is_lacking_is_said_before_anything_is_computed(tmp_path, model_folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path / "in" / "a.nii.gz", body_hu().astype(np.int16), Geometry((20, 16, 30), (4.0, 4.0, 5.0)))
    options = {"device": "cpu", "dicom_seg": True}
    with pytest.raises(UserError, match="need a class scheme"):
        infer(tmp_path / "in", model_folder, tmp_path / "out", **options)
    with pytest.raises(UserError, match="none of the images is a DICOM series"):
        infer(tmp_path / "in", model_folder, tmp_path / "out", scheme=FLARE, **options)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UserError, match="pip install highdicom"):
        infer(tmp_path / "in", model_folder, tmp_path / "out", scheme=FLARE, **options)
