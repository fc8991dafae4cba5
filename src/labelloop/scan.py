"""Scans: one image or label file read whole, with every reason not to trust the file itself.

ITK reads much in silence: a ``.nii.gz`` cut in half comes back filled up, a voxel size of zero becomes 1 mm, a sheared
sform is replaced by the qform. So NIfTI bytes and headers are checked here, with nibabel, before ITK says where the
grid lies.
"""

import gzip
import hashlib
import io
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.spatialimages import HeaderDataError

from labelloop.errors import CaseError
from labelloop.listing import EXTENSIONS
from labelloop.volume import Geometry, blame_machine, geometry_of, itk_name, read_geometry

DIRECTION_TOLERANCE = 1e-3
"""Largest departure of the axes from orthonormal (entries of DᵀD - I), as in ``volume.GRID_TOLERANCE``."""
SPACING_TOLERANCE = 1e-3
"""Largest relative difference of the voxel sizes that two header fields give."""
PLAUSIBLE_SPACING_MM = (0.1, 20.0)

_FILE_REASONS = {
    "missing": "There is no such file: correct the path in the case table or restore the file.",
    "unreadable": "The file cannot be read: check the permissions, or write it anew with the tool it came from.",
    "file_empty": "The file has no content: copy or download it again.",
    "truncated": "The file ends early: copy or download it again.",
    "corrupt": "The compressed content is damaged: copy or download it again.",
    "not_an_image": "Convert it to one NIfTI, NRRD or MHA file a volume.",
    "not_3d": "Give one 3-D volume a case; make each volume of a series a case of its own.",
    "not_scalar": "Give one number a voxel, not colors, vectors or complex numbers.",
    "spacing_invalid": "Write the true voxel size (mm) into the header; ITK would silently put 1 mm or drop the sign.",
    "spacing_ambiguous": "pixdim and sform give different voxel sizes: find out which is true and write both alike.",
    "spacing_implausible": "Check the unit of the voxel size; it is read as mm.",
    "direction_not_orthonormal": "The axes are sheared (gantry tilt?) or singular: resample the scan to a right-angled "
    "grid.",
    "orientation_ambiguous": "qform and sform disagree on the axes, so left cannot be told from right: find out which "
    "is true and write both alike.",
    "placement_ambiguous": "qform and sform place the scan differently; ITK takes the sform. Check that the label "
    "still lies on the organs.",
    "orientation_unknown": "qform and sform codes are both 0, so left cannot be told from right: check the scan once "
    "and write the codes.",
}
REASONS = {f"{kind}_{code}": action for kind in ("image", "label") for code, action in _FILE_REASONS.items()}
"""What to do about each reason code of this module."""


def _error(code: str, file: str | Path, found: str) -> CaseError:
    return CaseError(code, str(file), found, REASONS[code])


