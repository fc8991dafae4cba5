"""One synthetic patient: drawn once, then rendered on any axis-aligned grid, slab by slab."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from labelloop.base.classes import load_classes
from labelloop.images.volume import RAS, Geometry, Volume, canonical, restore
from labelloop.phantom import anatomy
from labelloop.phantom.anatomy import Structure, Wall
from labelloop.phantom.shapes import Ellipsoid, Field, Points, Shape, Union
from labelloop.phantom.tissues import CODE, TEXTURE, class_ids, hounsfield

EASY, HARD = "easy", "hard"
ORIENTATIONS = {"LPS": (1, 1, 1), "RAS": (-1, -1, 1), "LAS": (1, -1, 1)}
"""Signs of the grid axes against ITK's LPS world axes, by axis codes."""
CALIBRATION_MM = 4.0
BLUR = 0.55  # partial volume and reconstruction kernel: standard deviation in voxels
HALO = 2  # slices that the blur reaches into the neighboring slab
GRAIN = 0.56  # standard deviation of white noise of deviation 1 after the blur in plane
SLAB_VOXELS = 4_000_000


@dataclass(frozen=True)
class Scan:
    """How this patient was scanned: HU of each tissue code, noise (HU), contrast phase, heights seen (mm)."""

    hu: np.ndarray
    noise: float
    phase: str
    low_mm: float
    high_mm: float


@dataclass(frozen=True)
class Patient:
    """A patient at any resolution. ``size`` scales the atlas; ``offset`` (RAS mm) is where the scanner put it."""

    seed: int
    case: int
    half: str
    offset: tuple[float, float, float]
    size: tuple[float, float, float]
    warp: tuple[Field, Field, Field]
    reach_mm: float
    texture: Field
    wall: Wall
    structures: tuple[Structure, ...]
    liver_vessels: Shape
    scan: Scan


