"""Models that nnU-Net v2 trained: recognised by what lies in them, read without nnU-Net, written as folders of ours.

A model is a folder ``<trainer>__<plans>__<configuration>`` with ``plans.json``, ``dataset.json`` and
``fold_<k>/checkpoint_final.pth``, or a zip with one in it. Checkpoints are pickles: only tensors, numbers and texts are
taken from them, and nothing in them is executed.
"""

import logging
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from labelloop.base.documents import LARGEST_BYTES, load_tensors, read_json, short, validated
from labelloop.base.errors import UserError
from labelloop.base.files import atomic, digest, sha256, write_json
from labelloop.base.sequences import flat
from labelloop.base.wording import named
from labelloop.inference.nnunet_files import (
    INSTEAD,
    Checkpoint,
    DatasetFile,
    channels_of,
    dataset_of,
    model_name,
    model_plan,
)
from labelloop.networks.network import build_network
from labelloop.networks.nnunet_plan import NnunetPlan, unfit_for
from labelloop.networks.plans import Plan

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint_final.pth"
FOLD = re.compile(r"fold_(\d{1,3}|all)")
LARGEST_CHECKPOINTS = 16 << 30
"""Bytes of all checkpoints in a zip, at most: more than five folds of nnU-Net's largest networks take."""
WEIGHTS = "network_weights"
REFUSED = (
    "Only tensors, numbers and texts are taken from a checkpoint. If you trust it, load it with torch, and save anew "
    "its network_weights, trainer_name, init_args and inference_allowed_mirroring_axes alone."
)
IMPORT_VERSION = 3
"""Raised when the same files are read as another model."""
DEEPEST = 3
"""Levels below a folder at which a model is looked for: a data set's folder, and ``nnUNet_results``."""


def is_nnunet(path: str | Path) -> bool:
    """Say whether there is, or may be, a model of nnU-Net's: a zip, or a folder with plans that is no model of ours."""
    path = Path(path)
    if path.is_dir():
        return not (path / "model.json").is_file() and bool(_models_in(path))
    return path.is_file() and zipfile.is_zipfile(path)


def tell_unfit(model: str, plan: Plan, modalities: Iterable[str]) -> None:
    """Warn where a model of nnU-Net's takes CT for MR, or MR for CT: it normalizes all images alike."""
    for words in unfit_for(plan, modalities):
        log.warning("model %s %s", model, words)


@dataclass(frozen=True)
class NnunetFiles:
    """What the files of a model say without its weights.

    Args:
        class_ids: id of each class in its label maps.
        plan: of one of its folds; None where the name of its folder does not say which of nnU-Net's configurations.
        folds: of which its predictions are the mean.
        files: those that its predictions depend on; a zip is one.
    """

    class_ids: dict[str, int]
    plan: NnunetPlan | None
    folds: tuple[str, ...]
    files: tuple[Path, ...]


def described_nnunet(path: str | Path, folds: Sequence[str] = ()) -> NnunetFiles:
    """Return what a folder or zip says of its model; no checkpoint is opened, and nothing is written that stays.

    The plan is read where the name of the model's folder says which configuration it is, as nnU-Net's do.

    Raises:
        UserError: as :func:`import_nnunet`, for all but the checkpoints.
    """
    path = Path(path)
    if not is_nnunet(path):
        found = "no model of nnU-Net's in it" if path.exists() else "no such file or folder"
        raise UserError(f"{path}: {found}; expected a folder with plans.json, dataset.json and its folds, or a zip")
    if path.is_dir():
        model, chosen, files = _in_folder(path, folds)
        return NnunetFiles(*_described(model, path, model.name), tuple(chosen), files)
    with _unzipped(path, folds, weights=False) as (model, name, chosen):
        return NnunetFiles(*_described(model, path, name), tuple(chosen), (path,))


def _described(model: Path, path: Path, name: str) -> tuple[dict[str, int], NnunetPlan | None]:
    """Return the classes and the plan of the model in ``model``, whose folder is called ``name``."""
    dataset = _dataset(model)
    classes = dataset_of(dataset, path)
    configuration = name.rpartition("__")[2] if name.count("__") == 2 else ""
    if not configuration:
        return classes, None
    return classes, model_plan(read_json(model / "plans.json"), configuration, 1, path, channels_of(dataset))


def _dataset(model: Path) -> DatasetFile:
    file = model / "dataset.json"
    return validated(DatasetFile, read_json(file), file)


