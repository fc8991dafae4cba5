"""Reproducible batches: which patch, which augmentation, follows from the seed and the batch's number alone.

nnU-Net's own loaders run free and draw from whatever state their worker is in, so no two runs are alike and no
interrupted run can be continued exactly. Here every batch seeds its random numbers from (seed, stream, epoch,
iteration), and draws from them the cases and a seed for each sample. Any number of workers gives the same batches, any
number of cards the same samples, and a resumed training sees those it would have seen.
"""

import random
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from labelloop.base import stopping
from labelloop.base.classes import IGNORED
from labelloop.inference.prepare import Frame
from labelloop.inference.prepared import SUFFIX, PreparedImage, open_image, open_label


class Draw(NamedTuple):
    """The number of one batch: ``stream`` is a loader's name, e.g. ``train`` or ``validation``."""

    stream: str
    epoch: int
    iteration: int


Channels = Mapping[int, int]
"""Class id to output channel, for one case, and IGNORED to what losses leave out; other ids become background."""
KNOWN = -1
"""Key of the locations that are not ignored, among those of channels."""


class MappedLabel:
    """A stored label map that answers slices with output channels instead of class ids."""

    def __init__(self, array: Any, channels: Channels):
        self._array = array
        self._table = np.zeros(IGNORED + 1, np.int16)
        self._table[list(channels)] = list(channels.values())
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, len(array.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._table[self._array[index]]


class Part(NamedTuple):
    """The planes from ``start`` to ``stop`` along one axis of an array [channel, z, y, x]."""

    axis: int
    start: int
    stop: int


class Planes:
    """A part of a stored array [channel, z, y, x], unread; answers slices."""

    def __init__(self, array: Any, part: Part):
        self._array, self._part = array, part
        sides = list(array.shape)
        sides[part.axis] = part.stop - part.start
        self.shape, self.dtype, self.ndim = tuple(sides), array.dtype, len(sides)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        axis, first = self._part.axis, self._part.start
        start, stop, step = index[axis].indices(self.shape[axis])
        return self._array[(*index[:axis], slice(start + first, stop + first, step), *index[axis + 1 :])]


class PreparedDataset(nnUNetBaseDataset):
    """nnU-Net's data set protocol over prepared arrays: images of a plan, labels of a label set.

    Args:
        images: folder of ``<case>.b2nd`` images.
        labels: folder of ``<case>.b2nd`` labels.
        cases: for each case, which class id is which output channel there. Classes that are unknown in a case are
            left out, so that their voxels, if there are any, are background and are never sampled. A case without
            any id needs no label.
        margin: axial slices kept above and below the classes of a case, by the axis (z, y, x) along which they are
            stacked; the others are hidden. None: all are seen.
    """

    def __init__(self, images: Path, labels: Path, cases: Mapping[str, Channels], margin: Sequence[int] | None = None):
        super().__init__(str(images), sorted(cases))
        self._labels, self._cases, self._margin = Path(labels), dict(cases), margin
        self._parts: dict[str, Part] = {}

    def load_case(self, identifier: str) -> tuple[Any, MappedLabel | Planes, None, dict[str, Any]]:
        """Return image [channel, z, y, x], label [1, z, y, x], None, and the properties of a case, unread."""
        channels = self._cases[str(identifier)]
        image = open_image(Path(self.source_folder) / f"{identifier}{SUFFIX}")
        if not channels:
            empty = MappedLabel(np.broadcast_to(np.int16(0), (1, *image.array.shape[1:])), channels)
            return image.array, empty, None, {"class_locations": {}}
        label = open_label(self._labels / f"{identifier}{SUFFIX}")
        if image.array.shape[1:] != label.array.shape[1:]:
            raise RuntimeError(f"{identifier}: image {image.array.shape[1:]} and label {label.array.shape[1:]} differ")
        places = {channels[i]: where for i, where in label.locations.items() if i in channels}
        part = self._part_of(str(identifier), image, label.array, channels)
        if label.ignores:
            heights = label.known[:, part.axis]
            places[KNOWN] = label.known[(heights >= part.start) & (heights < part.stop)]
        moved = np.where(np.arange(4) == part.axis, part.start, 0)
        places = {channel: where - moved for channel, where in places.items()}
        seen = [Planes(array, part) for array in (image.array, MappedLabel(label.array, channels))]
        return seen[0], seen[1], None, {"class_locations": places}

    def _part_of(self, case: str, image: PreparedImage, label: Any, channels: Channels) -> Part:
        """Return the part of a case that is seen; looked up once, because that reads the whole label map."""
        if self._margin is None:
            return Part(1, 0, label.shape[1])
        if case not in self._parts:
            axis = 1 + Frame.from_dict(image.frame).height_axis
            size, margin = label.shape[axis], self._margin[axis - 1]
            across = tuple(other for other in range(4) if other != axis)
            found = np.flatnonzero(np.isin(label[:], [i for i in channels if i != IGNORED]).any(across))
            first, last = (int(found[0]), int(found[-1]) + 1) if len(found) else (0, size)
            self._parts[case] = Part(axis, max(0, first - margin), min(size, last + margin))
        return self._parts[case]

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """Return the cases in a folder of prepared arrays."""
        return sorted(path.name.removesuffix(SUFFIX) for path in Path(folder).glob(f"*{SUFFIX}"))

    @staticmethod
    def save_case(*_args, **_kwargs) -> None:
        """Refuse: prepared arrays are written by ``labelloop.inference.prepared``."""
        raise NotImplementedError("prepared arrays are written by labelloop.inference.prepared")


class NumberedBatches(torch.utils.data.Dataset):
    """Batches by their number, made by nnU-Net's loaders."""

    def __init__(self, loaders: Mapping[str, nnUNetDataLoader], seed: int):
        self._loaders, self._seed = dict(loaders), seed

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        with isolated_random_state(seed_of(self._seed, *draw)):
            batch = self._loaders[draw.stream].generate_train_batch()
        return batch | {"keys": [str(key) for key in batch["keys"]], "stream": draw.stream}


def iterate(
    loaders: Mapping[str, nnUNetDataLoader], draws: Sequence[Draw], seed: int, workers: int, pin_memory: bool = False
) -> Generator[dict[str, Any], None, None]:
    """Yield the batches of ``draws`` in order; one pool of workers makes them ahead, across epochs and streams."""
    yield from ahead(NumberedBatches(loaders, seed), draws, workers, pin_memory)


def ahead(
    numbered: torch.utils.data.Dataset, draws: Sequence[Draw], workers: int, pin_memory: bool = False
) -> Generator[dict[str, Any], None, None]:
    """Yield what a data set makes of ``draws``, in order; workers make it ahead.

    Workers end when the generator is closed or this process is gone; no signal that asks a job to stop ends them.
    """
    loader = torch.utils.data.DataLoader(
        numbered,
        batch_size=None,
        sampler=draws,
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=3 if workers else None,
    )
    with stopping.spared():
        batches = iter(loader)  # starts the workers
    yield from batches


def seed_of(seed: int, *parts: str | int) -> int:
    """Return a 64-bit seed that follows from ``seed`` and ``parts``, e.g. a stream, an epoch and an iteration."""
    numbers = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0])


def set_random_state(seed: int) -> None:
    """Seed Python's, numpy's and torch's CPU generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Return the state of all generators, to be kept in a checkpoint: tensors, numbers and texts only."""
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    numbers = (algorithm, np.asarray(keys).tolist(), position, has_gauss, gauss)
    state = {"python": random.getstate(), "numpy": numbers, "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = [torch.cuda.get_rng_state()]
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Bring the generators back to a state from :func:`random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if state.get("cuda") and torch.cuda.is_available():  # of the GPU in use; there may be more or fewer beside it now
        torch.cuda.set_rng_state(state["cuda"][0].cpu())


@contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Run a block on ``seed`` and one thread, leaving generators and threads as they were.

    One thread, because the order in which several add up numbers shows in the last bits.
    """
    python, numbers, generator, threads = random.getstate(), np.random.get_state(), torch.get_rng_state(), _threads(1)
    set_random_state(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(generator)
        _threads(threads)


def _threads(number: int) -> int:
    before = torch.get_num_threads()
    if before != number:
        torch.set_num_threads(number)
    return before
