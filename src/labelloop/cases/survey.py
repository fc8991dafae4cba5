"""Survey: look at every file once, before anything is made from it.

Finds the geometry of each image, the annotation state of each class, and every reason not to use a case. What a file
tells by itself is :mod:`labelloop.images.scan`'s; here image, label, case table and data set are held against each
other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from labelloop.base.channels import modality_of
from labelloop.base.classes import IGNORED, ClassScheme
from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import digest
from labelloop.base.sequences import flat
from labelloop.base.shards import Ledger
from labelloop.base.tables import TABLES, read_table
from labelloop.cases import table as case_table
from labelloop.cases.alike import find_alike, profile, voxel_fingerprint
from labelloop.cases.annotation import ABSENT, PRESENT, UNKNOWN, to_table
from labelloop.cases.table import SURVEY_VERSION, Case, quarantine
from labelloop.images import scan
from labelloop.images.datasets import Dataset, label_counts, load_dataset
from labelloop.images.detached import stamps as stamps_of
from labelloop.images.hounsfield import clipping_limits
from labelloop.images.scan import Scan, ScanFile, check_same_grid, check_values, content_key, read_scan
from labelloop.images.volume import Volume

REASONS: dict[str, str] = {
    **case_table.REASONS,
    **scan.REASONS,
    "image_same_content": "Two cases have the same image; remove one.",
    "image_alike": "If both are of one examination (resampled, cropped, denoised), what is trained on is tested on: "
    "give both cases one patient, or remove one.",
    "channel_repeated": "Two channels are files of the same content: copy the right one, unless this is meant.",
    "label_empty": "No voxel has a class. Right only if every annotated class is absent.",
    "label_class_empty": "Annotated but not there. Right after surgery or outside the field of view; else correct the "
    "column annotated.",
    "label_class_ignored": "It may lie under the ignored voxels, so it is unknown in this case. To make it absent, "
    "label these voxels.",
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


@dataclass(frozen=True)
class SurveyResult:
    """What the survey found of one case; ``geometry`` and ``states`` are None when the case is set aside."""

    case: str
    geometry: dict[str, Any] | None
    states: dict[str, str] | None
    quarantine: tuple[dict[str, str], ...]
    profile: str = ""

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
        image = _Surveyed.read(case.images[0], "image")
        for code, found in check_values(image.volume.array, case.modality, case.images[0]):
            findings.warn(code, case.images[0], found)
    more = _read_more(case, dataset, image, findings)
    with findings.errors():
        label = _Surveyed.read(case.label, "label") if case.label else None
    with findings.errors():
        if image and label:
            check_same_grid(label.volume.geometry, image.volume.geometry, case.label)
    with findings.errors():
        if label and annotated is not None:
            states |= _states(label.volume.array, case, dataset, annotated, findings)
    if case.annotated and not case.label:
        findings.warn("annotated_without_label", case.images[0], f"annotated: {case.annotated}")
    for file in filter(None, (image, label)):
        for code, found in file.scan.warnings:
            findings.warn(code, file.scan.file, found)
    if image is None or any(row["severity"] == "error" for row in findings.rows):
        return SurveyResult(case.case, None, None, tuple(findings.rows))
    row = _geometry_row(case, image, label, content_key([image.sha256, *more]))
    return SurveyResult(case.case, row, states, tuple(findings.rows), profile(image.volume, case.modality))


@dataclass(frozen=True)
class _Surveyed:
    """A file that could be read: what it is, its values, and the fingerprint of its bytes."""

    scan: Scan
    volume: Volume
    sha256: str

    @classmethod
    def read(cls, path: str, kind: str) -> "_Surveyed":
        """Read a file. Raises CaseError as :func:`labelloop.images.scan.read_scan`."""
        file = ScanFile(path, kind)
        sha256, scan = file.sha256(), file.scan()
        return cls(scan, scan.volume(), sha256)


def _read_more(case: Case, dataset: Dataset, image: _Surveyed | None, findings: _Findings) -> list[str]:
    """Look at the channels after the first, ``image``; return the fingerprints of their files."""
    hashes: list[str] = []
    for file, name in zip(case.images[1:], dataset.channels[1:], strict=True):
        with findings.errors():
            channel = _Surveyed.read(file, "image")
            if channel.sha256 in (*hashes, image.sha256 if image else ""):
                findings.warn("channel_repeated", file, "the same bytes as an earlier channel")
            hashes.append(channel.sha256)
            doubtful = check_values(channel.volume.array, modality_of(name), file, first=False)
            for code, found in (*doubtful, *channel.scan.warnings):
                findings.warn(code, file, found)
            if image:
                check_same_grid(channel.volume.geometry, image.volume.geometry, file, case.images[0])
    return hashes


def annotated_classes(case: Case, dataset: Dataset, scheme: ClassScheme) -> tuple[str, ...]:
    """Return the classes annotated in a labeled case: as its row says, else as the data set file says.

    Raises:
        CaseError: ``class_unknown`` for names that are no class or set of the scheme, in ``surgery`` too.
    """
    try:
        scheme.select(case.surgery_names)
        return scheme.select(case.annotated_names(dataset.annotated))
    except UserError as error:
        code = "class_unknown"
        raise CaseError(code, case.label or case.images[0], str(error), REASONS[code]) from error


def _states(
    label: np.ndarray, case: Case, dataset: Dataset, annotated: tuple[str, ...], findings: _Findings
) -> dict[str, str]:
    """Return the states of the annotated classes; warn of empty and of unexpected ones.

    A class that is not seen beside ignored voxels may lie under them: it is unknown.
    """
    own = label_counts(label, case.label)
    dataset.check_ids(own, case.label)
    ignored = sum(count for own_id, count in own.items() if own_id in dataset.ignored)
    voxels: dict[str, int] = {}
    for own_id, count in own.items():
        name = dataset.class_of(own_id)
        if name is not None:
            voxels[name] = voxels.get(name, 0) + count
    extra = {name: count for name, count in voxels.items() if name not in annotated}
    missing = [name for name in annotated if name not in voxels and name not in case.surgery_names]
    if not annotated:
        findings.warn("annotation_not_declared", case.label, f"holds {', '.join(voxels) or 'no class'}")
    elif ignored and missing:
        found = f"{ignored} ignored voxels, and no voxel of {', '.join(missing)}"
        findings.warn("label_class_ignored", case.label, found)
    elif not voxels:
        findings.warn("label_empty", case.label, f"no voxel of {', '.join(annotated)}")
    elif missing:
        findings.warn("label_class_empty", case.label, f"no voxel of {', '.join(missing)}")
    if annotated and extra:
        found = ", ".join(f"{count} voxels of {name}" for name, count in extra.items())
        findings.warn("label_not_annotated", case.label, found)
    contradicted = [name for name in case.surgery_names if name in voxels]
    if contradicted:
        findings.warn("surgery_contradicted", case.label, f"holds {', '.join(contradicted)}")
    states = dict.fromkeys(annotated, UNKNOWN if ignored else ABSENT)
    states |= {name: ABSENT for name in case.surgery_names if name in states}
    return states | {name: PRESENT for name in voxels if name in states}


def _geometry_row(case: Case, image: _Surveyed, label: _Surveyed | None, sha256: str) -> dict[str, Any]:
    g, values = image.volume.geometry, image.volume.array
    low, high = image.scan.range()
    row: dict[str, Any] = {"case": case.case}
    row |= {f"size_{axis}": int(n) for axis, n in zip("xyz", g.size, strict=True)}
    row |= {f"spacing_{axis}_mm": float(s) for axis, s in zip("xyz", g.spacing, strict=True)}
    row["orientation"] = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(g.direction)
    ends = clipping_limits(values, low, high) if case.modality == "CT" else (None, None)
    row |= {"minimum": low, "maximum": high}
    row["clipped_hu"] = ";".join(
        f"{word} {end:g}" for word, end in zip(("below", "above"), ends, strict=True) if end is not None
    )
    row |= {"image_sha256": sha256, "image_voxels": voxel_fingerprint(values)}
    return row | {"label_sha256": label.sha256 if label else ""}


def survey_shard(
    cases: Sequence[Case], scheme: ClassScheme, ledger: Ledger, tested: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Survey the cases of one shard; return its tables by kind: geometry, annotation, quarantine and profiles.

    Cases whose row, data set and files (size and time) are as they were are not read again (:class:`shards.Ledger`).

    Args:
        tested: test case of each image content (``image_voxels``). Cases with such an image are set aside.

    Raises:
        UserError: when a data set file is missing or wrong.
    """
    datasets = {name: load_dataset(name, scheme) for name in sorted({case.dataset for case in cases})}
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
    return {
        "geometry": [row | {"label_ids": ids[case]} for case, row in geometries.items()],
        "annotation": to_table(states, scheme.names),
        "quarantine": flat(r.quarantine for r in results),
        "profiles": [{"case": r.case, "profile": r.profile} for r in results if r.usable],
    }