@dataclass(frozen=True)
class Scan:
    """One file as read: where its grid lies, its stored values in any axis order, and how to scale them.

    ``warnings`` are (reason code, what was found).
    """

    file: str
    sha256: str
    geometry: Geometry
    stored: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    warnings: tuple[tuple[str, str], ...] = ()

    def values(self) -> np.ndarray:
        """Return the scaled values."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return self.stored
        return self.stored * self.slope + self.intercept

    def range(self) -> tuple[float, float]:
        """Return smallest and largest value; NaN when any value is NaN."""
        ends = [float(v) * self.slope + self.intercept for v in (self.stored.min(), self.stored.max())]
        return min(ends), max(ends)


def read_scan(path: str | Path, kind: str) -> Scan:
    """Read one volume whole and check the file itself; ``kind`` is image or label and begins the reason codes.

    Raises:
        CaseError: ``<kind>_missing``, ``<kind>_truncated`` and the other codes of :data:`REASONS`.
        OSError: when the disk fails; that says nothing of the file.
    """
    path = Path(path)
    if not path.is_file():
        raise _error(f"{kind}_missing", path, "no such file")
    extension = next((e for e in EXTENSIONS if path.name.lower().endswith(e)), None)
    if extension is None:
        raise _error(f"{kind}_not_an_image", path, f"a file name that ends in none of {EXTENSIONS}")
    try:
        content = path.read_bytes()
    except PermissionError as error:
        raise _error(f"{kind}_unreadable", path, str(error)) from error
    if not content:
        raise _error(f"{kind}_file_empty", path, "0 bytes")
    scan = (_read_nifti if extension.startswith(".nii") else _read_itk)(path, content, kind)
    sides = scan.geometry.spacing
    if min(sides) < PLAUSIBLE_SPACING_MM[0] or max(sides) > PLAUSIBLE_SPACING_MM[1]:
        warning = (f"{kind}_spacing_implausible", f"voxel size {_numbers(sides)} mm")
        return replace(scan, warnings=(*scan.warnings, warning))
    return scan


def _read_nifti(path: Path, content: bytes, kind: str) -> Scan:
    data = _unpacked(path, content, kind)
    header = _nifti_header(path, data, kind)
    shape = list(header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    _check_shape(path, tuple(shape), kind)
    dtype = _dtype(path, header, kind)
    offset, count = float(header["vox_offset"]), math.prod(shape)
    if not np.isfinite(offset):
        raise _error(f"{kind}_corrupt", path, f"voxels that begin at byte {offset}")
    start = max(int(offset), int(header["sizeof_hdr"]))
    if len(data) < start + count * dtype.itemsize:
        found = f"{max(0, len(data) - start)} bytes of voxels instead of {count * dtype.itemsize}"
        raise _error(f"{kind}_truncated", path, found)
    warnings = _check_frame(path, header, shape, kind)
    geometry = in_itk(path, kind, lambda: read_geometry(path))
    _check_direction(path, np.asarray(geometry.direction).reshape(3, 3), kind)
    stored = np.frombuffer(data, dtype, count, start).reshape(shape, order="F")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        slope, intercept = 1.0, 0.0
    return Scan(str(path), hashlib.sha256(content).hexdigest(), geometry, stored, slope, intercept, warnings)


def _unpacked(path: Path, content: bytes, kind: str) -> bytes:
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except EOFError as error:
        raise _error(f"{kind}_truncated", path, f"{len(content)} bytes, cut off inside the gzip stream") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _error(f"{kind}_corrupt", path, str(error)) from error


def _nifti_header(path: Path, data: bytes, kind: str) -> nib.Nifti1Header:
    size = {int.from_bytes(data[:4], order) for order in ("little", "big")}
    header_class = nib.Nifti2Header if 540 in size else nib.Nifti1Header
    if not size & {348, 540}:
        raise _error(f"{kind}_not_an_image", path, f"{len(data)} bytes that begin with no NIfTI header")
    if len(data) < header_class.sizeof_hdr:
        raise _error(f"{kind}_truncated", path, f"{len(data)} bytes, less than a header")
    return header_class.from_fileobj(io.BytesIO(data[: header_class.sizeof_hdr]), check=False)


def _dtype(path: Path, header: nib.Nifti1Header, kind: str) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise _error(f"{kind}_not_an_image", path, f"an unknown data type code, {header['datatype']}") from error
    if dtype.fields or dtype.kind not in "iuf":
        raise _error(f"{kind}_not_scalar", path, f"values of type {header.get_value_label('datatype')}")
    return dtype


def _check_shape(path: Path, shape: tuple[int, ...], kind: str) -> None:
    if len(shape) != 3 or min(shape) < 2:
        raise _error(f"{kind}_not_3d", path, f"an array of size {' x '.join(map(str, shape))}")


def _check_frame(path: Path, header: nib.Nifti1Header, shape: Sequence[int], kind: str) -> tuple[tuple[str, str], ...]:
    """Check voxel size, sform and qform of a NIfTI header as they are stored; return warnings."""
    spacing = np.asarray(header["pixdim"][1:4], float)
    _check_spacing(path, spacing, kind)
    has_sform, has_qform = header["sform_code"] > 0, header["qform_code"] > 0
    if not has_sform:
        found = "qform_code 0 and sform_code 0"
        return () if has_qform else ((f"{kind}_orientation_unknown", found),)
    sform = header.get_sform()
    sides = np.linalg.norm(sform[:3, :3], axis=0)
    if not np.isfinite(sform).all() or not sides.all():
        raise _error(f"{kind}_direction_not_orthonormal", path, "a singular or non-finite sform")
    _check_direction(path, sform[:3, :3] / sides, kind)
    if np.abs(sides / spacing - 1).max() > SPACING_TOLERANCE:
        found = f"pixdim {_numbers(spacing)} mm against sform {_numbers(sides)} mm"
        raise _error(f"{kind}_spacing_ambiguous", path, found)
    return _compare_forms(path, header, sform, shape, kind) if has_qform else ()


def _compare_forms(
    path: Path, header: nib.Nifti1Header, sform: np.ndarray, shape: Sequence[int], kind: str
) -> tuple[tuple[str, str], ...]:
    try:
        qform = header.get_qform()
    except (ValueError, HeaderDataError) as error:
        raise _error(f"{kind}_direction_not_orthonormal", path, f"qform: {error}") from error
    codes = ["".join(nib.aff2axcodes(form)) for form in (qform, sform)]
    if codes[0] != codes[1]:
        raise _error(f"{kind}_orientation_ambiguous", path, f"qform says {codes[0]}, sform {codes[1]}")
    corners = np.array([[*c, 1] for c in np.ndindex(2, 2, 2)]) * [*(np.asarray(shape) - 1), 1]
    apart = float(np.linalg.norm((corners @ (qform - sform).T)[:, :3], axis=1).max())
    if apart <= 0.5 * float(np.linalg.norm(sform[:3, :3], axis=0).min()):
        return ()
    return ((f"{kind}_placement_ambiguous", f"corners of the scan up to {apart:.3g} mm apart"),)


def _check_spacing(path: Path, spacing: np.ndarray, kind: str) -> None:
    if not np.isfinite(spacing).all() or min(spacing) <= 0:
        raise _error(f"{kind}_spacing_invalid", path, f"voxel size {_numbers(spacing)} mm in the header")


def _check_direction(path: Path, direction: np.ndarray, kind: str) -> None:
    departure = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if not departure <= DIRECTION_TOLERANCE:
        found = f"axes that depart from right angles by {departure:.3g}"
        raise _error(f"{kind}_direction_not_orthonormal", path, found)


_SPACING_FIELD = re.compile(rb"^(?:Element(?:Spacing|Size)\s*=|spacings:)\s*(.+?)\s*$", re.MULTILINE)


def _read_itk(path: Path, content: bytes, kind: str) -> Scan:
    """Read an NRRD or MHA file; its text header is checked for voxel sizes that ITK would mend in silence."""
    field = _SPACING_FIELD.search(content[:4096])
    if field:
        try:
            spacing = np.array([float(v) for v in field[1].split()])
        except ValueError as error:
            raise _error(f"{kind}_not_an_image", path, f"voxel size {field[1][:40]!r}") from error
        _check_spacing(path, spacing, kind)
    image = in_itk(path, kind, lambda: sitk.ReadImage(itk_name(path)))
    if image.GetNumberOfComponentsPerPixel() > 1 or "complex" in image.GetPixelIDTypeAsString():
        raise _error(f"{kind}_not_scalar", path, image.GetPixelIDTypeAsString())
    _check_shape(path, image.GetSize(), kind)
    geometry = geometry_of(image)
    _check_direction(path, np.asarray(geometry.direction).reshape(3, 3), kind)
    return Scan(str(path), hashlib.sha256(content).hexdigest(), geometry, sitk.GetArrayFromImage(image))


_ITK_SAYS = (
    ("orthonormal", "direction_not_orthonormal"),
    ("determinant is 0", "direction_not_orthonormal"),
    ("Zero-valued spacing", "spacing_invalid"),
    ("Negative spacing", "spacing_invalid"),
    ("Unable to determine ImageIO", "not_an_image"),
    ("of expected)", "truncated"),
    ("File cannot be read", "truncated"),
)


def in_itk(path: str | Path, kind: str, work: Callable[[], Any]) -> Any:
    """Do ``work`` with ITK, in silence, and turn its errors into reason codes.

    Raises:
        CaseError: when the file cannot be read because of what is in it.
        OSError, MemoryError: when the disk or memory is at fault.
    """
    try:
        with _quiet():
            return work()
    except RuntimeError as error:
        blame_machine(path, error)
        message = " ".join(str(error).split())
        code = next((code for part, code in _ITK_SAYS if part in message), "unreadable")
        told = re.sub(r"\(0x[0-9a-f]+\)", "", message.rpartition("ERROR: ")[2])  # addresses differ from run to run
        raise _error(f"{kind}_{code}", path, told[:200]) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what ITK and its C libraries print out of the log. Not for use in several threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in kept:
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{float(v):.4g}" for v in values)
