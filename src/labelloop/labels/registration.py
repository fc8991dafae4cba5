"""Where a point of one image lies in another: found by SimpleITK, saved as numbers, applied in one resampling.

Images are registered in canonical orientation, so that the answer does not depend on how a file is stored, on one
thread, so that it does not depend on the machine.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from labelloop.base.errors import CaseError, UserError, may_pass, nearest
from labelloop.base.files import write_json
from labelloop.images.volume import Geometry, Volume, canonical, geometry_of, to_image

WORK_MM = 4.0
"""Voxel size that images are brought to before they are registered; no finer voxel is made."""
STEP_MM, SMALLEST_STEP_MM, ITERATIONS = 4.0, 0.01, 200
NO_OVERLAP = 1e30  # ITK says so by the largest number there is


@dataclass(frozen=True)
class Transform:
    """An affine map of points in ITK's LPS mm: ``p`` of the fixed image is ``matrix @ p + shift`` in the moving one."""

    matrix: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, matrix: np.ndarray, shift: np.ndarray) -> "Transform":
        """Return the map of a 3 x 3 matrix and a shift."""
        return cls(tuple(np.asarray(matrix, float).ravel().tolist()), tuple(np.asarray(shift, float).tolist()))

    @property
    def _square(self) -> np.ndarray:
        return np.reshape(self.matrix, (3, 3))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return where ``points`` [..., 3] (x, y, z) lie in the moving image."""
        return points @ self._square.T + np.asarray(self.shift)

    def then(self, other: "Transform") -> "Transform":
        """Return the map that does this one first and ``other`` on its result."""
        return Transform.of(other._square @ self._square, other._square @ np.asarray(self.shift) + other.shift)

    def inverse(self) -> "Transform":
        """Return the map from the moving to the fixed image."""
        back = np.linalg.inv(self._square)
        return Transform.of(back, -back @ np.asarray(self.shift))

    @property
    def degrees(self) -> float:
        """Angle of the rotation of a rigid map."""
        return float(np.degrees(np.arccos(np.clip((np.trace(self._square) - 1) / 2, -1, 1))))

    def translation_mm(self, geometry: Geometry) -> float:
        """Return how far the center of a grid is moved."""
        center = _center(geometry)
        return float(np.linalg.norm(self(center) - center))

    def save(self, path: str | Path, **notes) -> None:
        """Write the map as JSON, with ``notes`` on where it comes from."""
        write_json(path, {"matrix": self.matrix, "shift_mm": self.shift, "space": "LPS mm, fixed to moving"} | notes)

    @classmethod
    def load(cls, path: str | Path) -> "Transform":
        """Read a map that :meth:`save` wrote. Raises UserError when the file is something else."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(tuple(content["matrix"]), tuple(content["shift_mm"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no saved transform ({error}). Delete it, to register anew.") from error


def apply(transform: Transform, moving: Volume, grid: Geometry, labels: bool = False) -> np.ndarray:
    """Return ``moving`` on ``grid`` (the fixed side), [z, y, x], in one resampling.

    Args:
        labels: nearest voxel, else cubic B-spline, as He has it (section 2.1), within the values of ``moving``. Voxels
            that ``moving`` does not see get its lowest value, 0 for labels.
    """
    low, high = (0.0, 0.0) if labels else (float(moving.array.min()), float(moving.array.max()))
    how = sitk.sitkNearestNeighbor if labels else sitk.sitkBSpline3
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.size)
    resampler.SetOutputSpacing(grid.spacing)
    resampler.SetOutputOrigin(grid.origin)
    resampler.SetOutputDirection(grid.direction)
    resampler.SetTransform(sitk.AffineTransform(transform.matrix, transform.shift))
    resampler.SetInterpolator(how)
    resampler.SetDefaultPixelValue(low)
    with _one_thread():
        image = to_image(moving if labels else Volume(moving.array.astype(np.float32), moving.geometry))
        result = sitk.GetArrayFromImage(resampler.Execute(image))
    return result if labels else np.clip(result, low, high)  # a cubic spline overshoots at edges


def check_reference(name: str, cases: Sequence[str]) -> str:
    """Return ``name`` if it is one of ``cases``: a reference is named, never the first file of a folder.

    Raises:
        UserError: naming the nearest case, when there is no such case.
    """
    if name in cases:
        return name
    raise UserError(f"reference {name!r} of the registration is not among the {len(cases)} cases{nearest(name, cases)}")