def _key(case: Case, dataset: Dataset, scheme: ClassScheme) -> str:
    row = case.model_dump(exclude={"role", "patient", "sequence"})
    stamps = [stamps_of(file) if file else None for file in (*case.images, case.label)]
    return digest([SURVEY_VERSION, row, dataset.content, scheme.ids, scheme.sets, *stamps])


def _failed(case: Case, reason: str) -> SurveyResult:
    row = quarantine(case.case, case.images[0], "survey_failed", reason, REASONS["survey_failed"])
    return SurveyResult(case.case, None, None, (row,))


def _unless_tested(result: SurveyResult, case: Case, tested: Mapping[str, str]) -> SurveyResult:
    """Set a case aside whose image is, voxel by voxel, that of a test case."""
    other = tested.get(result.geometry["image_voxels"]) if result.geometry else None
    if other is None:
        return result
    code, found = "image_in_train_and_test", f"voxel by voxel the image of {other}, which is tested on"
    row = quarantine(case.case, case.images[0], code, found, REASONS[code])
    return SurveyResult(case.case, None, None, (*result.quarantine, row))


def merge_survey(
    tables: Mapping[str, Iterable[str | Path]],
    rejected: Sequence[Mapping[str, str]] = (),
    cases: Sequence[Case] = (),
) -> dict[str, pd.DataFrame]:
    """Merge the shards' tables into ``geometry``, ``annotation`` and ``quarantine``, by kind.

    Args:
        tables: files of all shards by kind: those of :func:`survey_shard`.
        rejected: quarantine rows of the case table (:func:`cases.load_cases`).
        cases: all cases; those trained on that look like one of another patient that is tested on are warned of.
    """
    merged = {kind: _concatenated(files, kind) for kind, files in tables.items()}
    more = [*rejected, *_same_content(merged["geometry"]), *_alike(merged.pop("profiles"), cases)]
    if more:
        merged["quarantine"] = pd.concat([merged["quarantine"], pd.DataFrame(more)])
    return merged


