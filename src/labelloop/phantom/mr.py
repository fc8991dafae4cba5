"""MR of synthetic patients: eight sequences a patient, each with a motion, a bias field and noise of its own.

The patients are other ones than those of the CT collection. Some are stored upside down: the array is reversed from
head to foot, while the header says it is not (He et al., FLARE 2024, section 2.1, met such archives).
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from labelloop.base.classes import load_classes
from labelloop.base.files import atomic
from labelloop.images.volume import RAS, Geometry, Volume, canonical, restore, write
from labelloop.phantom.patient import (
    EASY,
    HARD,
    ORIENTATIONS,
    Patient,
    draw_patient,
    field_of_view,
    grid_axes,
    tissue_map,
)
from labelloop.phantom.shapes import Field, Points, turn
from labelloop.phantom.tissues import TISSUES, class_ids

log = logging.getLogger(__name__)

COLUMNS = ("t1w", "arterial", "portal_venous", "delay", "water", "fat", "t2w", "dwi")
SIGNALS = {  # T1 without and with contrast agent, T2 and diffusion: fat-suppressed; water and fat: dual echo
    "air": (0, 0, 0, 0, 0, 0, 0, 0),
    "table": (0, 0, 0, 0, 0, 0, 0, 0),
    "gas": (8, 8, 8, 8, 8, 0, 6, 4),
    "fat": (95, 95, 100, 100, 40, 720, 165, 15),
    "skin": (150, 160, 180, 180, 200, 150, 140, 30),
    "muscle": (240, 255, 280, 290, 300, 15, 110, 45),
    "lung": (25, 32, 36, 32, 30, 0, 25, 8),
    "marrow": (140, 150, 165, 165, 170, 190, 170, 40),
    "compact_bone": (40, 45, 50, 50, 45, 20, 35, 10),
    "disc": (210, 210, 215, 220, 230, 5, 330, 60),
    "spinal_canal": (130, 135, 140, 140, 170, 0, 800, 130),
    "heart": (190, 560, 470, 400, 260, 0, 120, 40),
    "artery": (110, 900, 520, 420, 130, 0, 40, 10),
    "vein": (120, 260, 640, 450, 150, 0, 60, 15),
    "bowel_wall": (230, 330, 390, 400, 290, 10, 260, 150),
    "bowel_fluid": (150, 150, 155, 160, 190, 0, 620, 110),
    "stool": (260, 260, 265, 270, 280, 40, 240, 90),
    "liver": (400, 440, 590, 560, 430, 40, 210, 190),
    "liver_vessel": (190, 330, 690, 590, 250, 0, 90, 30),
    "spleen": (260, 600, 600, 540, 310, 0, 440, 520),
    "kidney_cortex": (370, 820, 780, 660, 340, 10, 470, 430),
    "kidney_medulla": (270, 480, 720, 690, 270, 10, 560, 470),
    "pancreas": (470, 700, 600, 540, 400, 40, 300, 210),
    "adrenal": (290, 480, 470, 430, 320, 40, 270, 240),
    "gallbladder": (150, 150, 155, 160, 200, 0, 880, 180),
    "stomach_fluid": (130, 130, 135, 140, 170, 0, 680, 90),
    "tumor_in_liver": (290, 620, 460, 420, 330, 20, 400, 520),
    "tumor_elsewhere": (300, 470, 450, 430, 310, 10, 430, 520),
}
"""Signal of each tissue in :data:`COLUMNS`, in parts of 1000: the order is the textbooks', the numbers are ours."""
LIKE = {
    "aorta": "artery", "inferior_vena_cava": "vein", "esophagus": "bowel_wall", "stomach_wall": "bowel_wall",
    "stomach_gas": "gas", "duodenum_wall": "bowel_wall", "duodenum_fluid": "bowel_fluid",
    "right_adrenal_gland": "adrenal", "left_adrenal_gland": "adrenal",
    "right_kidney_cortex": "kidney_cortex", "right_kidney_medulla": "kidney_medulla",
    "left_kidney_cortex": "kidney_cortex", "left_kidney_medulla": "kidney_medulla",
    **{f"tumor_in_{host}": "tumor_elsewhere" for host in ("right_kidney", "left_kidney", "pancreas", "fat")},
}  # fmt: skip


@dataclass(frozen=True)
class Sequence:
    """How a sequence is taken: voxel size in plane and of slices (parts of the finest voxel), noise, bias.

    ``echo`` says how the dual echo's water and fat add up: 1 in phase, -1 out of phase; 0: it is no dual echo.
    """

    name: str
    in_plane: float
    slices: float
    noise: float
    bias: float
    echo: int = 0


