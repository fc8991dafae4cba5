"""DICOM segmentations of label maps of DICOM series, written by highdicom: ``labelloop infer --dicom-seg``.

A segment lies where its slices lie: each slice of a label map goes with the source image at the same place in the
patient, found by coordinates, never by its number in the series or in the file's name.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labelloop import __version__
from labelloop.base.classes import ClassScheme, Code
from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import atomic, digest
from labelloop.base.outputs import claim, claims, refuse_overwriting
from labelloop.base.wording import count, named, plain
from labelloop.images.volume import Volume
from labelloop.inference.dicom import choose, in_order
from labelloop.inference.reading import InputImage

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from highdicom.sr.coding import CodedConcept
    from pydicom import Dataset

log = logging.getLogger(__name__)

FOLDER = "dicom_seg"
INSTALL = "--dicom-seg needs highdicom: pip install highdicom"
SAME_PLACE = 0.5
"""Largest distance of a slice of the label map from its source image, as a part of a voxel."""
SAME_DIRECTION = 1e-3
"""Largest difference of the direction cosines of label map and source image."""
ANATOMICAL, ABNORMAL, TISSUE = (
    (123037004, "Anatomical Structure"),
    (49755003, "Morphologically Abnormal Structure"),
    (85756007, "Tissue"),
)
"""Categories of segments (DICOM PS3.16, CID 7150)."""
SIDES = {"left": (7771000, "Left"), "right": (24028007, "Right")}
"""Modifiers of a segment's type (CID 244)."""
PRIVATE = "99LABELLOOP"
"""Coding scheme of classes whose scheme gives no SNOMED code; those of one's own begin with 99 (PS3.16, 8)."""
NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Elements that every image has, though they may be empty (type 2); anonymizers remove them."""
REASONS = {
    "dicom_seg_headers": "Export the series again with these, or ask for a label map alone.",
    "dicom_seg_place": "Export the series again, or ask for a label map alone.",
}
"""What to do about each reason code of this module."""


class Segmentations:
    """Writes ``dicom_seg/<case>.dcm`` beside the label maps of cases that are DICOM series.

    One segment for each class that was found, binary, named and coded as the class scheme says. A case in which
    nothing was found has no file: there is no segmentation without a segment.
    """

    def __init__(self, out: Path, scheme: ClassScheme):
        """Args: ``out`` is the folder of label maps. Raises UserError when highdicom is not installed."""
        try:
            import highdicom  # noqa: F401
        except ImportError:
            raise UserError(INSTALL) from None
        self._out, self._scheme, self._class_ids = out, scheme, dict[str, int]()

    def begin(self, cases: Iterable[InputImage], class_ids: Mapping[str, int]) -> None:
        """Take note of the classes, and of the files that will be written as labelloop's own.

        Raises:
            UserError: when no case is a DICOM series, or a file is not labelloop's.
        """
        self._class_ids = dict(class_ids)
        cases = list(cases)
        series = [case.case for case in cases if case.image.is_dir()]
        if not series:
            raise UserError("--dicom-seg: none of the images is a DICOM series, to which a segmentation could refer")
        if len(series) < len(cases):
            others = [case.case for case in cases if case.case not in set(series)]
            log.warning("%s without a DICOM segmentation, no DICOM: %s", count(len(others), "case"), named(others))
        uncoded = [name for name in class_ids if self._code(name) is None]
        if uncoded:
            log.warning(
                "no SNOMED code in class scheme %s (`code`), so other programs know these segments by name alone: %s",
                self._scheme.name, named(uncoded),
            )  # fmt: skip
        names = [f"{FOLDER}/{case}.dcm" for case in series]
        refuse_overwriting([self._out / name for name in names], [], claims(self._out).__contains__)
        claim(self._out, names)

    def lacks(self, case: InputImage) -> bool:
        """Say whether the segmentation of a finished case is not there, or older than its label map."""
        path, labels = self._out / FOLDER / f"{case.case}.dcm", self._out / f"{case.case}.nii.gz"
        return case.image.is_dir() and not (path.is_file() and path.stat().st_mtime_ns >= labels.stat().st_mtime_ns)

    def write(self, case: InputImage, labels: Volume) -> None:
        """Write the segmentation of a case, from its label map on the grid of its series.

        Raises:
            CaseError: ``dicom_seg_place`` when a slice of the label map lies where no image of the series does, and
                ``dicom_seg_headers`` when the series lacks the names of its images.
        """
        if not self.lacks(case):
            return
        path = self._out / FOLDER / f"{case.case}.dcm"
        found = set(np.unique(labels.array).tolist())
        classes = {name: value for name, value in self._class_ids.items() if value in found}
        if not classes:
            path.unlink(missing_ok=True)
            log.warning("%s: no class was found, so there is no DICOM segmentation of it", case.case)
            return
        segmentation = self._segmentation(case, labels, classes)
        with atomic(path) as temporary:
            segmentation.save_as(temporary)

    def _segmentation(self, case: InputImage, labels: Volume, classes: Mapping[str, int]) -> "Dataset":
        import highdicom
        from pydicom.uid import generate_uid

        sources = _sources(case)
        frames = _frames(case, sources, labels)
        numbers = np.zeros(256, np.uint8)
        for number, value in enumerate(classes.values(), start=1):
            numbers[value] = number
        first = sources[0]
        about = [
            str(first.SeriesInstanceUID),
            digest([classes, hashlib.sha256(labels.array.tobytes()).hexdigest()]),
        ]
        return highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=numbers[frames],
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[self._described(n, name) for n, name in enumerate(classes, start=1)],
            series_instance_uid=generate_uid(entropy_srcs=["series", *about]),
            series_number=1000 + int(first.get("SeriesNumber") or 0),
            sop_instance_uid=generate_uid(entropy_srcs=["instance", *about]),
            instance_number=1,
            manufacturer="labelloop",
            manufacturer_model_name="labelloop infer",
            software_versions=__version__,
            device_serial_number="0",
            series_description="Segmentation by labelloop",
            content_label="SEGMENTATION",
        )

    def _code(self, name: str) -> Code | None:
        return self._scheme[name].code if name in self._scheme.ids else None

    def _described(self, number: int, name: str) -> "SegmentDescription":
        """Return the description of a segment: its name, what it is, and that a program made it."""
        import highdicom
        from pydicom.sr.codedict import codes

        code = self._code(name)
        described = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=_snomed(*_category(code)),
            segmented_property_type=_own(name) if code is None else _snomed(code.sct, code.meaning),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name="labelloop", version=__version__, family=codes.DCM.ArtificialIntelligence
            ),
        )
        if code is not None and code.side:
            kind_of = described.SegmentedPropertyTypeCodeSequence[0]
            kind_of.SegmentedPropertyTypeModifierCodeSequence = [_snomed(*SIDES[code.side])]
        return described


def _category(code: Code | None) -> tuple[int, str]:
    if code is None:
        return TISSUE
    return ABNORMAL if code.abnormal else ANATOMICAL


def _snomed(value: int, meaning: str) -> "CodedConcept":
    from highdicom.sr.coding import CodedConcept

    return CodedConcept(str(value), "SCT", meaning)


def _own(name: str) -> "CodedConcept":
    """Return a code of labelloop's own for a class without one; a long name has a short code."""
    from highdicom.sr.coding import CodedConcept

    return CodedConcept(name if len(name) <= 16 else digest(name), PRIVATE, plain(name)[:64])