def register(
    fixed: Volume, moving: Volume, kind: Literal["translation", "rigid"], on: Literal["masks", "images"]
) -> Transform:
    """Return the :class:`Transform` from ``fixed`` to ``moving``.

    Args:
        fixed, moving: any orientation. Masks (bool or 0 and 1) are compared by their mean square difference, images by
            mutual information.
        kind: ``translation`` starts from the centers of mass, for two patients; ``rigid`` from where the images
            lie, for two sequences of one patient.

    Raises:
        CaseError: when a mask is empty or fills its image, so that there is nothing to register, or when the images
            do not overlap.
    """
    if on == "masks":
        for name, mask in (("fixed", fixed), ("moving", moving)):
            if not 0 < np.count_nonzero(mask.array) < mask.array.size:
                raise _error(f"the {name} mask is empty or fills its image: nothing to register")
    with _one_thread():
        try:
            return _register(_coarse(fixed), _coarse(moving), kind, on)
        except RuntimeError as error:  # SimpleITK's only exception; its last line says what happened
            if may_pass(error):
                raise
            raise _error(f"cannot be registered: {str(error).splitlines()[-1].strip()}") from error


def _error(found: str) -> CaseError:
    return CaseError("registration", "", found, "Look at both images.", common=True)


def part_within(transform: Transform, grid: Geometry, reference: Geometry) -> tuple[tuple[int, int], ...]:
    """Return the part of a canonical ``grid`` that lies in the box of ``reference``: (start, stop) per axis z, y, x.

    Args:
        transform: a translation, from the reference's space to that of the grid.

    Raises:
        CaseError: when no voxel lies there.
    """
    sides = np.asarray(reference.size) * reference.spacing
    low = np.reshape(grid.direction, (3, 3)).T @ (transform(np.asarray(reference.origin)) - grid.origin)
    start = np.rint(low / grid.spacing).astype(int)
    stop = np.rint((low + sides) / grid.spacing).astype(int)
    box = [(max(0, int(a)), min(n, int(b))) for a, b, n in zip(start, stop, grid.size, strict=True)]
    if any(a >= b for a, b in box):
        raise _error("aligned with the reference, the case lies outside of its box")
    return tuple(box[::-1])


def _register(fixed: sitk.Image, moving: sitk.Image, kind: str, on: str) -> Transform:
    method = sitk.ImageRegistrationMethod()
    if on == "masks":
        method.SetMetricAsMeanSquares()
    else:
        method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(STEP_MM, SMALLEST_STEP_MM, ITERATIONS, 0.6, 1e-10)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([WORK_MM, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    start = _translation(fixed, moving) if kind == "translation" else _turn_about_center(fixed)
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    if method.GetMetricValue() > NO_OVERLAP:
        raise _error("the images do not overlap")
    origin = np.asarray(start.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.asarray(start.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)]
    return Transform.of(np.stack(columns, axis=1), origin)


def _translation(fixed: sitk.Image, moving: sitk.Image) -> sitk.TranslationTransform:
    start = sitk.TranslationTransform(3)
    start.SetOffset((_mass_center(moving) - _mass_center(fixed)).tolist())
    return start


def _turn_about_center(fixed: sitk.Image) -> sitk.Euler3DTransform:
    start = sitk.Euler3DTransform()
    start.SetCenter(_center(geometry_of(fixed)).tolist())
    return start


def _coarse(volume: Volume) -> sitk.Image:
    """Return a volume in canonical orientation, smoothed and with voxels of at least :data:`WORK_MM`, float32."""
    oriented = canonical(volume)
    image = to_image(Volume(oriented.array.astype(np.float32, copy=False), oriented.geometry))
    spacing = np.maximum(oriented.geometry.spacing, WORK_MM)
    sigma = [max(s / 2, 0.1) for s in spacing]
    smooth = sitk.SmoothingRecursiveGaussian(image, sigma) if min(image.GetSize()) >= 4 else image
    size = [max(1, round(n * s / w)) for n, s, w in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
    origin = image.TransformContinuousIndexToPhysicalPoint(
        [(w / s - 1) / 2 for w, s in zip(spacing, image.GetSpacing(), strict=True)]
    )
    return sitk.Resample(
        smooth, size, sitk.Transform(), sitk.sitkLinear, origin, spacing.tolist(), image.GetDirection(), 0.0
    )


def _mass_center(image: sitk.Image) -> np.ndarray:
    weights = sitk.GetArrayViewFromImage(image).clip(0)
    index = [float((weights.sum(tuple(a for a in range(3) if a != 2 - i)) * np.arange(n)).sum() / weights.sum())
             for i, n in enumerate(image.GetSize())]  # fmt: skip
    return np.asarray(image.TransformContinuousIndexToPhysicalPoint(index))


def _center(geometry: Geometry) -> np.ndarray:
    middle = (np.asarray(geometry.size) - 1) / 2 * geometry.spacing
    return np.reshape(geometry.direction, (3, 3)) @ middle + geometry.origin


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let SimpleITK work on one thread: the order in which several add up numbers shows in the last bits."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