SEQUENCES = (
    Sequence("t1w", 1.0, 1.3, 12, 0.16),
    Sequence("arterial", 1.0, 1.3, 14, 0.16),
    Sequence("portal_venous", 1.0, 1.3, 14, 0.16),
    Sequence("delay", 1.0, 1.3, 14, 0.16),
    Sequence("in_phase", 1.1, 1.5, 16, 0.12, echo=1),
    Sequence("out_of_phase", 1.1, 1.5, 16, 0.12, echo=-1),
    Sequence("t2w", 1.0, 1.8, 18, 0.2),
    Sequence("dwi", 1.4, 1.8, 22, 0.22),
)
"""T1W is without contrast agent and does not move: the motion of the others is told against it."""
OTHER_PATIENTS = 10_000  # numbers of MR patients begin here, so that none is a patient of the CT collection
FINE = 0.75  # voxel of the anatomy that sequences are sampled from, in parts of the finest voxel
MARGIN_MM = 30.0
TEXTURE = 0.045  # relative standard deviation of the signal within a tissue
BREATH_REACH_MM = 25.0


@dataclass(frozen=True)
class Motion:
    """Where a point of the T1W image lies in another sequence, in RAS mm around the patient's ``offset``.

    First, what lies deeper than 25 mm in the abdomen sinks by ``breath_mm`` under the diaphragm, half as far at the
    kidneys, a third in the pelvis, less towards the wall. Then everything is turned by ``degrees`` around the x, y and
    z axis and moved by ``shift_mm``. Breathing is no rigid motion: no rigid registration can undo it.
    """

    degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    breath_mm: float = 0.0

    def undone(self, points: Points, patient: Patient) -> Points:
        """Return where ``points`` (x, y, z) of the sequence lie in the T1W image."""
        moved = [p - np.float32(s) for p, s in zip(points, self.shift_mm, strict=True)]
        turned = turn(*self.degrees).T.astype(np.float32)
        x, y, z = (sum(row[i] * moved[i] for i in range(3)) for row in turned)
        if self.breath_mm:
            depth = -patient.wall.outward((x / np.float32(patient.size[0]), y / np.float32(patient.size[1]), z))
            part = np.clip(depth / np.float32(BREATH_REACH_MM), 0, 1) * np.clip((z + 90) / 160, 1 / 3, 1)
            z = z + np.float32(self.breath_mm) * part
        return x, y, z


def draw_motions(rng: np.random.Generator) -> dict[str, Motion]:
    """Draw the motion of each sequence; about a quarter are taken in another breath-hold. Dual echoes move as one."""
    motions = {"t1w": Motion()}
    for sequence in SEQUENCES[1:]:
        degrees, shift = rng.uniform(-2.5, 2.5, 3), rng.uniform(-1, 1, 3) * (5, 5, 6)
        breath = rng.uniform(24, 42) if rng.random() < 0.25 else 0.0
        motions[sequence.name] = Motion(tuple(degrees.round(2).tolist()), tuple(shift.round(2).tolist()), breath)
    return motions | {"out_of_phase": motions["in_phase"]}


class MrPatient:
    """Patient number ``index`` of the MR collection of ``seed``; every third is stored upside down."""

    def __init__(self, seed: int, index: int):
        self.seed, self.index, self.name = seed, index, f"mr_{index:03d}"
        half = HARD if index % 4 == 3 else EASY
        self.patient = draw_patient(seed, OTHER_PATIENTS + index, half, tumors=index % 2 == 0)
        self.upside_down = index % 3 == 1
        self.motions = draw_motions(self._generator(0))

    def _generator(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, OTHER_PATIENTS + self.index, 4, purpose])

    def geometry(self, sequence: Sequence, spacing_mm: float) -> Geometry:
        """Return the grid on which ``sequence`` is stored; ``spacing_mm`` is the finest voxel's size in plane."""
        in_plane, slices = round(spacing_mm * sequence.in_plane, 2), round(spacing_mm * sequence.slices, 2)
        orientation = tuple(ORIENTATIONS)[self.index % len(ORIENTATIONS)]
        return field_of_view(self.patient, spacing=(in_plane, in_plane, slices), orientation=orientation)

    def render(self, spacing_mm: float) -> dict[str, tuple[np.ndarray, np.ndarray, Geometry]]:
        """Return image (int16), full truth (uint8 FLARE ids) and geometry of each sequence, [z, y, x] as stored."""
        anatomy = _Anatomy.of(self.patient, FINE * spacing_mm)
        rendered = {}
        for number, sequence in enumerate(SEQUENCES, start=1):
            geometry = self.geometry(sequence, spacing_mm)
            motion, rng = self.motions[sequence.name], self._generator(number)
            image, truth = (restore(a, geometry) for a in anatomy.scan(sequence, motion, geometry, rng))
            if self.upside_down:  # all grids of the phantom have z as their slowest axis
                image, truth = image[::-1].copy(), truth[::-1].copy()
            rendered[sequence.name] = image, truth, geometry
        return rendered