def import_nnunet(path: str | Path, home: Path, folds: Sequence[str] = ()) -> Path:
    """Write a model of nnU-Net's as a model folder of ours, unless it is there; return the folder.

    Args:
        path: folder or zip.
        home: folder to write it in, under its name and the hash of what it was made from.
        folds: e.g. ``["0", "1"]`` or ``["all"]``; by default all that are numbered, or else ``all``, as nnU-Net.

    Raises:
        UserError: when the files cannot be read, hold something else than weights, or describe what only nnU-Net can
            do; the message says what.
    """
    path = Path(path)
    if path.is_dir():
        path, chosen, files = _in_folder(path, folds)
        made_from: list[Any] = [chosen, *map(sha256, files)]
    else:
        made_from = [sha256(path), list(folds)]
    folder = home / f"{model_name(path)}-{digest([IMPORT_VERSION, *made_from])}"
    if not (folder / "model.json").is_file():
        write_nnunet(path, folder, folds)
    return folder


def write_nnunet(path: str | Path, folder: Path, folds: Sequence[str] = ()) -> None:
    """Write a model of nnU-Net's, a folder or zip, as the model ``folder`` of ours, whatever is there.

    Raises:
        UserError: as :func:`import_nnunet`.
    """
    path = Path(path)
    if path.is_dir():
        model, chosen, _ = _in_folder(path, folds)
        _write(model, path, folder, chosen)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _unzipped(path, folds, folder.parent) as (model, _, chosen):
        _write(model, path, folder, chosen)


def _in_folder(path: Path, folds: Sequence[str]) -> tuple[Path, list[str], tuple[Path, ...]]:
    """Return the folder of the model in a folder, its folds, and its files. Raises UserError when one is missing."""
    model = _only(path, _models_in(path))
    chosen = _folds(model, path, folds)
    files = (model / "plans.json", model / "dataset.json", *(model / fold / CHECKPOINT for fold in chosen))
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; a model of nnU-Net's has plans.json, dataset.json and its folds")
    return model, chosen, files


@contextmanager
def _unzipped(
    path: Path, folds: Sequence[str], within: Path | None = None, weights: bool = True
) -> Iterator[tuple[Path, str, list[str]]]:
    """Yield a folder with the model in a zip, what the folder is called in the zip, and the model's folds.

    Args:
        within: where to make the folder, which is there for the time of the block.
        weights: else empty files stand for the checkpoints.
    """
    with tempfile.TemporaryDirectory(dir=within, prefix=".tmp-") as place:
        try:
            name = _unzip(path, Path(place), folds, weights)
            yield Path(place), name, _folds(Path(place), path, folds)
        except UserError as error:  # the user knows the zip, not what it was copied to
            raise UserError(str(error).replace(place, str(path))) from error


def _models_in(folder: Path) -> list[Path]:
    """Return the folders of models in, or a few levels below, a folder."""
    found, level = [], [folder]
    for _ in range(DEEPEST):
        found += [place for place in level if (place / "plans.json").is_file() and any(_fold_folders(place))]
        inside = flat(sorted(place.iterdir()) for place in level if place not in found)
        level = [place for place in inside if place.is_dir()]
        if found or len(level) > 1000:
            break
    return found


def _fold_folders(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if FOLD.fullmatch(child.name))


def _only(path: Path, models: Sequence[Any]) -> Any:
    if not models:
        expected = f"plans.json, dataset.json and fold_0/{CHECKPOINT}"
        raise UserError(f"{path}: no model of nnU-Net's in it; expected a folder with {expected}")
    if len(models) > 1:
        found = named([str(model) for model in models])
        raise UserError(f"{path}: {len(models)} models of nnU-Net's: {found}; give the (unzipped) folder of one")
    return models[0]


def _folds(model: Path, path: Path, wanted: Sequence[str]) -> list[str]:
    """Return the folders of the folds to take."""
    there = [fold for fold in _fold_folders(model) if (model / fold / CHECKPOINT).is_file()]
    numbered = [fold for fold in there if fold != "fold_all"]
    chosen = [f"fold_{name}" for name in dict.fromkeys(wanted)] or numbered or there
    missing = [fold for fold in chosen if fold not in there]
    if missing or not chosen:
        lacking = f"{missing[0] if missing else 'fold'} with a {CHECKPOINT}"
        raise UserError(f"{path}: found no {lacking}; there are: {named(there) or 'none'}. Train it to its end")
    return chosen


