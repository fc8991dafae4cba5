"""Many cases: find the inputs, read ahead, compute, write behind, resume.

While one case is computed the next is read and the one before is written, each in a thread of its own. Every case is
finished, failed or untouched: see :mod:`labelloop.shards`.
"""

import logging
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch

from labelloop.classes import ClassScheme
from labelloop.errors import CaseError, UserError
from labelloop.files import digest, sha256
from labelloop.inference.engine import Predictor
from labelloop.inference.export import Prediction
from labelloop.inference.postprocess import Chain
from labelloop.inference.settings import Settings
from labelloop.shards import Ledger
from labelloop.tables import write_table
from labelloop.volume import Geometry, Volume, read, write

log = logging.getLogger(__name__)
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
CHANNEL = "_0000"
"""nnU-Net's and FLARE's suffix of an image's name; left out of the case's name."""
ALL_FINE, SOME_FAILED, NOTHING_USABLE = 0, 1, 2
SLICE_TOLERANCE = 0.05
"""Largest deviation of a DICOM slice distance from their median, as a part of it."""


class Segmenter(Protocol):
    """What can be run on cases: a :class:`Predictor` or a :class:`~labelloop.inference.postprocess.Chain`."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all, besides the image, that a prediction depends on."""

    def predict(self, volume: Volume, modality: str) -> Prediction:
        """Return label map and rows."""


@dataclass(frozen=True)
class Case:
    """An image to segment. ``image`` is a file, or a folder with one DICOM series."""

    case: str
    image: Path
    modality: str = "CT"
    image_sha256: str = ""


class _UnfinishedError(Exception):
    """Raised inside a ledger's work to learn, without recording anything, that a case has no intact result."""


def predict_cases(cases: Sequence[Case], segmenter: Segmenter, ledger: Ledger) -> list[dict]:
    """Segment cases as :func:`run_cases` does; return ``{case, class, volume_ml, confidence}`` of those done."""
    run_cases(cases, segmenter, ledger)
    return rows(ledger)


def rows(ledger: Ledger) -> list[dict]:
    """Return ``{case, class, volume_ml, confidence}`` of the cases that are done."""
    return [{"case": case, **row} for case, extra in sorted(ledger.extras().items()) for row in extra["rows"]]


def run_cases(cases: Sequence[Case], segmenter: Segmenter, ledger: Ledger) -> None:
    """Segment cases into ``<ledger.folder>/<case>.nii.gz`` and close the ledger.

    A case whose result of the same image, weights and settings is intact is not computed again; one bad case does not
    stop the rest. Rows, runtime and peak memory of each case go to the ledger's extras.
    """
    todo = []
    for case in cases:
        key = _key(case, segmenter)
        if not _finished(ledger, case, key):
            todo.append((case, key))
    log.info("%d cases: %d to do, %d finished before", len(cases), len(todo), len(cases) - len(todo))
    try:
        with ThreadPoolExecutor(1, "write") as writer:
            written: list[Future] = []
            for number, (case, key, volume, seconds) in enumerate(_read_ahead(todo), start=1):
                result = _compute(case, volume, segmenter, seconds)
                del volume
                if written:  # at most one label map waits to be written; a bug in writing surfaces here
                    written.pop().result()
                written.append(writer.submit(_record, ledger, case, key, result))
                del result
                log.info("%s: %d of %d computed", case.case, number, len(todo))
            for last in written:
                last.result()
    finally:
        ledger.close()


@dataclass
class _Result:
    prediction: Prediction | None
    geometry: Geometry | None
    error: Exception | None
    seconds: float
    peak_gpu_mb: float


def _key(case: Case, segmenter: Segmenter) -> str:
    try:
        content = case.image_sha256 or content_sha256(case.image)
    except OSError as error:  # the case will fail when it is read; the others go on
        content = f"unreadable: {error}"
    return digest([segmenter.fingerprint, content, case.modality])


def content_sha256(path: Path) -> str:
    """Return the sha256 of a file, or a fingerprint of the names and hashes of all files of a folder."""
    if path.is_dir():
        return digest([(p.name, sha256(p)) for p in sorted(path.iterdir()) if p.is_file()])
    return sha256(path)


def _finished(ledger: Ledger, case: Case, key: str) -> bool:
    def work():
        raise _UnfinishedError

    try:
        ledger.run(case.case, key, work)
    except _UnfinishedError:
        return False
    return True


