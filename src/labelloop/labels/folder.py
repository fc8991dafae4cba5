"""A folder of label maps: hold it against the anatomy rules, or fit their thresholds to it. ``labelloop check``."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.errors import CaseError, UserError
from labelloop.base.outputs import is_table, refuse_overwriting
from labelloop.base.sequences import flat
from labelloop.base.tables import write_table
from labelloop.base.wording import count, shown
from labelloop.cases.patients import cases_of
from labelloop.cases.table import Case
from labelloop.images.datasets import Dataset, of_scheme
from labelloop.images.listing import Listing, image_cases, list_images, tell
from labelloop.images.mask_folders import list_label_maps, read_label_map
from labelloop.images.nnunet_json import ids_beside
from labelloop.images.scan import check_same_grid, read_image
from labelloop.images.volume import Volume, canonical
from labelloop.labels.check import DOUBT, FAIL, NOT_APPLICABLE, check, load_rules
from labelloop.labels.fit import (
    LEAST_PATIENTS,
    FittedRules,
    fit,
    is_fitted,
    load_fitted,
    may_be_fitted,
    measure,
    with_fitted,
    write_fitted,
)
from labelloop.labels.rules import Rule

log = logging.getLogger(__name__)


def check_folder(
    labels: Path,
    classes: str,
    out: Path,
    images: Path | None = None,
    dataset: str | None = None,
    modality: str = "CT",
    rules: Path | None = None,
    asked: Sequence[str] | None = None,
    table: Path | None = None,
) -> int:
    """Write the verdicts table of all label maps in a folder, or folders with a mask an organ, and log what fails.

    Args:
        images: folder with ``<case>_0000.nii.gz`` or ``<case>.nii.gz``, for the rules that look at intensities.
        dataset: data set whose ids the label maps carry; default: what nnU-Net's ``dataset.json`` beside them says, or
            the ids of ``classes``.
        rules: thresholds fitted by ``labelloop check --fit``; default: those of ``classes``.
        asked: classes, or sets, that the label maps were to show: one that is missing fails. Default: those that
            ``dataset`` annotates and that are seldom removed; without a data set, none.
        table: case table that says the modality of each case, and what was removed (``surgery``). A case that it does
            not name is of ``modality``, and nothing of it was removed.

    Returns:
        How many label maps could not be checked, or images not be read; each is named in the log.

    Raises:
        UserError: when there is nothing to check, ``rules`` do not fit ``classes``, ``asked`` names no class of
            theirs, no image is that of a label map, or ``out`` is a file that is read or no table of verdicts.
    """
    scheme = load_classes(classes)
    if rules:
        scheme = with_fitted(scheme, load_fitted(rules))
    own, said = ids_beside(labels, dataset, scheme)
    wanted = asked_classes(scheme, asked, own if dataset else None)
    doubted = () if asked else wanted  # what a data set annotates may lie outside of a scan, or have been removed
    files = _files(labels, images, own or of_scheme(scheme))
    refuse_overwriting([out], [*_inputs(files), *said, *filter(None, (rules, table))], is_table("verdicts"))
    rows: list[dict[str, Any]] = []
    problems = list(files.lost)
    patients = _patients(table, files, scheme)
    for case, volume, image, own_modality in _maps(files, scheme, own, modality, problems, patients):
        if not np.isin(volume.array, list(scheme.ids.values())).any():
            log.warning("%s: no voxel of any class, so that hardly a rule applies; --asked fails what is missing", case)
        removed = _surgery(case, patients, scheme)
        found = check(volume.array, volume.geometry, {}, scheme, image, own_modality, removed, doubted, wanted)
        rows += [{"case": case, **row} for row in found]
    verdicts = pd.DataFrame(rows)
    write_table(out, verdicts, "verdicts")
    tell_verdicts(verdicts)
    return len(problems)


def asked_classes(scheme: ClassScheme, asked: Sequence[str] | None, dataset: Dataset | None) -> tuple[str, ...]:
    """Return the classes that a label map is to show: those ``asked`` for, by default those of a data set.

    Of what a data set annotates, what is often removed (no rule of kind "expected" speaks of it) may be missing.
    """
    if asked is not None or dataset is None:
        return scheme.select(list(asked or ()))
    expected = flat(rule.classes for rule in load_rules(scheme) if rule.kind == "expected")
    return tuple(name for name in dataset.annotated if name in expected)


def tell_verdicts(table: pd.DataFrame, level: int = logging.WARNING) -> None:
    """Log what fails of a "verdicts" table (at ``level``), what is doubted, and how much: case, class, rule, reason."""
    if table.empty:
        return
    for verdict, loud, word in ((DOUBT, logging.INFO, "doubted, "), (FAIL, level, "")):
        for row in table[table["verdict"] == verdict].to_dict("records"):
            log.log(loud, "%s: %s, %s%s: %s", row["case"], row["class"], word, row["rule"], row["reason"])
    verdicts = ", ".join(f"{number} {verdict}" for verdict, number in table["verdict"].value_counts().items())
    log.info("verdicts: %s; %d of %d case-class rows fail a rule (%.1f %%)", verdicts, *failing(table))


def fit_folder(
    labels: Path,
    classes: str,
    out: Path,
    images: Path | None = None,
    dataset: str | None = None,
    modality: str = "CT",
    table: Path | None = None,
) -> int:
    """Fit thresholds to a folder of fully labeled truth and write them; return how many maps could not be read.

    Args:
        images: folder with ``<case>_0000.nii.gz`` or ``<case>.nii.gz``, to fit intensities.
        dataset: data set whose ids the label maps carry; default: what nnU-Net's ``dataset.json`` beside them says, or
            the ids of ``classes``.
        table: case table that says the modality of each case, its patient, and what was removed (``surgery``), of which
            nothing is measured. A case that it does not name is of ``modality`` and of a patient of its own.

    Raises:
        UserError: when there is nothing to fit to, or too little, no image is that of a label map, or ``out`` is a file
            that is read, or that no fit wrote.
    """
    scheme, measured = load_classes(classes), {}
    own, said = ids_beside(labels, dataset, scheme)
    files = _files(labels, images, own or of_scheme(scheme))
    refuse_overwriting([out], [*_inputs(files), *said, *filter(None, (table,))], is_fitted)
    problems = list(files.lost)
    patients = _patients(table, files, scheme)
    for case, volume, image, own_modality in _maps(files, scheme, own, modality, problems, patients):
        removed = _surgery(case, patients, scheme)
        measured[case] = measure(volume.array, volume.geometry, scheme, image, own_modality, removed)
    of_case = {case: row.patient for case, row in patients.items()}
    fitted = fit(measured, scheme, f"{labels.name} ({len(measured)} cases)", of_case)
    write_fitted(out, fitted)
    _say_fitted(fitted, load_rules(scheme))
    return len(problems)


def _say_fitted(fitted: FittedRules, rules: Sequence[Rule]) -> None:
    for rule in rules:
        for name in rule.classes if may_be_fitted(rule) else ():
            found = fitted.thresholds.get(rule.name, {}).get(name)
            if found is None:
                log.warning("%s of %s: fewer than %d patients, the default stays", rule.name, name, LEAST_PATIENTS)
            else:
                log.info("%s of %s: %s %s (was %s)", rule.name, name, found.threshold, found.unit, found.default)


def failing(verdicts: pd.DataFrame) -> tuple[int, int, float]:
    """Return of a "verdicts" table the rows (case, class) that fail a rule, those to which any applied, and percent."""
    applied = verdicts[verdicts["verdict"] != NOT_APPLICABLE]
    failed = (applied["verdict"] == FAIL).groupby([applied["case"], applied["class"]]).any()
    return int(failed.sum()), len(failed), 100 * float(failed.mean()) if len(failed) else 0.0


@dataclass(frozen=True)
class _Files:
    """Label maps and images of a folder by case, and the cases whose files cannot be read."""

    labels: dict[str, Path]
    images: dict[str, Path]
    lost: tuple[str, ...]


def _files(labels: Path, images: Path | None, dataset: Dataset) -> _Files:
    """List label maps, or folders with masks of classes of a data set, and their images, and say what is left out.

    Raises:
        UserError: when there is no label map, or images are given, and none is that of a label map.
    """
    maps = list_label_maps(labels, dataset)
    masks = any(path.is_dir() for path in maps.volumes.values())
    pictures = list_images(images) if images else Listing(labels, {})
    if images and images.resolve() == labels.resolve() and not masks:
        pictures = Listing(images, {n: p for n, p in pictures.volumes.items() if n not in maps.volumes})
    found = image_cases(pictures, maps.volumes)
    used = {case: files[0] for case, files in found.items() if case in maps.volumes}  # rules know no other channel
    tell(maps, len(maps.volumes), "label map")
    if images:
        tell(pictures, len(used), "image")
    if images and not used:
        raise UserError(
            f"{shown(images)}: no image of these label maps; that of {min(maps.volumes)} would be "
            f"{min(maps.volumes)}_0000.nii.gz or {min(maps.volumes)}.nii.gz"
        )
    if len(found) > len(used):
        log.info("%s: %d left out, no label map of theirs", shown(pictures.folder), len(found) - len(used))
    without = len(maps.volumes) - len(used)
    if images and without:
        log.warning("%s without an image: rules on intensity do not apply", count(without, "label map"))
    return _Files(maps.volumes, used, tuple(entry.case for entry in (*maps.lost, *pictures.lost)))


def _inputs(files: _Files) -> list[Path]:
    return [*files.labels.values(), *files.images.values()]


def _patients(table: Path | None, files: _Files, scheme: ClassScheme) -> dict[str, Case]:
    """Return the rows of a case table by case; label maps that it does not name are told in the log.

    Raises:
        UserError: when the table is no case table, names none of the label maps, or ``surgery`` names no class.
    """
    if table is None:
        return {}
    found = cases_of(table, files.labels, "label map")
    for case in found.values():
        scheme.select(case.surgery_names)
    return found


def _surgery(case: str, patients: Mapping[str, Case], scheme: ClassScheme) -> tuple[str, ...]:
    return scheme.select(patients[case].surgery_names) if case in patients else ()


def _maps(
    files: _Files,
    scheme: ClassScheme,
    dataset: Dataset | None,
    modality: str,
    problems: list[str],
    patients: Mapping[str, Case],
) -> Iterator[tuple[str, Volume, np.ndarray | None, str]]:
    """Yield each case, its canonical label map in the scheme's ids, its image if there is one, and its modality.

    The modality is that of ``patients``, where they name the case. What cannot be read is said in the log, and the case
    added to ``problems``.
    """
    for case, path in files.labels.items():
        own = (patients[case].modality if case in patients else "") or modality
        try:
            volume, image = _read(path, scheme, files.images.get(case), dataset, own)
        except (CaseError, OSError) as error:
            problems.append(case)
            log.error("%s: %s", case, error)
        else:
            yield case, volume, image, own


def _read(
    path: Path, scheme: ClassScheme, image: Path | None, dataset: Dataset | None, modality: str
) -> tuple[Volume, np.ndarray | None]:
    labels = read_label_map(path, scheme, dataset)
    if image is None:
        return canonical(labels), None
    voxels = read_image(image, modality)
    check_same_grid(labels.geometry, voxels.geometry, path)
    return canonical(labels), canonical(voxels).array
