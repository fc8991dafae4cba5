"""Let models that are not trained here label cases: steps of ``workflow/rules/models.smk``."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from labelloop.base.classes import IGNORED, ClassScheme, load_classes
from labelloop.base.errors import CaseError
from labelloop.base.files import digest, stamp
from labelloop.base.gpu_lease import usable_gpus
from labelloop.base.paths import WEIGHTS, model_of
from labelloop.base.seals import put_seal_of_files
from labelloop.base.shards import Ledger
from labelloop.base.tables import write_table
from labelloop.base.wording import count
from labelloop.cases.usable import UsableCase
from labelloop.images.datasets import Dataset
from labelloop.images.scan import ScanFile, check_same_grid, read_classes
from labelloop.images.volume import Geometry, Volume, write
from labelloop.inference.commands import run_command
from labelloop.inference.external import (
    EXTERNAL_VERSION,
    CommandModel,
    FilesModel,
    NnunetModel,
    classes_of,
    dataset_of,
    read_external,
)
from labelloop.steps.common import SurveyTables, input_image, table_of, volume_rows

log = logging.getLogger(__name__)

Read = Callable[[Path, Geometry], np.ndarray]
"""Reads a label map that lies on a grid, in class ids."""


def import_nnunet(files: Sequence[Path], spec: dict[str, Any], model: Path, weights: Path) -> None:
    """Write a model that nnU-Net trained as a model of ours.

    Args:
        files: of the model; the step finds them by ``spec``, as they may be in a zip.
        model, weights: to write.
    """
    from labelloop.inference.nnunet import write_nnunet

    asked = read_external(spec)
    if not isinstance(asked, NnunetModel):
        raise TypeError(f"{spec}: no model of nnU-Net's")
    log.info("%s: %s", asked.nnunet, count(len(files), "file"))
    write_nnunet(asked.nnunet, model_of(model), asked.fold_names)
    put_seal_of_files(model, model_of(model), WEIGHTS)


def predict_external(
    survey: SurveyTables,
    spec: dict[str, Any],
    answer: str,
    classes: str,
    engine: dict[str, Any],
    manifest: Path,
    confidence: Path,
    device: str,
    deterministic: int = 0,
    model: Sequence[Path] = (),
    files: Sequence[Path] = (),
) -> None:
    """Let a model that is not trained here label the cases of one shard; write label maps, manifest and volumes.

    Args:
        spec: the model as a recipe has it.
        answer: what the version's command of the model says.
        manifest, confidence: to write.
        model: its files, where it is one that was imported.
        files: the label maps that are there, where it has made them.
    """
    asked, scheme, ledger = read_external(spec), load_classes(classes), Ledger.of(manifest)
    dataset = dataset_of(asked, scheme)
    if isinstance(asked, NnunetModel):
        _by_network(survey, model_of(model[0]), dataset, scheme, engine, ledger, device, bool(deterministic))
    else:
        known = classes_of(asked, scheme)
        labeler: _Commands | _Files
        if isinstance(asked, CommandModel):
            labeler = _Commands(asked, answer, device, ledger.folder)
        else:
            labeler = _Files(asked, set(files))
        for item in survey.usable():
            key = digest([EXTERNAL_VERSION, labeler.key(item), dataset.fingerprint, known, item.image_key])
            ledger.run(item.id, key, partial(_label, item, labeler, dataset, scheme, known, ledger.folder))
        ledger.close()
    write_table(confidence, table_of(ledger.extras(), "rows"), "confidence")


def _by_network(
    survey: SurveyTables,
    folder: Path,
    dataset: Dataset,
    scheme: ClassScheme,
    engine: dict[str, Any],
    ledger: Ledger,
    device: str,
    deterministic: bool,
) -> None:
    from labelloop.inference.engine import Predictor
    from labelloop.inference.nnunet import tell_unfit
    from labelloop.inference.relabel import Relabeled
    from labelloop.inference.running import run_cases
    from labelloop.inference.settings import Settings

    predictor = Predictor(folder, device, Settings.model_validate(engine), deterministic=deterministic)
    images = [input_image(item) for item in survey.usable()]
    tell_unfit(folder.name, predictor.plan, (image.modality for image in images))
    run_cases(images, Relabeled(predictor, dataset, scheme), ledger)


ONE_FILE = "Have it write one label map to {output}; TotalSegmentator does so with --ml."
RESTORE = "Restore the image, and have the command write to {output} alone."


class _Commands:
    """Has a command label each case."""

    def __init__(self, model: CommandModel, answer: str, device: str, folder: Path):
        self._model, self._answer, self._folder = model, answer, folder
        gpu = device == "cuda" or (device == "auto" and bool(usable_gpus()))
        self._values = {"device": "gpu" if gpu else "cpu", "torch_device": "cuda" if gpu else "cpu"}

    def key(self, item: UsableCase) -> str:
        """Return a fingerprint of what labels a case."""
        return digest([self._model.command, self._answer])

    def map_of(self, item: UsableCase, image: Volume, read: Read) -> np.ndarray:
        """Return the label map of a case with this image, as ``read`` reads it."""
        with _empty(self._folder / f".work-{item.id}") as place:
            shown, out = Path(item.case.images[0]), place / f"{item.id}.nii.gz"
            if item.upside_down:
                shown = place / "image" / f"{item.id}.nii.gz"
                write(shown, image.array, image.geometry)
            values = self._values | {"case": item.id, "image": str(shown.absolute()), "output": str(out.absolute())}
            before = stamp(shown)
            run_command(self._model.words(values), place / "printed", self._model.limit_s, item.id)
            if stamp(shown) != before:
                raise CaseError(
                    "command_altered_image", str(shown), f"{self._model.command} wrote to {{image}}", RESTORE
                )
            if not out.is_file():
                wrote = f"a folder {out.name}, where a file is expected" if out.is_dir() else f"no {out.name}"
                found = f"{self._model.command} ended well and wrote {wrote}"
                raise CaseError("command_no_output", item.id, found, ONE_FILE)
            return read(out, image.geometry)


class _Files:
    """Takes the label maps that are there."""

    def __init__(self, model: FilesModel, there: set[Path]):
        self._model, self._there = model, there

    def key(self, item: UsableCase) -> str:
        """Return a fingerprint of what labels a case."""
        file = self._model.file(item.id)
        try:
            return ScanFile(file, "label").sha256() if self._is_there(file) else "no file"
        except (CaseError, OSError) as error:  # the case will fail when it is read; the others go on
            return f"unreadable: {error}"

    def map_of(self, item: UsableCase, image: Volume, read: Read) -> np.ndarray | None:
        """Return the label map of a case with this image, as ``read`` reads it; None without one."""
        file = self._model.file(item.id)
        return read(file, item.as_stored(image).geometry) if self._is_there(file) else None

    def _is_there(self, file: Path) -> bool:
        """Say whether a file was meant: a dead link, or a folder of that name, is a fault, and not nothing."""
        return file in self._there or (os.path.lexists(file) and not file.is_file())


@contextmanager
def _empty(place: Path) -> Iterator[Path]:
    """Yield an empty folder that is there until the end. Its name is the same each time, as messages name its files."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _label(
    item: UsableCase,
    labeler: _Commands | _Files,
    dataset: Dataset,
    scheme: ClassScheme,
    known: Sequence[str],
    out: Path,
) -> tuple[Path | None, dict[str, Any]]:
    """Write the label map of a case; return its file, none where the model says nothing of it, and volumes."""

    def read(file: Path, grid: Geometry) -> np.ndarray:
        found = read_classes(file, scheme, dataset)
        check_same_grid(found.geometry, grid, file)
        if (found.array == IGNORED).any():
            what = f"voxels that data set {dataset.name} ignores, of which a prediction has none"
            raise CaseError(
                "label_ignored", str(file), what, "Give the ids of the model's classes a file of their own."
            )
        return found.array

    path, image = out / f"{item.id}.nii.gz", item.image()
    array = labeler.map_of(item, image, read)
    if array is None:
        path.unlink(missing_ok=True)
        return None, {"rows": []}
    stored = item.as_stored(image).geometry
    write(path, array, stored)
    return path, {"rows": volume_rows(array, stored.voxel_ml, known, scheme)}
