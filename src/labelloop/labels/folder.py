"""A folder of label maps: hold it against the anatomy rules, or fit their thresholds to it. ``labelloop check``."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labelloop.classes import ClassScheme, load_classes
from labelloop.datasets import Dataset, load_dataset
from labelloop.errors import CaseError, UserError
from labelloop.folders import label_maps, volumes_in
from labelloop.labels.check import FAIL, NOT_APPLICABLE, check, load_rules
from labelloop.labels.fit import LEAST_CASES, SIDES, FittedRules, fit, load_fitted, measure, with_fitted, write_fitted
from labelloop.labels.rules import Rule
from labelloop.scan import check_same_grid, read_classes, read_image
from labelloop.tables import write_table
from labelloop.volume import Volume, canonical

log = logging.getLogger(__name__)


def check_folder(
    labels: Path,
    classes: str,
    out: Path,
    images: Path | None = None,
    dataset: str | None = None,
    modality: str = "CT",
    rules: Path | None = None,
) -> int:
    """Write the verdicts table of all label maps in a folder and log what fails.

    Args:
        images: folder with ``<case>_0000.nii.gz`` or ``<case>.nii.gz``, for the rules that look at intensities.
        dataset: data set whose ids the label maps carry; default: the ids of ``classes``.
        rules: thresholds fitted by ``labelloop check --fit``; default: those of ``classes``.

    Returns:
        How many label maps could not be checked; each is named in the log.

    Raises:
        UserError: when there is nothing to check, or ``rules`` do not fit ``classes``.
    """
    scheme = load_classes(classes)
    if rules:
        scheme = with_fitted(scheme, load_fitted(rules))
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for case, volume, image in _maps(labels, scheme, images, dataset, modality, problems):
        rows += [{"case": case, **row} for row in check(volume.array, volume.geometry, {}, scheme, image, modality)]
    table = pd.DataFrame(rows)
    write_table(out, table, "verdicts")
    if not table.empty:
        for row in table[table["verdict"] == "fail"].itertuples():
            log.warning("%s: %s", row.case, row.reason)
        log.info("%s", table["verdict"].value_counts().to_string())
        log.info("%d of %d case-class rows fail a rule (%.1f %%)", *failing(table))
    return len(problems)


def fit_folder(
    labels: Path,
    classes: str,
    out: Path,
    images: Path | None = None,
    dataset: str | None = None,
    modality: str = "CT",
) -> int:
    """Fit thresholds to a folder of fully labeled truth and write them; return how many maps could not be read.

    Args:
        images: folder with ``<case>_0000.nii.gz`` or ``<case>.nii.gz``, to fit intensities.
        dataset: data set whose ids the label maps carry; default: the ids of ``classes``.

    Raises:
        UserError: when there is nothing to fit to, or too little.
    """
    scheme, measured = load_classes(classes), []
    problems: list[str] = []
    for _, volume, image in _maps(labels, scheme, images, dataset, modality, problems):
        measured.append(measure(volume.array, volume.geometry, scheme, image, modality))
    fitted = fit(measured, scheme, f"{labels.name} ({len(measured)} cases)")
    write_fitted(out, fitted)
    _say_fitted(fitted, load_rules(scheme))
    return len(problems)


def _say_fitted(fitted: FittedRules, rules: Sequence[Rule]) -> None:
    for rule in rules:
        for name in rule.classes if rule.kind in SIDES else ():
            found = fitted.thresholds.get(rule.name, {}).get(name)
            if found is None:
                log.warning("%s of %s: fewer than %d cases, the default stays", rule.name, name, LEAST_CASES)
            else:
                log.info("%s of %s: %s %s (was %s)", rule.name, name, found.threshold, found.unit, found.default)


def failing(verdicts: pd.DataFrame) -> tuple[int, int, float]:
    """Return of a "verdicts" table the rows (case, class) that fail a rule, those to which any applied, and percent."""
    applied = verdicts[verdicts["verdict"] != NOT_APPLICABLE]
    failed = (applied["verdict"] == FAIL).groupby([applied["case"], applied["class"]]).any()
    return int(failed.sum()), len(failed), 100 * float(failed.mean()) if len(failed) else 0.0


def _maps(
    labels: Path, scheme: ClassScheme, images: Path | None, dataset: str | None, modality: str, problems: list[str]
) -> Iterator[tuple[str, Volume, np.ndarray | None]]:
    """Yield each case of a folder, its canonical label map in the scheme's ids, and its image if there is one.

    What cannot be read is said in the log, and the case added to ``problems``.

    Raises:
        UserError: when the folder holds no label map, or the other folder no image of any.
    """
    files = label_maps(labels)
    own = load_dataset(dataset, scheme) if dataset else None
    found = _images_of(files, images) if images else {}
    for case, path in files.items():
        try:
            volume, image = _read(path, scheme, found.get(case), own, modality)
        except (CaseError, OSError) as error:
            problems.append(case)
            log.error("%s: %s", case, error)
        else:
            yield case, volume, image


def _images_of(cases: Iterable[str], images: Path) -> dict[str, Path]:
    """Return the image of each case; those without are named in the log. Raises UserError when none has one."""
    beside = volumes_in(images)
    found = {case: beside.get(f"{case}_0000", beside.get(case)) for case in cases}
    without = [case for case, image in found.items() if image is None]
    if len(without) == len(found):
        raise UserError(
            f"{images}: no image of any label map; looked for {without[0]}_0000 and {without[0]}, found "
            f"{', '.join(list(beside)[:3]) or 'no image'}"
        )
    if without:
        log.warning(
            "%s: no image of %d label maps, no rule looks at one: %s", images, len(without), ", ".join(without[:5])
        )
    return {case: image for case, image in found.items() if image is not None}


def _read(
    path: Path, scheme: ClassScheme, image: Path | None, dataset: Dataset | None, modality: str
) -> tuple[Volume, np.ndarray | None]:
    labels = read_classes(path, scheme, dataset)
    if image is None:
        return canonical(labels), None
    voxels = read_image(image, modality)
    check_same_grid(labels.geometry, voxels.geometry, path)
    return canonical(labels), canonical(voxels).array
