"""The header of one DICOM file of a slice: what of it is read, and what it lacks."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from labelloop.inference.dicom_elements import is_whole

NO_VOLUMES = {
    "localizer": re.compile("LOCALIZER|SCOUT|TOPOGRAM"),
    "projection": re.compile(
        "(?<![A-Z])(M(AX|IN)?_?IP|MNIP|PROJECTION IMAGE|CURVED(_MPR)?|(VOLUME|SURFACE)_RENDER|VRT)(?![A-Z])"
    ),
}
"""Series that are no volume of the patient, by words of ImageType and VolumeBasedCalculationTechnique (PS3.3,
C.8.16.2.1.3). The brightest or darkest voxel along a ray lies at any depth."""
PARTS = {
    "0020|0012": "AcquisitionNumber",
    "0020|0100": "TemporalPositionIdentifier",
    "0018|0086": "EchoNumbers",
    "0018|0081": "EchoTime",
    "0018|9087": "DiffusionBValue",
}
"""Tags that tell the phases, echoes and time points of a series from each other."""
PLACE = {
    "0028|0030": ("PixelSpacing", 2),
    "0020|0037": ("ImageOrientationPatient", 6),
    "0020|0032": ("ImagePositionPatient", 3),
}
"""Tags that say where a slice lies, and how many numbers each holds; where one is missing, ITK makes it up."""
ALIKE = {"0010|0020": "PatientID", "0020|0052": "FrameOfReferenceUID", "0028|0004": "PhotometricInterpretation"}
SERIES_NUMBER = "0020|0011"
SERIES_TIME = ("0008|0021", "0008|0031")
"""Date and time at which a series began, as digits."""
KIND = ("0008|0008", "0008|9207")
RESCALE = "0028|1052"


@dataclass(frozen=True)
class Slice:
    """The header of one image file. Positions, directions (LPS, mm) and ``pixel_type`` are ITK's."""

    file: Path
    series: str
    description: str
    kind: str
    modality: str
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]
    position: tuple[float, ...]
    number: str
    thickness: float
    storage: str = ""
    pixel_type: int = 0
    series_number: float = math.nan
    series_time: str = ""
    lacking: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    alike: dict[str, str] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """How many slices the file holds."""
        return self.size[2] if len(self.size) > 2 else 1

    @property
    def no_volume(self) -> str:
        """Which of :data:`NO_VOLUMES` it is; empty for a slice of a volume."""
        return next((what for what, words in NO_VOLUMES.items() if words.search(self.kind.upper())), "")

    @property
    def normal(self) -> np.ndarray:
        """Unit vector at right angles to the slice."""
        return np.asarray(self.direction).reshape(3, 3)[:, 2]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ITK from printing warnings of its own; what they say is said in our words."""
    import SimpleITK as sitk

    shown_before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown_before)


def read_header(file: Path) -> Slice | None:
    """Read the header of one DICOM file; None when it holds no image, or less than it says."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        if not is_whole(file):
            return None
        with quiet():
            reader.ReadImageInformation()
    except (RuntimeError, OSError):
        return None
    keys = set(reader.GetMetaDataKeys())

    def tag(key: str) -> str:
        return reader.GetMetaData(key).strip().strip("\0") if key in keys else ""

    return Slice(
        file, tag("0020|000e"), tag("0008|103e"), "\\".join(map(tag, KIND)), tag("0008|0060"), reader.GetSize(),
        reader.GetSpacing(), reader.GetDirection(), reader.GetOrigin(), tag("0020|0013"),
        number_in(tag("0018|0050")), tag("0008|0016"), reader.GetPixelIDValue(),
        number_in(tag(SERIES_NUMBER)), "".join(map(tag, SERIES_TIME)), _lacking(tag),
        {name: tag(key) for key, name in PARTS.items() if tag(key)},
        {name: tag(key) for key, name in ALIKE.items()} | {"rescaling": "with" if tag(RESCALE) else "without"},
    )  # fmt: skip


def number_in(text: str) -> float:
    """Return the number in a text; NaN where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _lacking(tag: Callable[[str], str]) -> str:
    """Return the first name in :data:`PLACE` that a header does not give; empty when it gives all."""
    return next((name for key, (name, count) in PLACE.items() if not _holds_numbers(tag(key), count)), "")


def _holds_numbers(text: str, count: int) -> bool:
    """Say whether a tag holds so many numbers, not all of them 0."""
    numbers = [number_in(part) for part in text.split("\\")]
    return len(numbers) == count and all(map(math.isfinite, numbers)) and (any(numbers) or count == 3)
