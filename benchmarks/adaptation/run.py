"""Does what carries labels from CT to MR see right? Which end is up, how sequences moved, which transfers are right.

    python benchmarks/adaptation/run.py [--scans ../shared/data] [--write]

On MR phantoms, whose motion and truth are known, and on the real scans in ``--scans``, none of which is upside down:

- upright: each patient judged by its best witness; each real scan as it is, and turned on its head;
- motion: T1W registered to every other sequence; the error is the mean distance, over the body, between where the
  found and the true map put a point. Sequences of another breath-hold stand apart: no rigid map can undo breathing;
- transfer: the true labels of T1W carried to each sequence and judged by its kidneys. A transfer is truly right when
  what it carries agrees with the sequence's truth in a mean DSC of at least 0.85 over liver, spleen and kidneys.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import written_by

from labelloop.base.classes import load_classes
from labelloop.base.files import write_text
from labelloop.cases.body import body_mask, judge_upright
from labelloop.images.volume import RAS, Volume, read
from labelloop.labels.registration import Transform
from labelloop.labels.transfer import Transferred, transfer
from labelloop.metrics.surface import dice
from labelloop.networks.grey import to_grey
from labelloop.networks.settings import UPRIGHT_BY
from labelloop.phantom.mr import Motion, MrPatient
from labelloop.phantom.shapes import turn

RESULT = Path(__file__).resolve().parents[1] / "results" / "adaptation.md"
SEED, SPACING_MM = 5, 4.0
LARGE = ("liver", "spleen", "right_kidney", "left_kidney")
RIGHT_DSC = 0.85
SCHEME = load_classes("flare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=16)
    parser.add_argument("--scans", type=Path, help="folder with real scans, <name>_0000.nii.gz, in any subfolder")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {RESULT.name}")
    options = parser.parse_args()
    found = pd.DataFrame(row for i in range(options.patients) for row in patient_rows(MrPatient(SEED, i)))
    lines = ["## Which end is up", "", *upright_lines(found), *(scan_lines(options.scans) if options.scans else [])]
    lines += ["", "## Motion", "", *motion_lines(found), "", "## Transfer", "", *transfer_lines(found)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        what = f"{options.patients} MR phantoms, seed {SEED}, voxels of {SPACING_MM:g} mm."
        head = f"# From CT to MR: what is seen right\n\n{written_by(__file__, 'numpy', 'SimpleITK')}"
        write_text(RESULT, f"{head}\n\n{what}\n\n{text}")


def patient_rows(patient: MrPatient) -> Iterable[dict]:
    """Yield a row for each sequence of a patient: which way up, how far off the motion, how right the transfer."""
    rendered = patient.render(SPACING_MM)
    stored = {name: Volume(to_grey(image, "MR"), geometry) for name, (image, _, geometry) in rendered.items()}
    witness = next(name for name in UPRIGHT_BY if name in stored)
    judged = judge_upright(stored[witness], "MR").upside_down
    turned = {
        name: (Volume(_upright(image, patient), geometry), Volume(_upright(truth, patient), geometry))
        for name, (image, truth, geometry) in rendered.items()
    }
    images = {name: Volume(to_grey(image.array, "MR"), image.geometry) for name, (image, _) in turned.items()}
    points = body_points(images["t1w"])
    for result in transfer(images, turned["t1w"][1], SCHEME):
        motion, truth = patient.motions[result.sequence], turned[result.sequence][1].array
        true = rigid(motion, patient)
        yield {
            "patient": patient.name,
            "sequence": result.sequence,
            "upside_down": patient.upside_down,
            "judged": judged,
            "breath": bool(motion.breath_mm),
            "moved": float(np.linalg.norm(true(points) - points, axis=1).mean()),
            "error": float(np.linalg.norm(result.transform(points) - true(points), axis=1).mean()),
            "accepted": result.accepted,
            "dsc": true_dsc(result, truth),
        }


def _upright(array: np.ndarray, patient: MrPatient) -> np.ndarray:
    return array[::-1].copy() if patient.upside_down else array


def body_points(image: Volume) -> np.ndarray:
    """Return points (x, y, z) in LPS mm that lie in the body, of every fourth voxel along each axis."""
    index = np.argwhere(body_mask(image)[::4, ::4, ::4])[:, ::-1] * 4
    geometry = image.geometry
    return (index * geometry.spacing) @ np.reshape(geometry.direction, (3, 3)).T + geometry.origin


def rigid(motion: Motion, patient: MrPatient) -> Transform:
    """Return the rigid part of a motion as a map of points in LPS mm: turned around the patient, then moved."""
    matrix = RAS @ turn(*motion.degrees) @ RAS
    center = RAS @ np.asarray(patient.patient.offset)
    return Transform.of(matrix, center - matrix @ center + RAS @ np.asarray(motion.shift_mm))


def true_dsc(result: Transferred, truth: np.ndarray) -> float:
    """Return the mean DSC of carried and true labels over the large organs that the truth has."""
    ids = [SCHEME.ids[name] for name in LARGE if (truth == SCHEME.ids[name]).any()]
    return float(np.mean([dice(truth == i, result.label == i) for i in ids]))


def upright_lines(found: pd.DataFrame) -> Iterable[str]:
    """Yield how many upside-down patients were found, and how many upright ones were turned."""
    patients = found.drop_duplicates("patient")
    down, up = patients[patients.upside_down], patients[~patients.upside_down]
    yield f"MR phantoms: {int(down.judged.sum())} of {len(down)} upside-down patients found, "
    yield f"{int(up.judged.sum())} of {len(up)} upright ones turned wrongly."


def scan_lines(folder: Path) -> Iterable[str]:
    """Yield the same of the real scans, which are judged as they are and turned on their heads."""
    files = sorted(folder.rglob("*_0000.nii.gz"))
    verdicts = []
    for file in files:
        volume, modality = read(file), "MR" if "_mr" in file.name or "chaos" in file.name else "CT"
        grey = Volume(to_grey(volume.array, modality), volume.geometry)
        wrong = Volume(_reversed(grey), grey.geometry)
        verdicts.append([judge_upright(v, modality).upside_down for v in (grey, wrong)])
    turned, found = np.sum(verdicts, axis=0)
    yield f"Real scans, CT and MR: {turned} of {len(files)} turned wrongly; turned on their heads, {found} are found."


def _reversed(volume: Volume) -> np.ndarray:
    """Return the array with head and feet exchanged."""
    along_z = np.argmax(np.abs(np.reshape(volume.geometry.direction, (3, 3))[2]))  # the axis x, y or z that it is
    return np.flip(volume.array, axis=2 - int(along_z)).copy()


def motion_lines(found: pd.DataFrame) -> Iterable[str]:
    """Yield a table of the error of the motions, a line each sequence."""
    yield "Mean over patients, in mm; largest error in brackets."
    yield ""
    yield "| sequence | moved | error | error, other breath-hold | of |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, rows in found.groupby("sequence", sort=False):
        same, other = rows[~rows.breath], rows[rows.breath]
        errors = [f"{r.error.mean():.1f} ({r.error.max():.1f})" if len(r) else "–" for r in (same, other)]
        yield f"| {name} | {rows.moved.mean():.1f} | {errors[0]} | {errors[1]} | {len(same)} + {len(other)} |"


def transfer_lines(found: pd.DataFrame) -> Iterable[str]:
    """Yield a table of right and wrong transfers and what became of them."""
    right = found.dsc >= RIGHT_DSC
    yield "| sequence | right, accepted | right, refused | wrong, accepted | wrong, refused |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    groups = [*found.groupby("sequence", sort=False), ("all", found)]
    for name, rows in groups:
        counts = [
            int(((right == is_right) & (found.accepted == accepted)).loc[rows.index].sum())
            for is_right in (True, False)
            for accepted in (True, False)
        ]
        yield f"| {name} | " + " | ".join(map(str, counts)) + " |"
    yield ""
    for name, chosen, expected in (("accepted", found.accepted, right), ("refused", ~found.accepted, ~right)):
        if chosen.any():
            share, dsc = expected[chosen].mean(), found.dsc[chosen].mean()
            yield f"Of the {name} transfers {share:.0%} are truly to be {name}; their mean true DSC is {dsc:.3f}."
    wrong = found[~right]
    yield f"Of {len(wrong)} wrong transfers {int(wrong.accepted.sum())} are accepted all the same."


if __name__ == "__main__":
    main()
