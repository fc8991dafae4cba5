"""The images to segment: each file is read once for both its hash and its voxels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labelloop.base.errors import CaseError
from labelloop.images.scan import ScanFile, check_values, checked_image, content_key, joined, tell_warnings
from labelloop.images.volume import Volume, blame_machine
from labelloop.inference.dicom import fingerprint, read_dicom

OF_OTHERS = "MR"
"""Modality as which the channels after the first are checked: nothing is known of their unit."""


@dataclass(frozen=True)
class PreparedFile:
    """A prepared image (:mod:`labelloop.inference.prepared`) and its content hash."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class InputImage:
    """An image to segment. ``image`` is a file, or a folder with a DICOM series.

    ``more``: the files of its other channels, where it has several.
    ``series``: number or UID of the series to take of a folder; empty: the only one.
    ``upside_down``: whether it is stored so; None: nobody knows, and models that want upright images let CT, and MR
    of a ``sequence`` that can tell, be judged.
    ``prepared``: the image as the plan of the one model that segments it prepares it; ``image`` itself is not read
    then, and no preview drawn.
    """

    case: str
    image: Path
    modality: str = "CT"
    image_sha256: str = ""
    upside_down: bool | None = None
    sequence: str = ""
    series: str = ""
    prepared: PreparedFile | None = None
    more: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all channels, or the folder."""
        return (self.image, *self.more)


class Image:
    """An image file for each channel, or a folder with a DICOM series. A file is read from disk once.

    Args:
        series, more: see :class:`InputImage`.
        surveyed: see :class:`~labelloop.images.scan.ScanFile`.
    """

    def __init__(self, path: str | Path, series: str = "", surveyed: bool = False, more: Sequence[str | Path] = ()):
        self.path = Path(path)
        self._series = series
        files = [] if self.path.is_dir() else [self.path, *more]
        self._files = [ScanFile(file, "image", surveyed) for file in files]

    @classmethod
    def of(cls, case: InputImage) -> "Image":
        """Return the image of a case; the survey noted the hash of those that it found good."""
        return cls(case.image, case.series, bool(case.image_sha256), case.more)

    def sha256(self) -> str:
        """Return the sha256 of the file (of header and voxels), or a fingerprint of the series of a folder.

        Of several channels: a fingerprint of their files.
        """
        if self._files:
            return content_key([file.sha256() for file in self._files])
        return fingerprint(self.path, self._series)

    def volume(self, modality: str) -> Volume:
        """Return the volume, once it is checked as the survey does. Forgets the bytes, so ask for it once.

        Raises:
            CaseError: when the file, or what is in it, is no 3-D image that can be used.
            OSError, MemoryError: when the disk or memory is at fault.
        """
        if self._files:
            first, *more = self._files
            whole = checked_image(first.scan(), modality)
            return joined(
                (first.path, whole), ((file.path, checked_image(file.scan(), OF_OTHERS, first=False)) for file in more)
            )
        try:
            volume = read_dicom(self.path, self._series, modality)
        except RuntimeError as error:  # ITK's only one; its last line says what happened
            blame_machine(self.path, error)
            found = str(error).strip().splitlines()[-1]
            raise CaseError("image_unreadable", str(self.path), found, "Copy or export it again.") from error
        tell_warnings(self.path, check_values(volume.array, modality, self.path))
        return volume