def _unzip(path: Path, place: Path, folds: Sequence[str], weights: bool) -> str:
    """Copy the model in a zip to ``place``; return the name of its folder. No name in it becomes that of a file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {PurePosixPath(name): name for name in archive.namelist()}
            plans = [name.parent for name in members if name.name == "plans.json"]
            model = _only(path, [p for p in plans if any(_is_checkpoint(name, p) for name in members)])
            for name in ("plans.json", "dataset.json"):
                _copy(archive, members.get(model / name), place / name, LARGEST_BYTES)
            left = LARGEST_CHECKPOINTS
            for checkpoint in [name for name in members if _is_checkpoint(name, model)]:
                fold = checkpoint.parent.name
                if not weights:
                    (place / fold).mkdir()
                    (place / fold / CHECKPOINT).touch()
                elif not folds or fold.removeprefix("fold_") in folds:
                    left -= _copy(archive, members[checkpoint], place / fold / CHECKPOINT, left)
            return model.name
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: cannot be unzipped ({short(error)}). Copy or export it again.") from error


def _is_checkpoint(name: PurePosixPath, model: PurePosixPath) -> bool:
    return name.name == CHECKPOINT and name.parent.parent == model and bool(FOLD.fullmatch(name.parent.name))


def _copy(archive: zipfile.ZipFile, member: str | None, target: Path, largest: int) -> int:
    """Copy a file of a zip, which may have ``largest`` bytes; return how many it has."""
    if member is None:
        raise UserError(f"{archive.filename}: no {target.name} beside plans.json. Export the model again.")
    size = archive.getinfo(member).file_size
    if size > largest:
        raise UserError(f"{archive.filename}: {member} has {size} bytes unzipped, expected at most {largest}")
    target.parent.mkdir(exist_ok=True)
    with archive.open(member) as source, target.open("wb") as sink:
        left = size
        while left and (block := source.read(min(left, 1 << 20))):
            sink.write(block)
            left -= len(block)
    return size


def _write(model: Path, path: Path, folder: Path, folds: Sequence[str]) -> None:
    """Write ``model.json`` and ``weights.pt`` of the model in ``model``, which the user knows as ``path``."""
    import torch

    dataset = _dataset(model)
    classes = dataset_of(dataset, path)
    first, weights = _checkpoint(model / folds[0] / CHECKPOINT)
    name = first.init_args.configuration
    plan = model_plan(read_json(model / "plans.json"), name, len(folds), path, channels_of(dataset))
    if len(folds) > 1:
        weights = {f"0.{key}": value for key, value in weights.items()}
    for number, fold in enumerate(folds[1:], start=1):
        other, more = _checkpoint(model / fold / CHECKPOINT)
        if other.init_args != first.init_args:
            raise UserError(f"{path}: {fold} is of {other.init_args.configuration}, {folds[0]} of {name}")
        weights |= {f"{number}.{key}": value for key, value in more.items()}
    with torch.device("meta"):  # takes no memory, however large a network the plans ask for
        wanted = build_network(plan, len(classes) + 1).state_dict()
    if {key: value.shape for key, value in wanted.items()} != {key: value.shape for key, value in weights.items()}:
        raise UserError(f"{path}: its trainer, {first.trainer}, built another network than its plans say. {INSTEAD}")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "weights.pt") as temporary:
        torch.save({"weights": weights}, temporary)
    content = {
        "name": model_name(path),
        "classes": list(classes),
        "class_ids": classes,
        "channels": ["background", *classes],
        "plan": plan.model_dump(mode="json"),
        "mirror_axes": first.mirror_axes or (),
        "weights_sha256": sha256(folder / "weights.pt"),
        "nnunet": {"trainer": first.trainer, "configuration": name, "folds": list(folds)},
    }
    write_json(folder / "model.json", content)
    log.info("%s: %s of %s, %s; as a model of labelloop in %s", path, name, first.trainer, named(folds), folder)


def _checkpoint(file: Path) -> "tuple[Checkpoint, dict[str, Tensor]]":
    """Return what a checkpoint says of its network, and the network's weights.

    Raises:
        UserError: when it holds anything but tensors, numbers and texts, which is not loaded.
    """
    import torch

    content = load_tensors(file, REFUSED, also=numpy_numbers())
    described = validated(Checkpoint, {key: value for key, value in content.items() if key != WEIGHTS}, file)
    weights = content.get(WEIGHTS)
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{file}: found no {WEIGHTS}, which nnU-Net's checkpoints have. Copy the file again.")
    plain = all(value.layout == torch.strided and value.device.type == "cpu" for value in weights.values())
    if not plain or not all(bool(value.isfinite().all()) for value in weights.values()):
        raise UserError(f"{file}: its {WEIGHTS} are not all finite numbers. Train it again, or give another fold.")
    return described, weights


def numpy_numbers() -> list[Any]:
    """Return what numpy's numbers are made of when they are read from a checkpoint; its log of losses has some."""
    kinds = [type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")]
    scalar = np.float64(0).__reduce__()[0]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]