@dataclass(frozen=True)
class _Grid:
    """Patient coordinates of a canonical grid's axes, and the atlas point of each of its voxels."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray
    points: Points

    def part(self, patient: Patient, shape: Shape, margin_mm: float) -> tuple[slice, slice, slice]:
        """Return the block of the grid outside which ``shape``, fattened by a margin, cannot lie."""
        reach = patient.reach_mm + margin_mm
        low, high = ((corner + side) * patient.size for corner, side in zip(shape.box, (-reach, reach), strict=True))
        z, y, x = (
            slice(*np.searchsorted(axis, (low[i], high[i])).tolist())
            for i, axis in ((2, self.z), (1, self.y), (0, self.x))
        )
        return z, y, x

    def at(self, block: tuple[slice, slice, slice]) -> Points:
        x, y, z = self.points
        return x[block], y[block], z[block]


def _grid(patient: Patient, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> _Grid:
    shape = (len(z), len(y), len(x))
    spread = (x[None, None, :], y[None, :, None], z[:, None, None])
    right, front, up = (
        np.broadcast_to(axis / size, shape).astype(np.float32) + warp.on_grid(z, y, x)
        for axis, size, warp in zip(spread, patient.size, patient.warp, strict=True)
    )
    return _Grid(z, y, x, (right, front, up))


def _generator(seed: int, case: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, case, purpose])


def draw_patient(seed: int, case: int, half: str = EASY, tumors: bool = True, absent: tuple[str, ...] = ()) -> Patient:
    """Draw one patient. The same arguments give the same patient, whatever else is drawn.

    Args:
        seed: seed of the collection.
        case: number of the case in the collection.
        half: "easy", or "hard": weak contrast, more noise, stronger warps.
        tumors: whether there are any; one to four are drawn.
        absent: organs (class names) that this patient does not have.
    """
    rng = _generator(seed, case, 0)
    hard = half == HARD
    strength = rng.uniform(0.5, 0.7) if hard else rng.uniform(0.85, 1.1)
    arterial = rng.random() < 0.3
    portal = rng.uniform(0.0, 0.3) if arterial else rng.uniform(0.75, 1.0)
    oral = 170.0 if rng.random() < 0.2 else rng.uniform(-8, 12)
    step = rng.uniform(32, 44) if hard else rng.uniform(60, 80)
    noise = rng.uniform(16, 22) if hard else rng.uniform(7, 11)
    scan = Scan(
        hu=hounsfield(portal, strength, step, oral),
        noise=float(noise),
        phase="arterial" if arterial else "portal venous",
        low_mm=float(rng.uniform(-98, -90)),
        high_mm=float(rng.uniform(150, 162)),
    )
    size = rng.uniform(0.94, 1.06) * (1 + rng.uniform(-0.025, 0.025, 3))
    offset = np.round(np.append(rng.uniform(-15, 15, 2), rng.uniform(-900, 400)), 1)
    shapes = anatomy.organ_shapes(rng, 1.35 if hard else 1.0)
    level = float(rng.uniform(58, 70))
    right, front, up = (Field.draw(rng, 58.0, 5.0 if hard else 3.2) for _ in range(3))
    warp = (right, front, up)
    places = np.arange(-300.0, 300.0, 20.0)
    patient = Patient(
        seed, case, half, tuple(offset.tolist()), tuple(size.tolist()), warp,
        reach_mm=2.0 + max(float(np.abs(w.on_grid(places, places, places)).max()) for w in warp),
        texture=Field.draw(rng, 13.0, 1.0),
        wall=anatomy.draw_wall(rng),
        structures=anatomy.surroundings(rng, shapes),
        liver_vessels=anatomy.liver_vessels(rng),
        scan=scan,
    )  # fmt: skip
    organs = {n: anatomy.organ(n, s, level) for n, s in shapes.items() if n not in absent}
    return replace(patient, structures=_calibrated(patient, organs, tumors) + patient.structures)


def _calibrated(patient: Patient, organs: dict[str, Structure], with_tumors: bool) -> tuple[Structure, ...]:
    """Grow or shrink each organ, in order of painting, until what it keeps has the volume drawn for it."""
    rng = _generator(patient.seed, patient.case, 1)
    outer_x, outer_y = patient.wall.outer
    ends = (patient.scan.low_mm, patient.scan.high_mm), (-1.1 * outer_y, 1.1 * outer_y), (-1.1 * outer_x, 1.1 * outer_x)
    axes = [np.arange(low, high, CALIBRATION_MM) for low, high in ends]
    grid = _grid(patient, *axes)
    cavity = _cavity(patient, grid)
    codes = np.zeros(grid.points[0].shape, np.uint8)
    anatomy.spine(codes, grid.points, CODE)
    bulk = float(np.prod(patient.size))
    done: list[Structure] = []
    for name in (*anatomy.FIRST, "tumors", *anatomy.THEN):
        if name == "tumors":
            tumors = _tumors(rng, patient, organs, grid, codes, cavity) if with_tumors else []
            for tumor in tumors:
                _paint(codes, patient, grid, tumor, cavity)
            done += tumors
            continue
        mean, deviation, low, high = anatomy.VOLUMES_ML[name]
        target = float(np.clip(mean * bulk * (1 + deviation / mean * rng.standard_normal()), low, high))
        if name not in organs:
            continue
        block = grid.part(patient, organs[name].shape, 12.0)
        distance = organs[name].shape.distance(grid.at(block))
        free = np.sort(distance[(codes[block] == 0) & (cavity[block] | (not organs[name].inside))])
        count = round(target / (CALIBRATION_MM**3 / 1000))
        grown = replace(organs[name], grow=float(np.clip(free[min(count, free.size - 1)], -9, 12)))
        _paint(codes, patient, grid, grown, cavity)
        done.append(grown)
    return tuple(done)


LARGEST_ML = {
    "liver": (30.0, 120.0),
    "right_kidney": (15, 45),
    "left_kidney": (15, 45),
    "pancreas": (10, 20),
    "fat": (20, 50),
}
"""Smallest and largest volume of a patient's largest tumor, by what it grows in. The others have 1.5 to 12 ml."""