def _read_ahead(todo: Sequence[tuple[Case, str]]) -> Iterator[tuple[Case, str, Volume | Exception, float]]:
    """Yield cases with their volume, or what went wrong, and the seconds it took; one volume is read ahead."""
    with ThreadPoolExecutor(1, "read") as reader:
        coming: Future | None = None
        for i, (case, key) in enumerate(todo):
            current = coming or reader.submit(_read, case)
            volume, seconds = current.result()
            coming = reader.submit(_read, todo[i + 1][0]) if i + 1 < len(todo) else None
            del current
            yield case, key, volume, seconds


def _read(case: Case) -> tuple[Volume | Exception, float]:
    start = time.perf_counter()
    try:
        return read_image(case.image), time.perf_counter() - start
    except (CaseError, MemoryError, OSError, RuntimeError, ValueError) as error:
        return error, time.perf_counter() - start


def _compute(case: Case, volume: Volume | Exception, segmenter: Segmenter, seconds: float) -> _Result:
    if isinstance(volume, Exception):
        return _Result(None, None, volume, seconds, 0.0)
    start = time.perf_counter()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    prediction, error = None, None
    try:
        prediction = segmenter.predict(volume, case.modality)
    except (CaseError, MemoryError, OSError, RuntimeError, ValueError) as problem:
        log.debug("%s failed", case.case, exc_info=True)
        error = problem.with_traceback(None)  # its frames hold the arrays of the failed case
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0
    return _Result(prediction, volume.geometry, error, seconds + time.perf_counter() - start, peak)


def _record(ledger: Ledger, case: Case, key: str, result: _Result) -> None:
    def work() -> tuple[Path, dict]:
        if result.error is not None:
            raise result.error
        start = time.perf_counter()
        path = ledger.folder / f"{case.case}.nii.gz"
        write(path, result.prediction.labels, result.geometry)
        return path, {
            "rows": result.prediction.rows,
            "runtime_s": result.seconds + time.perf_counter() - start,
            "peak_gpu_mb": result.peak_gpu_mb,
            "peak_ram_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,  # KiB on Linux
        }

    ledger.run(case.case, key, work)


# ---------------------------------------------------------------------------------------------- inputs


def read_image(path: Path) -> Volume:
    """Read a 3-D image from a file or from a folder with one DICOM series.

    Raises:
        CaseError: when the image is not 3-D, or the folder does not hold exactly one evenly spaced series.
    """
    volume = _read_dicom(path) if path.is_dir() else read(path)
    if volume.array.ndim != 3 or not volume.array.size:
        raise CaseError("image_not_3d", str(path), f"array of shape {volume.array.shape}", "Give one 3-D image.")
    return volume


