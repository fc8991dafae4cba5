"""``dataset.json`` of nnU-Net, of the Medical Segmentation Decathlon and of MONAI: channels, and classes by name."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from labelloop.base.channels import modality_of
from labelloop.base.classes import BACKGROUND, ClassScheme
from labelloop.base.documents import read_json, short, validated
from labelloop.base.errors import UserError
from labelloop.base.lookup import find
from labelloop.base.wording import named, shown
from labelloop.images.datasets import (
    LARGEST_ID,
    Dataset,
    all_class_names,
    as_known,
    bound,
    called_otherwise,
    load_dataset,
)

log = logging.getLogger(__name__)

NAME = "dataset.json"
MOST_DIGITS = len(str(LARGEST_ID))
MEANING = (
    "What the ids in {} mean can be said by a data set file, too (--dataset; --prediction-dataset, where these are "
    "predictions to score), in which null is a structure that is no class"
)
OF_LABELS = ("labelsTr", "labelsTs")
"""Folders of nnU-Net's label maps, which lie beside the file."""
OF_MR = re.compile(r"MRI?|T[12].*|FLAIR|PD|DWI|ADC|.*(IN|OUT)[_ -]?(OF[_ -]?)?PHASE|DIXON.*", re.I)
"""What channels of MR are called."""
REGIONS = (
    "its labels are regions, which overlap, and labelloop reads one class a voxel. Write a data set file that says "
    "what each id in the label maps means (docs/own-data.md), and name it with --dataset"
)


def dataset_in_json(path: Path, modality: str = "", ids_alone: bool = False) -> Dataset:
    """Return what a ``dataset.json`` says of its label maps.

    A class is called as a class scheme calls it, whatever the order of its words: ``kidney_right`` is right_kidney.

    Args:
        modality: CT or MR; empty: as the file's channel says. Of several channels, the file says it of each.
        ids_alone: take no notice of several channels, where only label maps are read; ``modality`` must be given.

    Raises:
        UserError: when it is no such file, does not name classes, or not the modality, or its labels are regions.
    """
    content = read_json(path)
    channels = _channels(content)
    several = len(channels) > 1 and not ids_alone
    described = {
        "name": path.absolute().parent.name if path.name == NAME else path.stem,
        "modality": modality_of(channels[0]) if several else _modality(path, content, modality),
        "channels": channels if several else (),
        "source": _first_text(content, "reference", "description"),
        "license": _first_text(content, "licence", "license"),
        "labels": dict(_labels(path, content)),
    }
    return validated(Dataset, described, path)


def ids_beside(labels: Path, dataset: str | Path | None, scheme: ClassScheme) -> tuple[Dataset | None, list[Path]]:
    """Return the data set whose ids the label maps of a folder carry, and the files that say so.

    It is the one that is named, by name or file (``dataset.json``, too), or else what the ``dataset.json`` says that
    nnU-Net puts beside its label maps: above labelsTr and labelsTs, and in the folder of predictions. None: neither.

    Raises:
        UserError: see :func:`labelloop.images.datasets.load_dataset` and :func:`dataset_in_json`.
    """
    if dataset is not None and Path(dataset).name != NAME:
        loaded = load_dataset(dataset, scheme)
        tell_contradictions(labels, loaded)
        return loaded, [find("datasets", dataset)]
    files = _beside(labels) if dataset is None else [Path(dataset)]
    if not files:
        return None, []
    if dataset is None:
        log.info("%s: label maps in the ids of %s", shown(labels), shown(files[0]))
    try:
        return bound(dataset_in_json(files[0], "CT", ids_alone=True), scheme, files[0]), files[:1]
    except UserError as error:
        raise UserError(f"{error}\n{MEANING.format(shown(labels))}") from None


def _beside(labels: Path) -> list[Path]:
    """Return the ``dataset.json`` that may say the ids of a folder of label maps: in it, or above labelsTr."""
    folder = labels.absolute()  # which has a name, where "." has none
    places = [labels, folder.parent] if folder.name in OF_LABELS else [labels]
    return [place / NAME for place in places if (place / NAME).is_file()]


def tell_contradictions(labels: Path, dataset: Dataset) -> None:
    """Warn where the ids of a named data set are those of other classes in the ``dataset.json`` beside label maps."""
    for path in _beside(labels)[:1]:
        try:
            own = {name: number for number, name in _labels(path, read_json(path))}
        except UserError:  # the file is not used, so it may be anything
            return
        found = called_otherwise(own, dataset)
        if found:
            log.warning("%s: contradicts data set %s, which counts: %s", path, dataset.name, "; ".join(found))


def _first_text(content: Mapping[str, Any], *keys: str) -> str:
    texts = [content[key] for key in keys if isinstance(content.get(key), str)]
    return short(texts[0], 200) if texts and texts[0].strip() else ""


def _channels(content: Mapping[str, Any]) -> list[str]:
    """Return what the file calls the channels of an image; version 1, the Decathlon and MONAI call them modality."""
    found = content.get("channel_names", content.get("modality"))
    if isinstance(found, dict):
        numbered = all(str(key).isdecimal() for key in found)
        found = [found[key] for key in (sorted(found, key=int) if numbered else found)]
    values = found if isinstance(found, list) else [found]
    return [value for value in values if isinstance(value, str)]


def _modality(path: Path, content: Mapping[str, Any], given: str) -> Literal["CT", "MR"]:
    if given in ("CT", "MR"):
        return "CT" if given == "CT" else "MR"
    channels = _channels(content)
    if channels and channels[0].upper() == "CT":
        return "CT"
    if channels and OF_MR.fullmatch(channels[0]):
        return "MR"
    found = f"the channel is {short(channels[0], 40)!r}" if channels else "no channel is named"
    raise UserError(f"{path}: {found}, which says neither CT nor MR; say it with --modality")


def _labels(path: Path, content: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return the ids and the classes that they mean, background left out. In version 1, ids are the keys."""
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise UserError(f"{path}: no labels; name the data set whose ids the label maps carry (--dataset)")
    labels = {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in labels.items()}
    if content.get("regions_class_order") or any(isinstance(value, list) for value in labels.values()):
        raise UserError(f"{path}: {REGIONS}")
    by_id = all(key.isdecimal() for key in labels)
    pairs = [(key, value) if by_id else (value, key) for key, value in labels.items()]
    wrong = [f"{name!r}: {own!r}" for own, name in pairs if not _is_id(own) or not _is_name(name)]
    if wrong:
        raise UserError(f"{path}: labels: found {short(named(wrong))}; expected a whole number for each class")
    ids = [int(own) for own, _ in pairs]
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: labels: two classes have one id")
    known = [(int(own), as_known(name)) for own, name in pairs]
    taken = [name for own, name in known if own == BACKGROUND and name in all_class_names()]
    if taken:
        raise UserError(f"{path}: labels: {taken[0]} has id {BACKGROUND}, which is background in all label maps")
    return [(own, name) for own, name in known if own != BACKGROUND]


def _is_id(own: Any) -> bool:
    if isinstance(own, str):
        return own.isdecimal() and len(own) <= MOST_DIGITS
    return isinstance(own, int) and not isinstance(own, bool) and abs(own) <= LARGEST_ID


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip())
