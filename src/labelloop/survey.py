"""Survey: look at every file once, before anything is made from it.

Finds the geometry of each image, the annotation state of each class, and every reason not to use a case. What a file
tells by itself is :mod:`labelloop.scan`'s; here image, label, case table and data set are held against each other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from labelloop import cases as case_table
from labelloop import datasets as label_ids
from labelloop import scan
from labelloop.annotation import ABSENT, PRESENT, UNKNOWN, to_table
from labelloop.cases import Case, quarantine
from labelloop.classes import ClassScheme
from labelloop.datasets import Dataset, label_counts, load_dataset
from labelloop.errors import CaseError, UserError
from labelloop.files import digest, stamp
from labelloop.scan import Scan, in_itk, read_scan
from labelloop.shards import Ledger
from labelloop.tables import TABLES, read_table, write_table
from labelloop.volume import Volume, read

VERSION = 1
"""Raise it when the survey finds something else in the same files: every case is then looked at again."""

HU_HIGHEST_MINIMUM, HU_LOWEST_MAXIMUM = -20.0, 30.0
"""A CT of the abdomen in HU holds fat (about -100) and, unless it is saturated, air (-1000), and organs (above 30
with or without contrast). Gray values of 0 to 255, stored values without the rescale intercept, z-scores and data
scaled to [0, 1] or [-1, 1] hold no value below -20. The narrowest saturation met in real data is [-125, 275] HU."""

REASONS: dict[str, str] = {
    **case_table.REASONS,
    **label_ids.REASONS,
    **scan.REASONS,
    "image_not_finite": "Replace NaN and infinite values, e.g. by the value of air, in the tool the scan came from.",
    "image_constant": "Every voxel has the same value: export the scan again.",
    "image_not_hu": "A CT must be in Hounsfield units: export it with rescale slope and intercept, unwindowed; or set "
    "the modality.",
    "image_same_content": "Two cases have the same image file; remove one.",
    "label_size_differs": "Write the label on the image's grid.",
    "label_spacing_differs": "Write the label on the image's grid.",
    "label_direction_differs": "Write the label on the image's grid; a flipped axis swaps left and right.",
    "label_origin_differs": "Write the label on the image's grid.",
    "label_empty": "No voxel has a class. Right only if every annotated class is absent.",
    "label_class_empty": "Annotated but not there. Right after surgery or outside the field of view; else correct the "
    "column annotated.",
    "label_not_annotated": "The label holds a class that nobody is said to have looked for; it is not used. If it is "
    "complete, add it to the column annotated.",
    "annotation_not_declared": "The label is not used, because nothing says what is annotated in it: fill in the "
    "column annotated.",
    "annotated_without_label": "Classes are said to be annotated, but the case has no label: name the label file.",
    "class_unknown": "Write class or set names of the class scheme, separated by ';'.",
    "surgery_contradicted": "The label holds an organ that is said to have been removed: correct one of the two.",
    "survey_failed": "Read the survey's log; if the file is good, report this.",
}
"""What to do about each reason code: the stable vocabulary of ``quarantine.csv``."""

_KINDS = ("geometry", "annotation", "quarantine")


def _error(code: str, file: str | Path, found: str) -> CaseError:
    return CaseError(code, str(file), found, REASONS[code])


@dataclass(frozen=True)
class SurveyResult:
    """What the survey found of one case; ``geometry`` and ``states`` are None when the case is set aside."""

    case: str
    geometry: dict[str, Any] | None
    states: dict[str, str] | None
    quarantine: tuple[dict[str, str], ...]

    @property
    def usable(self) -> bool:
        """Whether the case can be used (there may be warnings)."""
        return self.geometry is not None


class _Findings:
    """The quarantine rows of one case, in the order found."""

    def __init__(self, case: Case):
        self.case = case.case
        self.rows: list[dict[str, str]] = []

    def warn(self, code: str, file: str, found: str) -> None:
        self.rows.append(quarantine(self.case, file, code, found, REASONS[code], "warning"))

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except CaseError as error:
            self.rows.append(quarantine(self.case, error.file, error.code, error.found, error.action))


def survey_case(case: Case, dataset: Dataset, scheme: ClassScheme) -> SurveyResult:
    """Look at one case: read its image and its label once each and report all that is wrong with either.

    An error sets the case aside; a warning keeps it. Without a label, or where nobody looked, a class is unknown.
    """
    findings = _Findings(case)
    image = label = annotated = None
    states = dict.fromkeys(scheme.names, UNKNOWN)
    with findings.errors():
        annotated = annotated_classes(case, dataset, scheme)
    with findings.errors():
        image = read_scan(case.image, "image")
        _check_values(image, case.modality)
    with findings.errors():
        label = read_scan(case.label, "label") if case.label else None
    with findings.errors():
        if image and label:
            _check_same_grid(image, label)
    with findings.errors():
        if label and annotated is not None:
            states |= _states(label, case, dataset, annotated, findings)
    if case.annotated and not case.label:
        findings.warn("annotated_without_label", case.image, f"annotated: {case.annotated}")
    for file in filter(None, (image, label)):
        for code, found in file.warnings:
            findings.warn(code, file.file, found)
    if any(row["severity"] == "error" for row in findings.rows):
        return SurveyResult(case.case, None, None, tuple(findings.rows))
    return SurveyResult(case.case, _geometry_row(case.case, image, label), states, tuple(findings.rows))


def annotated_classes(case: Case, dataset: Dataset, scheme: ClassScheme) -> tuple[str, ...]:
    """Return the classes annotated in a labeled case: as its row says, else as the data set file says.

    Raises:
        CaseError: ``class_unknown`` for names that are no class or set of the scheme, in ``surgery`` too.
    """
    try:
        scheme.select(case.surgery_names)
        return scheme.select(case.annotated_names or dataset.annotated)
    except UserError as error:
        raise _error("class_unknown", case.label or case.image, str(error)) from error


def _check_values(image: Scan, modality: str) -> None:
    low, high = image.range()
    if not np.isfinite([low, high]).all():
        raise _error("image_not_finite", image.file, f"values from {low:g} to {high:g}")
    if low == high:
        raise _error("image_constant", image.file, f"every value is {low:g}")
    if modality == "CT" and (low > HU_HIGHEST_MINIMUM or high < HU_LOWEST_MAXIMUM):
        raise _error("image_not_hu", image.file, f"a CT with values from {low:g} to {high:g}")


def _check_same_grid(image: Scan, label: Scan) -> None:
    difference = label.geometry.difference(image.geometry)
    if difference:
        raise _error(f"label_{difference.split()[0]}_differs", label.file, f"label against image: {difference}")


def _states(
    label: Scan, case: Case, dataset: Dataset, annotated: tuple[str, ...], findings: _Findings
) -> dict[str, str]:
    """Return the states of the annotated classes; warn of empty and of unexpected ones."""
    own = label_counts(label.values(), label.file)
    dataset.check_ids(own, label.file)
    voxels: dict[str, int] = {}
    for own_id, count in own.items():
        name = dataset.class_of(own_id)
        if name is not None:
            voxels[name] = voxels.get(name, 0) + count
    extra = {name: count for name, count in voxels.items() if name not in annotated}
    missing = [name for name in annotated if name not in voxels and name not in case.surgery_names]
    if not annotated:
        findings.warn("annotation_not_declared", label.file, f"holds {', '.join(voxels) or 'no class'}")
    elif not voxels:
        findings.warn("label_empty", label.file, f"no voxel of {', '.join(annotated)}")
    elif missing:
        findings.warn("label_class_empty", label.file, f"no voxel of {', '.join(missing)}")
    if annotated and extra:
        found = ", ".join(f"{count} voxels of {name}" for name, count in extra.items())
        findings.warn("label_not_annotated", label.file, found)
    contradicted = [name for name in case.surgery_names if name in voxels]
    if contradicted:
        findings.warn("surgery_contradicted", label.file, f"holds {', '.join(contradicted)}")
    return {name: PRESENT if name in voxels else ABSENT for name in annotated}


def _geometry_row(case: str, image: Scan, label: Scan | None) -> dict[str, Any]:
    g, (low, high) = image.geometry, image.range()
    row: dict[str, Any] = {"case": case}
    row |= {f"size_{axis}": int(n) for axis, n in zip("xyz", g.size, strict=True)}
    row |= {f"spacing_{axis}_mm": float(s) for axis, s in zip("xyz", g.spacing, strict=True)}
    row["orientation"] = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(g.direction)
    row |= {"minimum": low, "maximum": high, "image_sha256": image.sha256}
    return row | {"label_sha256": label.sha256 if label else ""}


def survey_shard(
    cases: Sequence[Case], scheme: ClassScheme, out_prefix: str | Path, tested: Mapping[str, str] | None = None
) -> None:
    """Survey the cases of one shard and write ``<out_prefix>.geometry.csv``, ``.annotation.csv``, ``.quarantine.csv``.

    Cases whose row, data set and files (size and time) are as they were are not read again (:class:`shards.Ledger`).

    Args:
        tested: test case of each image content (sha256). Cases with such an image are set aside.

    Raises:
        UserError: when a data set file is missing or wrong.
    """
    prefix = Path(out_prefix)
    datasets = {name: load_dataset(name, scheme) for name in sorted({case.dataset for case in cases})}
    ledger = Ledger(prefix.parent, prefix.name)
    results = []
    for case in cases:
        dataset = datasets[case.dataset]

        def work(case=case, dataset=dataset):
            return None, vars(survey_case(case, dataset, scheme))

        row = ledger.run(case.case, _key(case, dataset, scheme), work)
        result = SurveyResult(**row["extra"]) if row["status"] == "done" else _failed(case, row["reason"])
        results.append(_unless_tested(result, case, tested or {}))
    ledger.close()
    geometries = {r.case: r.geometry for r in results if r.geometry is not None}
    states = {r.case: r.states for r in results if r.states is not None}
    ids = {case.case: datasets[case.dataset].fingerprint if case.label else "" for case in cases}
    rows = [row | {"label_ids": ids[case]} for case, row in geometries.items()]
    write_table(f"{prefix}.geometry.csv", rows, "geometry")
    write_table(f"{prefix}.annotation.csv", to_table(states, scheme.names), "annotation")
    write_table(f"{prefix}.quarantine.csv", [q for r in results for q in r.quarantine], "quarantine")


def _key(case: Case, dataset: Dataset, scheme: ClassScheme) -> str:
    row = case.model_dump(exclude={"role", "patient", "sequence"})
    stamps = [stamp(file) if file else None for file in (case.image, case.label)]
    return digest([VERSION, row, dataset.model_dump(), scheme.ids, scheme.sets, *stamps])


def _failed(case: Case, reason: str) -> SurveyResult:
    row = quarantine(case.case, case.image, "survey_failed", reason, REASONS["survey_failed"])
    return SurveyResult(case.case, None, None, (row,))


def _unless_tested(result: SurveyResult, case: Case, tested: Mapping[str, str]) -> SurveyResult:
    """Set a case aside whose image file is, byte for byte, that of a test case."""
    other = tested.get(result.geometry["image_sha256"]) if result.geometry else None
    if other is None:
        return result
    code, found = "image_straddles", f"byte for byte the image of {other}, which is tested on"
    row = quarantine(case.case, case.image, code, found, REASONS[code])
    return SurveyResult(case.case, None, None, (*result.quarantine, row))


def merge_survey(
    prefixes: Iterable[str | Path], out_dir: str | Path, rejected: Sequence[Mapping[str, str]] = ()
) -> None:
    """Merge the shards' tables into ``geometry.csv``, ``annotation.csv`` and ``quarantine.csv`` in ``out_dir``.

    Args:
        prefixes: the ``out_prefix`` of every shard.
        rejected: quarantine rows of the case table (:func:`cases.load_cases`).
    """
    prefixes = list(prefixes)
    tables = {kind: _concatenated([f"{p}.{kind}.csv" for p in prefixes], kind) for kind in _KINDS}
    more = [*rejected, *_same_content(tables["geometry"])]
    if more:
        tables["quarantine"] = pd.concat([tables["quarantine"], pd.DataFrame(more)])
    for kind, table in tables.items():
        write_table(Path(out_dir) / f"{kind}.csv", table, kind)


def _concatenated(paths: list[str], kind: str) -> pd.DataFrame:
    tables = [table for table in (read_table(path, kind) for path in paths) if not table.empty]
    return pd.concat(tables) if tables else pd.DataFrame(columns=list(TABLES[kind]))


def _same_content(geometry: pd.DataFrame) -> list[dict]:
    """Return warnings for cases whose image file is, byte for byte, that of an earlier case."""
    code, rows = "image_same_content", []
    first: dict[str, str] = {}
    ordered = geometry.sort_values("case")
    for case, content in zip(ordered["case"], ordered["image_sha256"], strict=True):
        other = first.setdefault(content, case)
        if other != case:
            found = f"the image file of {other} (sha256 {content[:12]})"
            rows.append(quarantine(case, "", code, found, REASONS[code], "warning"))
    return rows


def read_truth(case: Case, scheme: ClassScheme) -> Volume | None:
    """Return a case's label map in class ids (uint8, axes as stored); None without a label.

    Only annotated classes are in it: voxels of others are background, as the survey's ``label_not_annotated`` said.

    Raises:
        CaseError: when the label cannot be read or mapped.
    """
    if not case.label:
        return None
    if not Path(case.label).is_file():
        raise _error("label_missing", case.label, "no such file")
    dataset = load_dataset(case.dataset, scheme)
    volume = in_itk(case.label, "label", lambda: read(case.label))
    array = dataset.to_classes(volume.array, case.label)
    keep = np.zeros(256, np.uint8)
    for name in annotated_classes(case, dataset, scheme):
        keep[scheme.ids[name]] = scheme.ids[name]
    return Volume(keep[array], volume.geometry)