def _sources(case: InputImage) -> "list[Dataset]":
    """Return the headers of a series, without pixels; elements that anonymizers remove are empty.

    Raises:
        CaseError: ``dicom_seg_headers``.
    """
    import pydicom
    from pydicom.uid import generate_uid

    slices = in_order(case.image, choose(case.image, case.series))
    sources: list[Dataset] = [pydicom.dcmread(slice_.file, stop_before_pixels=True, force=True) for slice_ in slices]
    lacking = [key for key in NEEDED if not all(source.get(key) for source in sources)]
    if lacking:
        found = f"images that lack {named(lacking)}"
        raise CaseError("dicom_seg_headers", case.case, found, REASONS["dicom_seg_headers"])
    frame_of_reference = generate_uid(entropy_srcs=["frame of reference", str(sources[0].SeriesInstanceUID)])
    for source in sources:
        for key in MAY_BE_EMPTY:
            if key not in source:
                setattr(source, key, None)
        if not source.get("FrameOfReferenceUID"):
            source.FrameOfReferenceUID = frame_of_reference
    return sources


def _frames(case: InputImage, sources: "Sequence[Dataset]", labels: Volume) -> np.ndarray:
    """Return the slices of a label map [frame, y, x] in the order of the source images: those at the same places.

    Raises:
        CaseError: ``dicom_seg_place``.
    """
    g = labels.geometry
    axes = np.asarray(g.direction).reshape(3, 3)
    planes = [(i, f) for i, s in enumerate(sources) for f in range(int(s.get("NumberOfFrames") or 1))]
    if len(planes) != g.size[2]:
        raise _misplaced(case, f"{count(len(planes), 'image')} for {count(g.size[2], 'slice')} of the label map")
    order = []
    for number, frame in planes:
        position, orientation = _place(case, sources[number], frame)
        turned = np.abs(np.concatenate([axes[:, 0], axes[:, 1]]) - orientation).max()
        if turned > SAME_DIRECTION:
            raise _misplaced(case, f"image {number + 1} is turned against the label map")
        index = axes.T @ (position - np.asarray(g.origin)) / np.asarray(g.spacing)
        nearest = round(float(index[2]))
        away = np.abs(index - (0, 0, nearest)).max()
        if away > SAME_PLACE or not 0 <= nearest < g.size[2]:
            raise _misplaced(case, f"image {number + 1} lies {away:.2f} voxels from the nearest slice of the label map")
        order.append(nearest)
    if sorted(order) != list(range(g.size[2])):
        raise _misplaced(case, "two images lie at one slice of the label map")
    return labels.array[order]


def _place(case: InputImage, source: "Dataset", frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Return position (mm) and orientation (six cosines) of an image, or of a frame of one with many frames."""
    if "NumberOfFrames" in source:
        inside = source.get("PerFrameFunctionalGroupsSequence")
        places = [*([inside[frame]] if inside else []), *(source.get("SharedFunctionalGroupsSequence") or [])]
        position = _first(places, "PlanePositionSequence", "ImagePositionPatient")
        orientation = _first(places, "PlaneOrientationSequence", "ImageOrientationPatient")
    else:
        position, orientation = source.get("ImagePositionPatient"), source.get("ImageOrientationPatient")
    if not position or not orientation:
        raise _misplaced(case, "images that do not say where they lie")
    return np.asarray(position, float), np.asarray(orientation, float)


def _first(places: "Sequence[Dataset]", sequence: str, key: str) -> Any:
    return next((place[sequence][0][key].value for place in places if sequence in place), None)


def _misplaced(case: InputImage, found: str) -> CaseError:
    return CaseError("dicom_seg_place", case.case, found, REASONS["dicom_seg_place"])
