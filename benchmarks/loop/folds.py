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
PARTS = 3
PARTLY = LABELED * PARTS
"""Cases that know a part of the organs each, and as many labels together as :data:`LABELED` that know all."""


class Fold(NamedTuple):
    """The cases of one fold with all their labels: of role test, all are known; of the others, those of ``labeled``.

    ``labeled`` has the known organs of each such case, joined by ``;`` as in a case table.
    """

    name: str
    cases: list[Case]
    labeled: dict[str, str]

    def known(self) -> list[Case]:
        """Return the cases as the loop sees them."""
        return [case if case.role == "test" else self._known(case) for case in self.cases]

    def _known(self, case: Case) -> Case:
        organs = self.labeled.get(case.case, "")
        return case.model_copy(update={"annotated": organs} | ({} if organs else {"label": ""}))

    def truth(self) -> dict[str, Any]:
        """Return the labels of all cases as a recipe's model of files; no test case is learned from."""
        first = self.cases[0]
        return {"files": str(Path(first.label).parent / "{case}.nii.gz"), "dataset": first.dataset, "learned_from": []}


def btcv_folds(folder: Path, partly: bool = False) -> list[Fold]:
    """Return the folds of real scans: each case is tested once; of the others one in three is labeled, or all partly.

    Args:
        partly: each labeled case knows one in three of the organs.
    """
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
        if partly:
            names = [case.case for case in cases if case.role == "train"]
        else:
            names = [case for number, (case, _) in enumerate(found) if number % FOLDS == (fold + 1) % FOLDS]
        folds.append(Fold(f"fold{fold}{'_partly' if partly else ''}", cases, organs_of(names, partly)))
    return folds


def phantom_fold(folder: Path, size: Size, labeled: int = LABELED, partly: bool = False) -> Fold:
    """Return the phantom with all its labels: its own test cases, and of the others the first ones labeled.

    Args:
        partly: each labeled case knows one in three of the organs.
    """
    table = folder / "cases.csv"
    if not table.is_file():
        write_phantom(folder, size.phantoms, seed=1, spacing_mm=size.phantom_mm)
    complete = {"annotated": ";".join(ORGANS)}
    cases = [
        c.model_copy(update=complete | {"label": str((folder / "truth" / f"{c.case}.nii.gz").resolve())})
        for c in load_cases(table)[0]
    ]
    name = "phantom" if labeled == LABELED else f"phantom_{labeled}"  # a run of its own
    names = [c.case for c in cases if c.role == "train"][:labeled]
    return Fold(f"{name}{'_partly' if partly else ''}", cases, organs_of(names, partly))


def organs_of(cases: Sequence[str], partly: bool) -> dict[str, str]:
    """Return the known organs of each labeled case: all, or in turn one in three, large and small ones."""
    parts = [ORGANS[part::PARTS] for part in range(PARTS)] if partly else [ORGANS]
    return {case: ";".join(parts[number % len(parts)]) for number, case in enumerate(cases)}


def resampled(image: sitk.Image, interpolation: int, spacing: Sequence[float]) -> sitk.Image:
    """Return an image with voxels of ``spacing``, in mm, from the same corner on."""
    old = zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)
    size = [max(1, round(n * mm / new)) for n, mm, new in old]
    filled = sitk.GetArrayViewFromImage(image).min().item()
    return sitk.Resample(
        image, size, sitk.Transform(), interpolation, image.GetOrigin(), spacing, image.GetDirection(), filled
    )
