"""Hold a folder of label maps against the anatomy rules: ``labelloop check``."""

import logging
from pathlib import Path

import pandas as pd

from labelloop.cases import volumes_in
from labelloop.classes import BACKGROUND, load_classes
from labelloop.errors import CaseError, UserError
from labelloop.labels.check import check
from labelloop.tables import write_table
from labelloop.volume import canonical, read, whole_numbers

log = logging.getLogger(__name__)


def check_folder(
    labels: Path, classes: str, out: Path, images: Path | None = None, dataset: str | None = None, modality: str = "CT"
) -> int:
    """Write the verdicts table of all label maps in a folder and log what fails.

    Args:
        images: folder with ``<case>_0000.nii.gz`` or ``<case>.nii.gz``, for the rules that look at intensities.
        dataset: data set whose ids the label maps carry; default: the ids of ``classes``.

    Returns:
        How many label maps could not be checked; each is named in the log.

    Raises:
        UserError: when there is nothing to check.
    """
    scheme = load_classes(classes)
    files = volumes_in(labels)
    found = volumes_in(images) if images else {}
    if not files:
        raise UserError(f"{labels}: no label map to check")
    rows, problems = [], 0
    for case, path in files.items():
        if case.endswith("_0000"):
            continue
        try:
            rows += [{"case": case, **row} for row in _check_file(path, scheme, found, case, dataset, modality)]
        except (CaseError, ValueError, RuntimeError) as error:
            problems += 1
            log.error("%s: %s", case, error)
    table = pd.DataFrame(rows)
    write_table(out, table, "verdicts")
    if not table.empty:
        for row in table[table["verdict"] == "fail"].itertuples():
            log.warning("%s: %s", row.case, row.reason)
        log.info("%s", table["verdict"].value_counts().to_string())
    return problems


def _check_file(path: Path, scheme, images: dict[str, Path], case: str, dataset: str | None, modality: str):
    volume = canonical(read(path))
    if dataset:
        from labelloop.datasets import load_dataset

        labels = load_dataset(dataset, scheme).to_classes(volume.array, str(path))
    else:
        labels = whole_numbers(volume.array)
        strange = set(map(int, pd.unique(labels.ravel()))) - {BACKGROUND, *scheme.ids.values()}
        if strange:
            raise ValueError(f"{path}: ids {sorted(strange)} are none of scheme {scheme.name}; name its --dataset")
    image = images.get(f"{case}_0000", images.get(case))
    voxels = canonical(read(image)).array if image else None
    return check(labels, volume.geometry, {}, scheme, voxels, modality)
