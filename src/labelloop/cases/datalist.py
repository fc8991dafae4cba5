"""MONAI's datalists: a JSON file with lists of images and their labels, by paths relative to it."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from labelloop.base.documents import read_json, short
from labelloop.base.errors import UserError
from labelloop.base.sequences import flat
from labelloop.base.wording import count, first_of, shown
from labelloop.cases.folders import Pair
from labelloop.images.listing import (
    CAPITALS,
    CHANNEL,
    DEAD_LINK,
    EXTENSIONS,
    FORMAT,
    LeftOut,
    extension,
    stem,
    tell_left_out,
)

log = logging.getLogger(__name__)

LISTS = ("training", "validation", "test", "testing")
"""Lists that are read; Auto3DSeg calls the last one ``testing``."""
MISSING = "no such file"
Entry = tuple[str, tuple[Path, ...], Path | None]
"""Name of the list, image (a file for each channel) and label."""


def datalist_pairs(path: Path, role: str, lost: list[LeftOut]) -> list[Pair]:
    """Return the cases of a datalist: those in ``training`` have ``role``, all others are for testing.

    An entry is ``{"image": ..., "label": ...}``, or the path of an image alone; of several channels, the image is a
    list. A case is named as its (first) image; where several have one name, as folder and image.

    Args:
        lost: gets the files that are not there or cannot be read; their cases are left out.

    Raises:
        UserError: for entries of another form, and images that stand twice.
    """
    content = read_json(path)
    entries = _entries(path, content)
    _tell_others(path, content)
    gone = list(_unusable(entries))
    tell_left_out(gone, path.parent)
    lost += gone
    bad = {entry.path for entry in gone}
    names = _names(path, [images[0] for _, images, _ in entries])
    pairs: list[Pair] = [
        (role if name == LISTS[0] else "test", case, images, label)
        for case, (name, images, label) in zip(names, entries, strict=True)
        if bad.isdisjoint(images) and label not in bad
    ]
    if not pairs:
        raise UserError(f"{path}: no case is left; paths in it are relative to its folder, {path.parent}")
    log.info("%s: %s", shown(path), count(len(pairs), "image"))
    return pairs


def _entries(path: Path, content: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of all lists.

    Raises:
        UserError: see :func:`datalist_pairs`.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    for name in LISTS:
        listed = content.get(name)
        if not isinstance(listed, list | None):
            problems.append(f"{path}: {name}: found {short(repr(listed), 80)}, expected a list")
            continue
        for number, entry in enumerate(listed or ()):
            problem = _problem(entry)
            if problem:
                problems.append(f"{path}: {name}.{number}: {problem}")
            else:
                entries.append((name, *_files(entry, path.parent)))
    times = Counter(flat(images for _, images, _ in entries))
    problems += [f"{path}: {image}: stands in it {n} times" for image, n in times.items() if n > 1]
    if not entries and not problems:
        problems.append(f"{path}: no list {', '.join(LISTS)} with an entry")
    if problems:
        raise UserError("\n".join(first_of(problems)))
    return entries


def _tell_others(path: Path, content: Mapping[str, Any]) -> None:
    """Say which lists of images are not read."""
    lists = {key: value for key, value in content.items() if key not in LISTS and isinstance(value, list)}
    others = [
        key for key, value in lists.items() if any(isinstance(entry, dict) and "image" in entry for entry in value)
    ]
    if others:
        log.warning("%s: left out, lists of other names than %s: %s", shown(path), ", ".join(LISTS), ", ".join(others))


def _problem(entry: Any) -> str:
    """Say what is wrong with the form of an entry; nothing: empty."""
    if isinstance(entry, str):
        return ""
    image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (None, None)
    if not _is_file_name(image) and not _are_file_names(image):
        return f'found {short(repr(entry), 80)}, expected {{"image": path, "label": path}}'
    if label is not None and not _is_file_name(label):
        return f"label: found {short(repr(label), 80)}, expected one path; join several masks into one label map"
    return ""


def _is_file_name(value: Any) -> bool:
    """Say whether a value is a path, which may stand alone in a list."""
    alone = value[0] if isinstance(value, list) and len(value) == 1 else value
    return isinstance(alone, str) and bool(alone)


def _are_file_names(value: Any) -> bool:
    """Say whether a value is a list of paths, those of the channels of an image."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) and one for one in value)


def _files(entry: Any, folder: Path) -> tuple[tuple[Path, ...], Path | None]:
    if isinstance(entry, str):
        return (folder / entry,), None
    image, label = entry["image"], entry.get("label")
    images = image if isinstance(image, list) else [image]
    label = label[0] if isinstance(label, list) else label
    return tuple(folder / one for one in images), folder / label if label else None


def _unusable(entries: Sequence[Entry]) -> Iterator[LeftOut]:
    """Yield the files that cannot be read, with the reason."""
    for _, images, label in entries:
        for file in (*images, label):
            reason = "" if file is None else _why_not(file)
            if file is not None and reason:
                yield LeftOut(file, reason, lost=True)


def _why_not(file: Path) -> str:
    if extension(file.name) is None:
        return FORMAT
    if not file.name.endswith(EXTENSIONS):
        return CAPITALS
    try:
        if file.is_file():
            return ""
        return DEAD_LINK if file.is_symlink() else MISSING
    except OSError as error:  # no right to look, or a name that is too long
        return f"cannot be looked at: {error.strerror}"


def _names(path: Path, images: Sequence[Path]) -> list[str]:
    """Return the names of the images' cases.

    Raises:
        UserError: when two would have one name.
    """
    alone = [stem(image).removesuffix(CHANNEL) for image in images]
    times = Counter(alone)
    names = [n if times[n] == 1 else f"{i.parent.name}_{n}" for n, i in zip(alone, images, strict=True)]
    again = [name for name, n in Counter(names).items() if n > 1]
    if again:
        some = [str(image) for image, name in zip(images, names, strict=True) if name == again[0]]
        raise UserError(f"{path}: several images for case {again[0]}: {', '.join(some[:2])}; rename one of them")
    return names
