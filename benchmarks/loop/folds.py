"""What the experiments on the loop train on: real scans in folds, or the phantom."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import SimpleITK as sitk
from arms import ORGANS, Size

from labelloop.cases.folders import pair_folders
from labelloop.cases.table import Case, load_cases
from labelloop.phantom import write_phantom

FOLDS = 4
LABELED = 4


class Fold(NamedTuple):
    """The cases of one fold with all their labels; those ``labeled`` are known, others of role train are not."""

    name: str
    cases: list[Case]
    labeled: frozenset[str]

    def known(self) -> list[Case]:
        """Return the cases as the loop sees them."""
        hidden = {"label": "", "annotated": ""}
        seen = [c.role == "test" or c.case in self.labeled for c in self.cases]
        return [c if s else c.model_copy(update=hidden) for c, s in zip(self.cases, seen, strict=True)]

    def truth(self) -> dict[str, Any]:
        """Return the labels of all cases as a recipe's model of files; no test case is learned from."""
        first = self.cases[0]
        return {"files": str(Path(first.label).parent / "{case}.nii.gz"), "dataset": first.dataset, "learned_from": []}


def btcv_folds(folder: Path) -> list[Fold]:
    """Return the folds of real scans: each case is tested once; of the others one in three is labeled."""
    found = sorted(pair_folders(folder.resolve(), folder.resolve()).items())
    folds = []
    for fold in range(FOLDS):
        cases = [
            Case(
                case=case, image=str(image), label=str(label), dataset="btcv", modality="CT", patient=case,
                role="test" if number % FOLDS == fold else "train", annotated=";".join(ORGANS),
            )
            for number, (case, ((image,), label)) in enumerate(found)
        ]  # fmt: skip
        labeled = frozenset(case for number, (case, _) in enumerate(found) if number % FOLDS == (fold + 1) % FOLDS)
        folds.append(Fold(f"fold{fold}", cases, labeled))
    return folds


def phantom_fold(folder: Path, size: Size, labeled: int = LABELED) -> Fold:
    """Return the phantom with all its labels: its own test cases, and of the others the first ones labeled."""
    table = folder / "cases.csv"
    if not table.is_file():
        write_phantom(folder, size.phantoms, seed=1, spacing_mm=size.phantom_mm)
    complete = {"annotated": ";".join(ORGANS)}
    cases = [
        c.model_copy(update=complete | {"label": str((folder / "truth" / f"{c.case}.nii.gz").resolve())})
        for c in load_cases(table)[0]
    ]
    name = "phantom" if labeled == LABELED else f"phantom_{labeled}"  # a run of its own
    return Fold(name, cases, frozenset([c.case for c in cases if c.role == "train"][:labeled]))


def resampled(image: sitk.Image, interpolation: int, spacing: Sequence[float]) -> sitk.Image:
    """Return an image with voxels of ``spacing``, in mm, from the same corner on."""
    old = zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)
    size = [max(1, round(n * mm / new)) for n, mm, new in old]
    filled = sitk.GetArrayViewFromImage(image).min().item()
    return sitk.Resample(
        image, size, sitk.Transform(), interpolation, image.GetOrigin(), spacing, image.GetDirection(), filled
    )