@dataclass(frozen=True)
class _Anatomy:
    """Tissues of a patient on a fine grid in canonical order: codes, texture, and its axes in mm (z, y, x)."""

    patient: Patient
    codes: np.ndarray
    texture: np.ndarray
    axes: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def of(cls, patient: Patient, spacing_mm: float) -> "_Anatomy":
        view = field_of_view(patient, spacing=(spacing_mm,) * 3, orientation="RAS")
        extra = int(np.ceil(MARGIN_MM / spacing_mm))
        origin = np.asarray(view.origin) - RAS @ np.full(3, extra * spacing_mm)
        x, y, z = (n + 2 * extra for n in view.size)
        grid = Geometry((x, y, z), view.spacing, tuple(origin.tolist()), view.direction)
        axes = grid_axes(grid, patient)
        return cls(patient, tissue_map(patient, grid), patient.texture.on_grid(*axes), axes)

    def scan(
        self, sequence: Sequence, motion: Motion, geometry: Geometry, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return image (int16) and truth (uint8), canonical [z, y, x], of a sequence that is stored on ``geometry``."""
        grid = canonical(Volume(np.empty(geometry.shape, np.uint8), geometry)).geometry
        axes = grid_axes(grid, self.patient)
        z, y, x = (a.astype(np.float32) for a in axes)
        right, front, up = np.broadcast_arrays(x[None, None, :], y[None, :, None], z[:, None, None])
        there = motion.undone((right, front, up), self.patient)
        step = self.axes[0][1] - self.axes[0][0]
        places = [(p - np.float32(a[0])) / np.float32(step) for p, a in zip(reversed(there), self.axes, strict=True)]
        ids = class_ids(load_classes("flare").ids)[self.codes]
        truth = map_coordinates(ids, places, order=0, mode="nearest")
        blur = [0.35 * s / step for s in grid.spacing_zyx]
        signals = [
            map_coordinates(gaussian_filter(part, blur), places, order=1, mode="nearest")
            for part in self._signals(sequence)
        ]
        signal = np.abs(signals[0] + sequence.echo * signals[1]) if sequence.echo else signals[0]
        bias = np.exp(np.float32(sequence.bias) * Field.draw(rng, 150.0, 1.0).on_grid(*axes))
        return _received(signal * bias, sequence.noise, rng), truth

    def _signals(self, sequence: Sequence) -> list[np.ndarray]:
        columns = ("water", "fat") if sequence.echo else (sequence.name,)
        table = np.array([SIGNALS[LIKE.get(t.name, t.name)] for t in TISSUES], np.float32)
        parts = [table[:, COLUMNS.index(column)][self.codes] for column in columns]
        return [part * (1 + np.float32(TEXTURE) * self.texture) for part in parts]


def _received(signal: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Return the magnitude of a complex signal with Gaussian noise (Rice), times the scanner's gain, as int16."""
    gain = rng.uniform(0.6, 2.5)
    real, imaginary = (noise * rng.standard_normal(signal.shape, np.float32) for _ in range(2))
    return np.clip(np.rint(gain * np.hypot(signal + real, imaginary)), 0, 32767).astype(np.int16)


def write_mr(out: Path, patients: int, seed: int, spacing_mm: float) -> list[dict[str, str]]:
    """Write the images of ``patients`` MR patients, their hidden truth, and ``truth_mr.csv``; return their case rows.

    Every fourth patient is for testing: its truth is its label. The others have none. ``truth_mr.csv`` (hidden) says
    of each case how it moved against the patient's T1W image (see :class:`Motion`), around which RAS point, and
    whether it is stored upside down.
    """
    import pandas as pd

    rows, hidden = [], []
    for patient in (MrPatient(seed, index) for index in range(patients)):
        test = patient.index % 4 == 0
        for sequence, (image, truth, geometry) in patient.render(spacing_mm).items():
            case = f"{patient.name}_{sequence}"
            image_file, truth_file = f"images/{case}_0000.nii.gz", f"truth/{case}.nii.gz"
            write(out / image_file, image, geometry)
            write(out / truth_file, truth, geometry)
            rows.append({
                "case": case, "image": image_file, "label": truth_file if test else "", "dataset": "phantom",
                "modality": "MR", "sequence": sequence, "patient": patient.name, "role": "test" if test else "train",
                "annotated": ";".join(load_classes("flare").select(("all",))) if test else "", "surgery": "",
            })  # fmt: skip
            known = {"case": case, "file": truth_file, "upside_down": patient.upside_down}
            hidden.append(known | _told(patient, sequence))
        log.info("%s: %d sequences%s", patient.name, len(SEQUENCES), ", upside down" if patient.upside_down else "")
    with atomic(out / "truth_mr.csv") as temporary:
        pd.DataFrame(hidden).to_csv(temporary, index=False)
    return rows


def _told(patient: MrPatient, sequence: str) -> dict[str, float]:
    motion = patient.motions[sequence]
    parts = (("turn_{}_degrees", motion.degrees), ("shift_{}_mm", motion.shift_mm),
             ("center_{}_mm", patient.patient.offset))  # fmt: skip
    told: dict[str, float] = {}
    for name, values in parts:
        told |= {name.format(axis): value for axis, value in zip("xyz", values, strict=True)}
    return told | {"breath_mm": round(motion.breath_mm, 2)}
