"""Which cases make a batch, and where in a case a patch lies: nnU-Net's loader with rules of our own."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from labelloop.training.cutmix import Paster

Chooser = Callable[[], list[str]]
"""Draws the cases of one batch, by numpy's global generator."""


def one_type(types: Sequence[Sequence[str]], size: int) -> Chooser:
    """Return a chooser of ``size`` cases of one type, the type drawn in proportion to its cases (Zhou, section 2.2)."""
    counts = np.array([len(cases) for cases in types], float)

    def choose() -> list[str]:
        cases = types[np.random.choice(len(types), p=counts / counts.sum())]
        return list(np.random.choice(cases, size))

    return choose


def two_parts(labeled: Sequence[str], unlabeled: Sequence[str], sizes: tuple[int, int]) -> Chooser:
    """Return a chooser of a batch: first so many labeled cases, then so many unlabeled ones."""

    def choose() -> list[str]:
        return [*np.random.choice(labeled, sizes[0]), *np.random.choice(unlabeled, sizes[1])]

    return choose


class Loader(nnUNetDataLoader):
    """nnU-Net's loader, which may be told how to choose cases, what to center patches on, and what to paste.

    Each patch is centered on a class with a probability. nnU-Net's usual way counts patches of a batch instead: of two,
    any share from 0.25 to 0.75 is one, and a single patch is always or never centered.

    Args:
        choose: draws the cases of a batch; default: any cases.
        favored: channel on which patches are centered more often, and the probability that each other channel of the
            case is passed over for it.
        paste: pastes objects into a patch before it is augmented.
    """

    def __init__(
        self,
        *args,
        choose: Chooser | None = None,
        favored: tuple[int, float] | None = None,
        paste: Paster | None = None,
        transforms: Callable[..., dict[str, Any]],
        **options,
    ):
        super().__init__(
            *args,
            transforms=partial(self._paste_and_augment, paste) if paste else transforms,
            probabilistic_oversampling=True,
            **options,
        )
        self._choose, self._favored, self._paste, self._augment = choose, favored, paste, transforms
        self._chosen: list[str] = []
        self._pasted: list[list[str]] = []

    def get_indices(self) -> list[str]:
        """Return the cases of the next batch."""
        self._chosen, self._pasted = list(self._choose() if self._choose else super().get_indices()), []
        return self._chosen

    def get_bbox(self, data_shape, force_fg, class_locations, *args, **options):
        """Return where the patch lies."""
        channel, drop = self._favored or (None, 0.0)
        if force_fg and channel in class_locations:
            class_locations = {
                name: where for name, where in class_locations.items() if name == channel or np.random.uniform() >= drop
            }
        return super().get_bbox(data_shape, force_fg, class_locations, *args, **options)

    def generate_train_batch(self) -> dict[str, Any]:
        """Return a batch; with pasting, ``pasted`` names for each sample the cases its objects come from."""
        batch = super().generate_train_batch()
        return batch | {"pasted": self._pasted} if self._paste else batch

    def _paste_and_augment(self, paste: Paster, image, segmentation) -> dict[str, Any]:
        case = str(self._chosen[len(self._pasted)])
        self._pasted.append(paste(case, image[0].numpy(), segmentation[0].numpy()))
        return self._augment(image=image, segmentation=segmentation)
