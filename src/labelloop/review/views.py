"""What a page shows of a label: image and label maps upright, cut to the organ; and how an edited cut comes back.

The page gets volumes whose axes run left to right, posterior to anterior and inferior to superior, so it has no
orientation to care for. What it sends back is a cut of the label map, which is put into the whole map where it was.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from labelloop.base.classes import BACKGROUND, IGNORED
from labelloop.base.errors import CaseError
from labelloop.base.files import sha256
from labelloop.base.wording import count, plain
from labelloop.images import nifti
from labelloop.images.boxes import box_or_none
from labelloop.images.scan import REASONS, ras_affine, read_surveyed
from labelloop.images.volume import Geometry, Volume, canonical, restore, upright_volume
from labelloop.review.desk import Question
from labelloop.review.maps import ENDING, read_reviewed

log = logging.getLogger(__name__)
CROP, WHOLE = "crop", "whole"
MARGIN_MM = 25.0
"""What is shown around an organ: enough to see its neighbors."""
CT_WINDOWS = (("Abdomen", -160.0, 240.0), ("Liver", -20.0, 140.0), ("Bone", -500.0, 1300.0), ("Lung", -1350.0, 150.0))
"""Names, and the HU that are drawn black and white."""
MR_WINDOWS = (("All", 1.0, 99.0), ("Dark", 1.0, 75.0), ("Bright", 40.0, 99.9))
"""Names, and the percentiles that are drawn black and white."""
MAP_OF_SET = ""
"""Name of the label map that is asked about; the others have those of their models, which are never empty."""
BOX = re.compile(",".join([r"(\d{1,5})-(\d{1,5})"] * 3), re.ASCII)
"""Name of a box: from where to where it goes along each axis [z, y, x]."""
SINCE = "@"
"""What parts the name of a box from the row of the decisions up to which other classes are shown as they were drawn."""
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Case:
    """The files of one case, canonical: axes inferior-superior, posterior-anterior, left-right.

    Args:
        asked: a label that is asked of the case; all have the same files.
        image: as it is stored. maps: label maps in class ids, uint8, by :data:`MAP_OF_SET`, model, and who edited.
        stored: grid of the label map's file. upright: the same, or its true one where the file is upside down.
        others: what the map of the set has of other classes, beside what was judged; empty: nothing.
        since: row of the decisions up to which these are shown; None: they are as judged.
    """

    asked: Question
    image: Volume
    maps: Mapping[str, np.ndarray]
    stored: Geometry
    upright: Geometry
    others: str = ""
    since: int | None = None
    _boxes: dict[int, Box] = field(default_factory=dict)

    @classmethod
    def read(cls, asked: Question, ids: Collection[int]) -> "Case":
        """Read the files of a case. A model's map that cannot be used is left out, with a word in the log.

        Raises:
            CaseError: image or label map are damaged, on two grids, or not what is asked about.
            OSError: a file is away.
        """
        if asked.map is not None and sha256(asked.map) != asked.sha256:
            found = "not the label map that is asked about: it has been made anew since"
            raise CaseError("review_outdated", str(asked.map), found, "Start the review again.")
        image, turn = read_surveyed(asked.image), upright_volume if asked.upside_down else _as_it_is
        whole = canonical(turn(image))
        stored, labels = image.geometry, np.zeros(whole.array.shape, np.uint8)
        if asked.map is not None:
            volume = read_reviewed(asked.map, ids, image.geometry)
            stored, labels = volume.geometry, canonical(turn(volume)).array
        upright = turn(Volume(np.empty(stored.shape, np.uint8), stored)).geometry
        case = cls(asked, whole, {MAP_OF_SET: labels}, stored, upright)
        for model, path in asked.models.items():
            case = case.with_map(model, path, ids)
        return case

    def with_map(self, name: str, path: Path, ids: Collection[int]) -> "Case":
        """Return the case with one more label map; as it is, with a word in the log, where that cannot be used."""
        array = self._array(name, path, ids)
        return self if array is None else replace(self, maps={**self.maps, name: array}, _boxes={})

    def _array(self, name: str, path: Path, ids: Collection[int]) -> np.ndarray | None:
        try:
            volume = read_reviewed(path, ids, self.stored)
        except (CaseError, OSError) as error:
            log.warning("review: the map %r of %s is not shown: %s", name, self.asked.case, error)
            return None
        return canonical(upright_volume(volume) if self.asked.upside_down else volume).array

    def with_others(self, drawn: Mapping[int, Path | None], number: int, ids: Collection[int], key: str) -> "Case":
        """Return the case with other classes of the label map as reviewers drew them, the last one on top.

        Voxels of the class that is asked about stay as they are judged, and so do those that nobody knows.

        Args:
            drawn: maps by class; None: the class is absent. One that cannot be used is left out; the log says so.
            number: the class that is asked about. key: tells what was drawn.
        """
        judged = self.maps[MAP_OF_SET]
        labels, free = judged.copy(), ~np.isin(judged, (number, IGNORED))
        for other, path in drawn.items():
            array = None if path is None else self._array(path.name, path, ids)
            if path is None or array is not None:
                labels[labels == other] = BACKGROUND
            if array is not None:
                labels[free & (array == other)] = other
        return replace(self, maps={**self.maps, MAP_OF_SET: labels}, others=key, _boxes={})

    def cut(self, number: int, place: str) -> "Cut":
        """Return what is shown of a class: all of the case, the organ with a margin (:data:`CROP`), or a box.

        The organ's box grows when a map is added. So who was shown one asks for the same again by its name.

        Args:
            place: :data:`CROP`, :data:`WHOLE`, or what :attr:`Cut.place` calls a box.

        Raises:
            ValueError: there is no such place.
        """
        if place == WHOLE:
            return Cut(self, number, (slice(None), slice(None), slice(None)))
        if place != CROP:
            return Cut(self, number, _box_called(place, self.image.array.shape))
        if number not in self._boxes:
            self._boxes[number] = self._box(number)
        return Cut(self, number, self._boxes[number])

    def _box(self, number: int) -> Box:
        """Return the box of a class in all maps; of all classes where no map has it; all where there is none."""
        wanted = _box_of((array == number for array in self.maps.values()), self.image.array.shape)
        if wanted is None:
            wanted = _box_of((array != BACKGROUND for array in self.maps.values()), self.image.array.shape)
        if wanted is None:
            return slice(None), slice(None), slice(None)
        margins = [max(1, round(MARGIN_MM / side)) for side in self.image.geometry.spacing_zyx]
        z, y, x = (
            slice(max(0, part.start - margin), min(size, part.stop + margin))
            for part, margin, size in zip(wanted, margins, self.image.array.shape, strict=True)
        )
        return z, y, x


@dataclass(frozen=True)
class Cut:
    """A box of a case, canonical, and the class that is asked about."""

    case: Case
    number: int
    box: Box

    @cached_property
    def geometry(self) -> Geometry:
        """Grid of the box."""
        whole = self.case.image.geometry
        start = np.array([part.indices(size)[0] for part, size in zip(self.box, whole.shape, strict=True)])[::-1]
        direction = np.asarray(whole.direction).reshape(3, 3)
        origin = np.asarray(whole.origin) + direction @ (start * np.asarray(whole.spacing))
        z, y, x = self.map(MAP_OF_SET).shape
        return Geometry((x, y, z), whole.spacing, tuple(origin.tolist()), whole.direction)

    @property
    def place(self) -> str:
        """Name of the box, and of what other classes were drawn by then: it finds what is shown again."""
        sizes = self.case.image.array.shape
        box = ",".join("{}-{}".format(*part.indices(size)) for part, size in zip(self.box, sizes, strict=True))
        return box if self.case.since is None else f"{box}{SINCE}{self.case.since}"

    @property
    def _organ(self) -> "Cut":
        """The cut to the organ: it holds all of the class, of whatever map."""
        return self.case.cut(self.number, CROP)

    def map(self, name: str) -> np.ndarray:
        """Return the label map of the set, or of a model, inside the box."""
        return self.case.maps[name][self.box]

    def image_file(self) -> bytes:
        """Return the image inside the box as an uncompressed NIfTI file, int16 where that holds its values.

        Its header names the first window, so that a viewer need not look for one.
        """
        array = self.case.image.array[self.box]
        small = np.issubdtype(array.dtype, np.integer) and np.can_cast(array.dtype, np.int16)
        if np.issubdtype(array.dtype, np.integer) and not small:
            limits = np.iinfo(np.int16)
            small = bool(limits.min <= array.min() and array.max() <= limits.max)
        _, low, high = self._windows()[0]
        return _file(array.astype(np.int16 if small else np.float32), self.geometry, (low, high))

    def map_file(self, name: str) -> bytes:
        """Return a label map inside the box as an uncompressed NIfTI file, uint8."""
        return _file(self.map(name), self.geometry)

    def about(self, doubted: str = "") -> dict[str, Any]:
        """Return numbers about what is shown, for JSON.

        ``place`` names what is shown; ``start`` is the voxel (x, y, z) in the middle of what is ``doubted``
        (:mod:`labelloop.images.boxes`), else of the class; a window has a name,
        and the intensities drawn black and white; each map has the volume of the class in ml, and its Dice with the
        label that is asked about (None where both are empty).
        """
        organ = self._organ
        label = organ.map(MAP_OF_SET) == self.number
        maps = [{"name": name, **organ._numbers(name, label)} for name in self.case.maps]
        shift = [(there.start or 0) - (here.start or 0) for there, here in zip(organ.box, self.box, strict=True)][::-1]
        size, spacing = self.geometry.size, self.geometry.spacing
        return {
            "place": self.place,
            "size": size,
            "spacing": spacing,
            "start": self._middle_of(doubted) or [n + by for n, by in zip(organ._start(), shift, strict=True)],
            "windows": self._windows(),
            "maps": maps,
            "all": self.case.image.array.shape == self.map(MAP_OF_SET).shape,
        }

    def _windows(self) -> list[tuple[str, float, float]]:
        if self.case.asked.modality == "CT":
            return list(CT_WINDOWS)
        values = self.case.image.array[self._organ.box]
        found = []
        for name, *shares in MR_WINDOWS:
            low, high = np.percentile(values, shares).tolist()
            found.append((name, low, high if high > low else low + 1))
        return found

    def _numbers(self, name: str, label: np.ndarray) -> dict[str, float | None]:
        mask = self.map(name) == self.number
        both = int(mask.sum()) + int(label.sum())
        dice = 2 * int((mask & label).sum()) / both if both else None
        return {"ml": int(mask.sum()) * self.geometry.voxel_ml, "dice": dice}

    def _middle_of(self, text: str) -> list[int] | None:
        """Return the voxel (x, y, z) in the middle of a box of the whole case; None where it is not in this one."""
        found = box_or_none(text, self.case.image.geometry, self.case.asked.case)
        if found is None:
            return None
        voxel = [
            (side.start + side.stop - 1) // 2 - (shown.start or 0) for side, shown in zip(found, self.box, strict=True)
        ][::-1]
        inside = all(0 <= place < size for place, size in zip(voxel, self.geometry.size, strict=True))
        return voxel if inside else None

    def _start(self) -> list[int]:
        """Return the voxel in the middle of the class's middle slice; that of the models where the set has none."""
        for name in self.case.maps:
            mask = self.map(name) == self.number
            below = np.cumsum(mask.sum(axis=(1, 2)))
            if below[-1]:
                z = int(np.searchsorted(below, below[-1] / 2))
                voxels = np.argwhere(mask[z])
                steps = (voxels - voxels.mean(axis=0)) * self.geometry.spacing_zyx[1:]
                y, x = voxels[np.square(steps).sum(axis=1).argmin()].tolist()
                return [x, y, z]
        return [size // 2 for size in self.geometry.size]

    def take_back(self, content: bytes, ids: Mapping[str, int]) -> Volume:
        """Return the whole label map, as it is stored, with an edited cut in its place.

        Args:
            content: NIfTI file on the grid of the cut, gzipped or not. No more of it is unpacked than its grid has.
            ids: of all classes.

        Raises:
            CaseError: it is no such file, has ids that the scheme lacks, or differs from the label map that was shown
                in another class than the one asked about.
        """
        edited = self._read(content, list(ids.values()))
        judged = self.map(MAP_OF_SET)
        changed = edited != judged
        free = np.isin(judged[changed], (BACKGROUND, self.number)) & np.isin(edited[changed], (BACKGROUND, self.number))
        if not free.all():
            names = {number: plain(name) for name, number in ids.items()}
            touched = {*judged[changed][~free].tolist(), *edited[changed][~free].tolist()} - {BACKGROUND, self.number}
            others = ", ".join(names.get(number, "ignored voxels") for number in sorted(touched))
            found = f"{count(int((~free).sum()), 'voxel')} differ in other classes ({others})"
            action = f"Only {names[self.number]} and background may change."
            raise CaseError("review_other_class", self.case.asked.case, found, action)
        whole = self.case.maps[MAP_OF_SET].copy()
        whole[self.box] = edited
        return Volume(restore(whole, self.case.upright), self.case.stored)

    def _read(self, content: bytes, ids: Collection[int]) -> np.ndarray:
        """Read an edited cut: its header is held against the grid before a voxel is unpacked."""
        case = self.case.asked.case
        try:
            header = nifti.read_header(nifti.begin(content))
            dtype = header.dtype
        except nifti.RefusedError as error:
            raise CaseError(f"label_{error.code}", case, error.found, REASONS[f"label_{error.code}"]) from error
        if header.shape != self.geometry.size:
            found = f"a label map of {header.shape} voxels, where {self.geometry.size} are expected"
            raise CaseError("label_size_differs", case, found, REASONS["label_size_differs"])
        if dtype != np.uint8:
            found = f"voxels of type {dtype}, where uint8 is expected"
            raise CaseError("label_unknown_ids", case, found, "Save the map with the ids that it was opened with.")
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / f"edited{ENDING}"
            path.write_bytes(content)
            return read_reviewed(path, ids, self.geometry).array


def _as_it_is(volume: Volume) -> Volume:
    return volume


def _box_called(name: str, shape: tuple[int, ...]) -> Box:
    """Return the box of a name. Raises ValueError when it is none, or not inside of the image."""
    found = BOX.fullmatch(name)
    ends = list(map(int, found.groups())) if found else []
    parts = [slice(*ends[at : at + 2]) for at in range(0, len(ends), 2)]
    if not found or any(part.start >= part.stop or part.stop > size for part, size in zip(parts, shape, strict=True)):
        raise ValueError(f"no box of an image of {shape} voxels: {name[:40]!r}")
    return parts[0], parts[1], parts[2]


def _box_of(masks: Iterable[np.ndarray], shape: tuple[int, ...]) -> Box | None:
    """Return the smallest box around all masks; None when they are empty."""
    seen = [np.zeros(size, bool) for size in shape]
    for mask in masks:
        flat = np.asarray(mask.any(axis=2))
        seen[0] |= flat.any(axis=1)
        seen[1] |= flat.any(axis=0)
        seen[2] |= mask.any(axis=(0, 1))
    if not seen[0].any():
        return None
    z, y, x = (slice(int(np.flatnonzero(line)[0]), int(np.flatnonzero(line)[-1]) + 1) for line in seen)
    return z, y, x


def _file(array: np.ndarray, geometry: Geometry, window: tuple[float, float] = (0, 0)) -> bytes:
    """Return an array [z, y, x] as the bytes of an uncompressed NIfTI file."""
    import nibabel

    affine = ras_affine(geometry)
    image = nibabel.Nifti1Image(np.ascontiguousarray(array).T, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = window
    return image.to_bytes()