def _concatenated(paths: Iterable[str | Path], kind: str) -> pd.DataFrame:
    tables = [table for table in (read_table(path, kind) for path in paths) if not table.empty]
    return pd.concat(tables) if tables else pd.DataFrame(columns=list(TABLES[kind]))


def _same_content(geometry: pd.DataFrame) -> list[dict]:
    """Return warnings for cases whose image is, voxel by voxel, that of an earlier case."""
    code, rows = "image_same_content", []
    first: dict[str, str] = {}
    ordered = geometry.sort_values("case")
    for case, content in zip(ordered["case"], ordered["image_voxels"], strict=True):
        other = first.setdefault(content, case)
        if other != case:
            found = f"voxel by voxel the image of {other}"
            rows.append(quarantine(case, "", code, found, REASONS[code], "warning"))
    return rows


def _alike(profiles: pd.DataFrame, cases: Sequence[Case]) -> list[dict]:
    """Return warnings for cases whose image looks like one that is tested on, of the same modality."""
    texts = dict(zip(profiles["case"], profiles["profile"], strict=True))
    code, rows = "image_alike", []
    for modality in case_table.MODALITIES:
        sides = [
            {c.case: texts[c.case] for c in cases if (c.role, c.modality) == (role, modality) and c.case in texts}
            for role in ("test", "train")
        ]
        for case, other in sorted(find_alike(*sides).items()):
            found = f"over some centimeters the image looks like that of {other}, which is tested on"
            rows.append(quarantine(case, "", code, found, REASONS[code], "warning"))
    return rows


def read_truth(case: Case, scheme: ClassScheme) -> Volume | None:
    """Return a case's label map in class ids (uint8, axes as stored); None without a label.

    Only annotated classes are in it: voxels of others are background, as the survey's ``label_not_annotated`` said.
    Voxels of which nobody knows the class are :data:`~labelloop.base.classes.IGNORED`.

    Raises:
        CaseError: when the label cannot be read or mapped.
    """
    if not case.label:
        return None
    dataset = load_dataset(case.dataset, scheme)
    volume = read_scan(case.label, "label").volume()
    array = dataset.to_classes(volume.array, case.label)
    keep = np.zeros(256, np.uint8)
    keep[IGNORED] = IGNORED
    for name in annotated_classes(case, dataset, scheme):
        keep[scheme.ids[name]] = scheme.ids[name]
    return Volume(keep[array], volume.geometry)
