"""Write a collection of synthetic patients as annotators would have left it: partial, here and there wrong."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.errors import UserError
from labelloop.base.files import atomic
from labelloop.base.outputs import has_columns, refuse_overwriting
from labelloop.base.tables import write_table
from labelloop.images.volume import Geometry, write
from labelloop.phantom.mr import write_mr
from labelloop.phantom.patient import EASY, HARD, ORIENTATIONS, draw_patient, field_of_view, render

log = logging.getLogger(__name__)

SMALLEST = 8
TEST, ORGANS, PARTIAL, TUMOR, UNLABELED = "test", "organs", "partial", "tumor", "unlabeled"
ISLANDS, SWAPPED = "islands", "swapped_sides"
SPLENECTOMY, NO_GALLBLADDER, CUT = "splenectomy", "no_gallbladder", "cut_field_of_view"
PARTIAL_SETS = (
    ("liver", "right_kidney", "spleen", "pancreas", "left_kidney"),
    ("liver", "spleen", "gallbladder", "stomach"),
    ("aorta", "inferior_vena_cava", "esophagus", "duodenum", "right_adrenal_gland", "left_adrenal_gland"),
)
TUMOR_SETS = (("tumor",), ("tumor",), ("liver", "tumor"), ("tumor",), ("right_kidney", "left_kidney", "tumor"))
SPECIAL = {(TEST, 0): NO_GALLBLADDER, (TEST, 1): CUT, (ORGANS, 1): SPLENECTOMY}
NOISE = {(ORGANS, 0): ISLANDS, (PARTIAL, 0): SWAPPED}
ABSENT = {SPLENECTOMY: ("spleen",), NO_GALLBLADDER: ("gallbladder",)}
SURGERY = {SPLENECTOMY: "spleen"}  # why the gallbladder is missing nobody wrote down: the annotation alone says so
ISLAND_DISTANCE_MM = 25.0
TRUTH_COLUMNS = ("case", "file", "kind", "half", "noise", "special")


@dataclass(frozen=True)
class CasePlan:
    """What case ``index`` is to show; ``rank`` counts within its kind."""

    index: int
    kind: str
    rank: int

    @property
    def name(self) -> str:
        return f"phantom_{self.index:03d}"

    @property
    def half(self) -> str:
        return HARD if self.rank % 2 else EASY

    @property
    def special(self) -> str:
        return SPECIAL.get((self.kind, self.rank), "")

    @property
    def noise(self) -> str:
        return NOISE.get((self.kind, self.rank), "")

    @property
    def tumors(self) -> bool:
        """Half of the cases without tumor annotation have tumors; most test cases, all tumor cases."""
        return {TUMOR: True, TEST: self.rank % 4 != 3}.get(self.kind, self.rank % 4 in (0, 3))

    def annotated(self, classes: ClassScheme) -> tuple[str, ...]:
        """Return the classes that somebody looked for, in the order of the scheme."""
        if self.kind == UNLABELED:
            return ()
        sets = {
            TEST: ("all",),
            ORGANS: ("organs",),
            PARTIAL: PARTIAL_SETS[self.rank % len(PARTIAL_SETS)],
            TUMOR: TUMOR_SETS[self.rank % len(TUMOR_SETS)],
        }
        return classes.select(sets[self.kind])


def plan_cases(cases: int) -> list[CasePlan]:
    """Deal the kinds to the cases, evenly mixed: a quarter each test, organs and tumor, a fifth partial organs.

    Raises:
        UserError: for fewer than 8 cases, which cannot hold one of each kind.
    """
    if cases < SMALLEST:
        raise UserError(f"the phantom needs at least {SMALLEST} cases to hold one of each kind; {cases} were asked for")
    counts = {TEST: cases // 4, ORGANS: cases // 4, PARTIAL: cases // 5, TUMOR: cases // 4}
    counts[UNLABELED] = cases - sum(counts.values())
    dealt: list[tuple[float, str, int]] = []
    for kind, count in counts.items():
        dealt += [((rank + 0.5) / count, kind, rank) for rank in range(count)]
    dealt.sort()
    return [CasePlan(index, kind, rank) for index, (_, kind, rank) in enumerate(dealt)]


def _geometry(patient, plan: CasePlan, rng: np.random.Generator, spacing_mm: float) -> Geometry:
    in_plane = round(spacing_mm * rng.uniform(1.0, 1.12), 2)
    slices = round(spacing_mm * float(rng.choice([0.8, 1.0, 1.2])), 2)
    height = float(rng.uniform(-4, 10))
    orientation = tuple(ORIENTATIONS)[plan.index % len(ORIENTATIONS)]
    low = height if plan.special == CUT else None
    return field_of_view(patient, spacing=(in_plane, in_plane, slices), orientation=orientation, low_mm=low)


def _with_islands(label: np.ndarray, body: np.ndarray, geometry: Geometry, ids: list[int], rng) -> np.ndarray:
    """Add one ball of 8 to 11 mm radius per id, at least 25 mm away from all of that class."""
    noisy = label.copy()
    for i in ids:
        far = distance_transform_edt(label != i, sampling=geometry.spacing_zyx) > ISLAND_DISTANCE_MM
        places = np.argwhere(far & body)
        center = places[rng.integers(len(places))]
        axes = np.ogrid[tuple(slice(0, n) for n in label.shape)]
        square = sum(((a - c) * s) ** 2 for a, c, s in zip(axes, center, geometry.spacing_zyx, strict=True))
        noisy[square < rng.uniform(8, 11) ** 2] = i
    return noisy


def _annotate(plan: CasePlan, truth, image, geometry: Geometry, classes: ClassScheme, rng) -> np.ndarray:
    """Return the label map the annotators gave: the truth of what they looked for, with their mistakes."""
    kept = [classes.ids[name] for name in plan.annotated(classes)]
    label = np.where(np.isin(truth, kept), truth, 0).astype(np.uint8)
    if plan.noise == ISLANDS:
        body = (image > -50) & (image < 200)
        return _with_islands(label, body, geometry, [classes.ids[n] for n in ("liver", "spleen", "pancreas")], rng)
    if plan.noise == SWAPPED:
        right, left = classes.ids["right_kidney"], classes.ids["left_kidney"]
        swap = np.arange(256, dtype=np.uint8)
        swap[[right, left]] = left, right
        return swap[label]
    return label


def write_phantom(out: str | Path, cases: int, seed: int, spacing_mm: float = 5.0, mr_patients: int = 0) -> Path:
    """Write a deterministic synthetic abdomen CT collection; return the path of its case table.

    Under ``out``: ``images/<case>_0000.nii.gz``, ``labels/<case>.nii.gz`` (what annotators gave: partial, two of
    them wrong), ``truth/<case>.nii.gz`` (hidden: everything, FLARE ids), ``cases.csv`` (a ``cases`` table) and
    ``truth.csv`` (hidden: kind, half, injected noise and special anatomy of each case). The same arguments give
    the same bytes; a case's patient depends on seed and number only, what is made of it also on ``cases``.

    Args:
        out: folder, made if missing.
        cases: number of cases, at least 8.
        seed: seed of the collection.
        spacing_mm: finest voxel size in plane; cases have 1 to 1.12 times that, and slices of 0.8 to 1.2 times.
        mr_patients: number of other patients to write MR of, eight sequences each (see ``phantom.mr``).

    Raises:
        UserError: for fewer than 8 cases, a spacing that is not positive, or a folder with tables of somebody else's.
    """
    import pandas as pd

    out, classes = Path(out), load_classes("flare")
    if not spacing_mm > 0:
        raise UserError(f"the phantom's spacing must be above 0 mm; {spacing_mm} was asked for")
    rows, hidden = [], []
    refuse_overwriting([out / "cases.csv", out / "truth.csv"], [], lambda _: _is_phantom(out))
    for plan in plan_cases(cases):
        rng = np.random.default_rng([seed, plan.index, 3])
        patient = draw_patient(seed, plan.index, plan.half, plan.tumors, ABSENT.get(plan.special, ()))
        geometry = _geometry(patient, plan, rng, spacing_mm)
        image, truth = render(patient, geometry)
        files = {"image": f"images/{plan.name}_0000.nii.gz", "label": "", "truth": f"truth/{plan.name}.nii.gz"}
        write(out / files["image"], image, geometry)
        write(out / files["truth"], truth, geometry)
        annotated = plan.annotated(classes)
        if annotated:
            files["label"] = f"labels/{plan.name}.nii.gz"
            write(out / files["label"], _annotate(plan, truth, image, geometry, classes, rng), geometry)
        rows.append({
            "case": plan.name, "image": files["image"], "label": files["label"], "dataset": "phantom", "modality": "CT",
            "sequence": patient.scan.phase, "patient": plan.name, "role": "test" if plan.kind == TEST else "train",
            "annotated": ";".join(annotated), "surgery": SURGERY.get(plan.special, ""),
        })  # fmt: skip
        hidden.append((plan.name, files["truth"], plan.kind, plan.half, plan.noise, plan.special))
        log.info("%s: %s, %s, %s", plan.name, plan.kind, plan.half, " x ".join(map(str, geometry.size)))
    with atomic(out / "truth.csv") as temporary:
        pd.DataFrame(hidden, columns=list(TRUTH_COLUMNS)).to_csv(temporary, index=False)
    if mr_patients:
        rows += write_mr(out, mr_patients, seed, spacing_mm)
    write_table(out / "cases.csv", rows, "cases")
    return out / "cases.csv"


def _is_phantom(folder: Path) -> bool:
    """Say whether a folder's tables are those of a collection that was written here."""
    return has_columns(folder / "truth.csv", TRUTH_COLUMNS)