def _read_dicom(folder: Path) -> Volume:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise CaseError("dicom_series", str(folder), f"{len(series)} DICOM series", "Give a folder with one series.")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    _check_slices(folder, files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    image = reader.Execute()
    geometry = Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return Volume(sitk.GetArrayFromImage(image), geometry)


def _check_slices(folder: Path, files: Sequence[str]) -> None:
    """Refuse a series with missing or uneven slices, which SimpleITK would stack as if they were even."""
    if len(files) < 3:
        return
    centers = []
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(file)
        reader.ReadImageInformation()
        centers.append(reader.GetOrigin())
    steps = np.linalg.norm(np.diff(np.asarray(centers), axis=0), axis=1)
    usual = float(np.median(steps))
    if np.abs(steps - usual).max() > SLICE_TOLERANCE * usual:
        found = f"slice distances from {steps.min():.3f} to {steps.max():.3f} mm"
        raise CaseError("dicom_slices", str(folder), found, "Slices are missing or uneven; export the series again.")


def find_cases(inputs: Path, modality: str = "CT") -> list[Case]:
    """Return the cases of a file, a folder of files and DICOM folders, or a folder with one DICOM series.

    Where a folder holds both ``NAME`` and ``NAME_0000``, the latter is the image (nnU-Net's and FLARE's naming) and
    the former, usually its label, is left out.

    Raises:
        UserError: when there is nothing to segment, or two inputs would give the same case.
    """
    inputs = Path(inputs)
    if inputs.is_file():
        return [Case(case_name(inputs), inputs, modality)]
    if not inputs.is_dir():
        raise UserError(f"{inputs}: no such file or folder")
    entries = sorted(p for p in inputs.iterdir() if not p.name.startswith("."))
    files = [p for p in entries if p.is_file() and p.name.lower().endswith(SUFFIXES)]
    channels = {case_name(p) for p in files if _stem(p).endswith(CHANNEL)}
    images = [p for p in files if _stem(p).endswith(CHANNEL) or _stem(p) not in channels]
    if len(images) < len(files):
        log.info("%d files left out, because a %s image stands beside them", len(files) - len(images), CHANNEL)
    images += [p for p in entries if p.is_dir() and _has_dicom(p)]
    if not images and _has_dicom(inputs):
        images = [inputs]
    if not images:
        raise UserError(f"{inputs}: no image ({', '.join(SUFFIXES)}) and no DICOM series in it")
    cases = [Case(case_name(p), p, modality) for p in images]
    names = [c.case for c in cases]
    if doubled := sorted({n for n in names if names.count(n) > 1}):
        raise UserError(f"{inputs}: several inputs for {', '.join(doubled[:5])}; rename them or move them apart")
    return cases


def _has_dicom(folder: Path) -> bool:
    return bool(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def _stem(path: Path) -> str:
    name = path.name
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "") if not path.is_dir() else ""
    return name[: len(name) - len(suffix)]


def case_name(path: Path) -> str:
    """Return the name of a file without suffix and channel number, or the name of a folder."""
    return _stem(Path(path).resolve() if not Path(path).name else Path(path)).removesuffix(CHANNEL)


# ---------------------------------------------------------------------------------------------- the command


def infer(
    inputs: Path,
    model_folders: Path | Sequence[Path] | Mapping[str, Path],
    out: Path,
    *,
    steps: Sequence[Mapping] | None = None,
    scheme: ClassScheme | None = None,
    settings: Settings | None = None,
    device: str = "auto",
    modality: str = "CT",
    resume: bool = True,
) -> int:
    """Segment all images of ``inputs`` into ``out``: ``<case>.nii.gz``, ``summary.csv`` and ``efficiency.csv``.

    Args:
        inputs: see :func:`find_cases`.
        model_folders: one, several, or a mapping of names (those in ``steps``) to folders. Unnamed folders go by the
            folder's name.
        steps: an ``inference`` chain; default: one ``segment`` step with all models.
        resume: keep the cases that an earlier run finished with the same image, models and settings.

    Returns:
        Exit code: 0 all cases are done, 1 some failed (``shards/infer.csv`` in ``out`` says why), 2 none is done.

    Raises:
        UserError: when the inputs or the models cannot be used at all.
    """
    cases = find_cases(inputs, modality)
    folders = _named(model_folders)
    models = {name: Predictor(folder, device, settings) for name, folder in folders.items()}
    if steps is None and len(models) == 1:
        segmenter: Segmenter = next(iter(models.values()))
    else:
        segmenter = Chain(steps or [{"segment": list(models)}], models, scheme)
    out = Path(out)
    if not resume:
        (out / "shards" / ".infer.jsonl").unlink(missing_ok=True)
    ledger = Ledger(out, "infer")
    run_cases(cases, segmenter, ledger)
    extras = ledger.extras()
    write_table(out / "summary.csv", pd.DataFrame(rows(ledger)), "summary")
    measured = ("runtime_s", "peak_gpu_mb", "peak_ram_mb")
    efficiency = [{"case": case, **{m: extra[m] for m in measured}} for case, extra in sorted(extras.items())]
    write_table(out / "efficiency.csv", pd.DataFrame(efficiency), "efficiency")
    failed = len(cases) - len(extras)
    log.info("%d of %d cases done, results in %s", len(extras), len(cases), out)
    if failed:
        log.warning("%d cases failed, see %s", failed, ledger.manifest)
    return ALL_FINE if not failed else SOME_FAILED if extras else NOTHING_USABLE


def _named(folders: Path | Sequence[Path] | Mapping[str, Path]) -> dict[str, Path]:
    if isinstance(folders, Mapping):
        return {name: Path(folder) for name, folder in folders.items()}
    some = [folders] if isinstance(folders, (str, Path)) else list(folders)
    named = {Path(folder).resolve().name: Path(folder) for folder in some}
    if not named or len(named) < len(some):
        raise UserError(f"model folders must have different names: {', '.join(map(str, some)) or 'none given'}")
    return named