def _tumors(rng, patient: Patient, organs: dict[str, Structure], grid: _Grid, codes, cavity) -> list[Structure]:
    """Draw one to four lobulated tumors at points that lie deep enough in their hosts; the first is the largest."""
    count = int(rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1]))
    result: list[Structure] = []
    for number in range(count):
        host = str(rng.choice(list(LARGEST_ML), p=[0.5, 0.12, 0.12, 0.14, 0.12]))
        low, high = LARGEST_ML[host] if number == 0 else (1.5, 12.0)
        radius = (np.exp(rng.uniform(np.log(low), np.log(high))) * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
        target = organs[host].shape if host in organs else Ellipsoid(np.array([0.0, 42, -40]), (50, 16, 40), np.eye(3))
        block = grid.part(patient, target, 0.0)
        points = grid.at(block)
        depth = -target.distance(points)
        fits = (codes[block] == 0) & cavity[block] & (depth > min(0.55 * radius, 0.7 * float(depth.max())))
        for other in result:  # keep tumors apart, so that each is a lesion of its own
            fits &= other.shape.distance(points) > radius + 6
        choices = np.flatnonzero(fits)
        pick, lobes = rng.random(), rng.standard_normal((3, 3))
        if not choices.size:
            continue
        center = np.array([p.ravel()[choices[int(pick * choices.size)]] for p in points], float)
        shifts = 0.45 * radius * lobes / np.linalg.norm(lobes, axis=1, keepdims=True)
        parts = [
            Ellipsoid(center + s, (r * radius,) * 3, np.eye(3)) for s, r in zip(shifts, (0.85, 0.7, 0.6), strict=True)
        ]
        name = f"tumor_in_{host}"
        result.append(Structure(name, Union(tuple(parts), float(0.4 * radius)), name, inside=True))
    return result


def _cavity(patient: Patient, grid: _Grid) -> np.ndarray:
    return (patient.wall.outward(grid.points) < 0) & (patient.wall.above_dome(grid.points) < 0)


def _paint(codes: np.ndarray, patient: Patient, grid: _Grid, what: Structure, cavity: np.ndarray) -> None:
    block = grid.part(patient, what.shape, max(what.grow, 0.0) + 1.0)
    if 0 in codes[block].shape:
        return
    points = grid.at(block)
    distance = what.shape.distance(points) - np.float32(what.grow)
    view = codes[block]
    mine = (distance < 0) & (view == 0)
    if what.inside:
        mine &= cavity[block]
    view[mine] = CODE[what.core]
    core = distance < -what.rind_mm
    if what.gas:
        view[mine & core & (points[1] > what.level_mm)] = CODE[what.gas]
    if what.rind:
        view[mine & ~core] = CODE[what.rind]


def _tissue_map(patient: Patient, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return tissue codes (uint8) and the texture field (float32) on the grid [z, y, x] of patient coordinates."""
    grid = _grid(patient, z, y, x)
    cavity = _cavity(patient, grid)
    codes = np.zeros(cavity.shape, np.uint8)
    anatomy.spine(codes, grid.points, CODE)
    for structure in patient.structures:
        _paint(codes, patient, grid, structure, cavity)
    block = grid.part(patient, patient.liver_vessels, 1.0)
    if 0 not in codes[block].shape:
        view = codes[block]
        view[(view == CODE["liver"]) & (patient.liver_vessels.distance(grid.at(block)) < 0)] = CODE["liver_vessel"]
    texture = patient.texture.on_grid(z, y, x)
    anatomy.envelope(codes, grid.points, patient.wall, texture, CODE)
    return codes, texture


def grid_axes(geometry: Geometry, patient: Patient) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coordinates (mm) z, y, x of a canonical grid around the patient's offset."""
    corner = RAS @ np.asarray(geometry.origin) - np.asarray(patient.offset)
    x, y, z = (corner[i] + np.arange(geometry.size[i]) * geometry.spacing[i] for i in range(3))
    return z, y, x


def _slabs(patient: Patient, geometry: Geometry, voxels: int) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
    """Yield (slices of the grid, where they lie in the slab, codes, texture) for a canonical geometry."""
    z, y, x = grid_axes(geometry, patient)
    thick = max(1, voxels // (len(x) * len(y)))
    for start in range(0, len(z), thick):
        stop = min(start + thick, len(z))
        low, high = max(start - HALO, 0), min(stop + HALO, len(z))
        yield slice(start, stop), slice(start - low, stop - low), *_tissue_map(patient, z[low:high], y, x)


def tissue_map(patient: Patient, geometry: Geometry) -> np.ndarray:
    """Return the tissue codes (uint8, indices into ``tissues.TISSUES``) on ``geometry``, [z, y, x] as stored."""
    stored = _canonical_grid(geometry)
    codes = np.empty(stored.shape, np.uint8)
    for where, inner, slab, _ in _slabs(patient, stored, SLAB_VOXELS):
        codes[where] = slab[inner]
    return restore(codes, geometry)


def render(patient: Patient, geometry: Geometry, slab_voxels: int = SLAB_VOXELS) -> tuple[np.ndarray, np.ndarray]:
    """Render a patient: CT (int16 HU) and full truth (uint8 FLARE ids), both [z, y, x] as ``geometry`` stores them.

    Works through the volume in slabs of about ``slab_voxels`` voxels, so that memory beyond the two results is
    bounded; the result does not depend on it.

    Raises:
        ValueError: when ``geometry`` is oblique.
    """
    stored = _canonical_grid(geometry)
    image, truth = np.empty(stored.shape, np.int16), np.empty(stored.shape, np.uint8)
    ids = class_ids(load_classes("flare").ids)
    rng = _generator(patient.seed, patient.case, 2)
    for where, inner, slab, texture in _slabs(patient, stored, slab_voxels):
        truth[where] = ids[slab[inner]]
        sharp = patient.scan.hu[slab] + TEXTURE[slab] * texture
        blurred = gaussian_filter(sharp, BLUR, truncate=HALO / BLUR, mode="nearest")[inner]
        for z, section in zip(range(where.start, where.stop), blurred, strict=True):
            grain = gaussian_filter(rng.standard_normal(section.shape, np.float32), BLUR, mode="nearest")
            image[z] = np.clip(np.rint(section + patient.scan.noise / GRAIN * grain), -1024, 3071)
    return restore(image, geometry), restore(truth, geometry)


def _canonical_grid(geometry: Geometry) -> Geometry:
    if not np.allclose(np.abs(geometry.direction).reshape(3, 3).max(0), 1, atol=1e-6):
        raise ValueError("the phantom is rendered on grids along the patient's axes only")
    return canonical(Volume(np.empty(geometry.shape, np.uint8), geometry)).geometry


def field_of_view(
    patient: Patient,
    spacing: tuple[float, float, float] | None = None,
    size: tuple[int, int, int] | None = None,
    orientation: str = "LPS",
    low_mm: float | None = None,
) -> Geometry:
    """Return a grid around the whole abdomen of a patient, by its spacing (mm) or by its size (both x, y, z).

    Args:
        patient: the patient.
        spacing: voxel size; None to fit ``size`` voxels to the body.
        size: number of voxels, e.g. (512, 512, 400); in-plane voxels are square then.
        orientation: "LPS", "RAS" or "LAS".
        low_mm: lowest height seen, in mm above the kidneys' centers; None for below the kidneys.
    """
    outer = np.asarray(patient.wall.outer) * patient.size[:2] + 12
    low = patient.scan.low_mm if low_mm is None else low_mm
    extent = np.array([2 * outer[0], 2 * outer[1] + 8, patient.scan.high_mm - low])
    if spacing is None:
        if size is None:
            raise ValueError("a field of view needs its spacing or its size")
        square = extent[:2].max() / min(size[:2])
        spacing = (round(square, 4), round(square, 4), round(extent[2] / size[2], 4))
    if size is None:
        x, y, z = (int(np.ceil(e / s)) for e, s in zip(extent, spacing, strict=True))
        size = (x, y, z)
    signs = np.asarray(ORIENTATIONS[orientation])
    shape_mm = (np.asarray(size) - 1) * np.asarray(spacing)
    middle = np.array([0, anatomy.Wall.CENTER_Y - 4, low + shape_mm[2] / 2]) + patient.offset  # RAS
    origin = np.round(RAS @ middle - signs * shape_mm / 2, 2)
    return Geometry(size, spacing, tuple(origin.tolist()), tuple(np.diag(signs).astype(float).ravel().tolist()))
