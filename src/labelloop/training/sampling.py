"""Which cases make a batch, and where in a case a patch lies: nnU-Net's loader with rules of our own."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from labelloop.cases.annotation import PRESENT
from labelloop.training.cutmix import Paster
from labelloop.training.job import TrainingCase
from labelloop.training.loading import KNOWN, set_random_state
from labelloop.training.settings import Favor, Sampling


class Pick(NamedTuple):
    """A case to take a patch from, and the channel to center it on if it is centered; 0: any channel of the case."""

    case: str
    channel: int = 0


Chooser = Callable[[], list[Pick]]
"""Draws what makes one batch, by numpy's global generator."""


def evenly(cases: Sequence[str], size: int) -> Chooser:
    """Return a chooser of ``size`` cases, all alike."""
    return lambda: [Pick(str(case)) for case in np.random.choice(cases, size)]


def one_type(types: Sequence[Sequence[str]], size: int) -> Chooser:
    """Return a chooser of ``size`` cases of one type, the type drawn in proportion to its cases (Zhou, section 2.2)."""
    counts = np.array([len(cases) for cases in types], float)

    def choose() -> list[Pick]:
        return evenly(types[np.random.choice(len(types), p=counts / counts.sum())], size)()

    return choose


def two_parts(labeled: Chooser, unlabeled: Chooser) -> Chooser:
    """Return a chooser of a batch: first what the labeled chooser draws, then the unlabeled one."""
    return lambda: [*labeled(), *unlabeled()]


def by_table(cases: Sequence[str], table: np.ndarray, size: int) -> Chooser:
    """Return a chooser of ``size`` cases and channels, of probabilities ``table`` [cases, channels]."""
    flat, channels = table.ravel() / table.sum(), table.shape[1]

    def choose() -> list[Pick]:
        return [Pick(cases[n // channels], int(n % channels)) for n in np.random.choice(flat.size, size, p=flat)]

    return choose


def truth_table(cases: Sequence[TrainingCase], classes: Sequence[str], others: Mapping[str, float]) -> np.ndarray:
    """Return how likely each case and channel [cases, channels] is drawn where truth is; all 0 when there is none.

    A case weighs by what is known of it: by the number of classes that annotators looked for. Of these, one that is
    present is drawn, all alike; channel 0 stands for a case in which none is.

    Args:
        others: weights of classes; 1 for those not named.
    """
    weights = np.array([others.get(name, 1.0) for name in classes])
    known = _where(cases, classes, lambda case, name: case.is_truth(name)) @ weights
    present = _where(cases, classes, lambda case, name: case.is_truth(name) and case.states[name] == PRESENT) * weights
    table = np.column_stack([~present.any(1), present])
    return table / table.sum(1, keepdims=True) * known[:, None] / max(known.sum(), 1e-12)


def pseudo_table(cases: Sequence[TrainingCase], classes: Sequence[str], truth: np.ndarray) -> np.ndarray:
    """Return how likely each case and channel [cases, channels] is drawn where models labeled; 0 where they did not.

    A class is drawn as often as the table of the ``truth`` draws it, and then one of the cases in which it was found.
    Else the organs that models find easily would push out the others. A class that no annotator looked for is drawn as
    often as the rarest of the truth.
    """
    held = _where(cases, classes, lambda case, name: case.states.get(name) == PRESENT and not case.is_truth(name))
    held = np.column_stack([np.zeros(len(cases)), held])
    wanted = truth.sum(0)
    least = wanted[wanted > 0].min(initial=1.0)
    return held * np.where(wanted > 0, wanted, least) / np.maximum(held.sum(0), 1)


def _where(
    cases: Sequence[TrainingCase], classes: Sequence[str], holds: Callable[[TrainingCase, str], bool]
) -> np.ndarray:
    return np.array([[float(holds(case, name)) for name in classes] for case in cases]).reshape(len(cases), -1)


def streams(
    cases: Sequence[TrainingCase], classes: Sequence[str], sampling: Sampling, favor: Favor | None, size: int
) -> dict[str, Chooser]:
    """Return the streams of batches: ``train`` and, where models labeled too, ``truth`` for what annotators labeled."""
    others = {name: 1 - favor.drop_others for name in classes if name != favor.name} if favor else {}
    names, truth = [case.case for case in cases], truth_table(cases, classes, others)
    pseudo = pseudo_table(cases, classes, truth)
    if not (truth.any() or pseudo.any()):
        return {"train": evenly(names, size)}
    if not (truth.any() and pseudo.any()):
        return {"train": by_table(names, truth + pseudo, size)}
    # a class that models found nowhere is drawn from the truth alone, as often as any other of its kind
    mixed = np.where(pseudo.any(0), sampling.truth_share * truth + (1 - sampling.truth_share) * pseudo, truth)
    return {"truth": by_table(names, truth, size), "train": by_table(names, mixed, size)}


class Loader(nnUNetDataLoader):
    """nnU-Net's loader, which may be told how to choose cases, what to center patches on, and what to paste.

    Each patch is centered on a class with a probability. nnU-Net's usual way counts patches of a batch instead: of two,
    any share from 0.25 to 0.75 is one, and a single patch is always or never centered. Other patches lie anywhere or,
    as nnU-Net's, around a voxel that is not ignored, in cases where some are.

    Args:
        choose: draws the cases of a batch; default: any cases.
        share: says which samples of a batch, of so many, are made here; all draw the same cases.
        favored: channel on which patches are centered more often, and the probability that each other channel of the
            case is passed over for it.
        paste: pastes objects into a patch before it is augmented.
    """

    batch_size: int
    """Samples of the batch at hand that are made here."""

    def __init__(
        self,
        *args,
        choose: Chooser | None = None,
        share: Callable[[int], slice] = slice,
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
        self._choose = choose or evenly(self.indices, self.batch_size)
        self._share, self._favored, self._paste, self._augment = share, favored, paste, transforms
        self._drawn: list[Pick] = []
        self._seeds: list[int] = []
        self._picks: list[Pick] = []
        self._left: list[Pick] = []
        self._pasted: list[list[str]] = []

    def get_indices(self) -> list[str]:
        """Return the cases of those samples of the next batch that are made here."""
        self._drawn = self._choose()
        here = self._share(len(self._drawn))
        self._seeds = np.random.randint(2**63, size=len(self._drawn), dtype=np.int64)[here].tolist()
        self._picks = self._drawn[here]
        self._left, self._pasted, self.batch_size = list(self._picks), [], len(self._picks)
        return [pick.case for pick in self._picks]

    def _probabilistic_oversampling(self, sample_idx: int) -> bool:
        """Begin a sample, which follows from a seed of its own; say whether its patch is centered on a class.

        nnU-Net asks this first of each sample.
        """
        set_random_state(self._seeds[sample_idx])
        return super()._probabilistic_oversampling(sample_idx)

    def get_bbox(self, data_shape, force_fg, class_locations, *args, **options):
        """Return where the patch lies."""
        channel, drop = self._favored or (None, 0.0)
        picked = self._left.pop(0).channel if self._left else 0  # nnU-Net asks for one sample after the other
        known = class_locations.get(KNOWN, ())
        class_locations = {name: where for name, where in class_locations.items() if name != KNOWN}
        if len(known) and not (force_fg and class_locations):
            force_fg, class_locations = True, {KNOWN: known}
        elif force_fg and len(class_locations.get(picked, ())):
            class_locations = {picked: class_locations[picked]}
        elif force_fg and channel in class_locations:
            class_locations = {
                name: where for name, where in class_locations.items() if name == channel or np.random.uniform() >= drop
            }
        return super().get_bbox(data_shape, force_fg, class_locations, *args, **options)

    def generate_train_batch(self) -> dict[str, Any]:
        """Return the samples that are made here, and in ``keys`` the cases of the whole batch.

        With pasting, ``pasted`` names for each sample made here the cases that its objects come from.
        """
        batch = super().generate_train_batch() | {"keys": [pick.case for pick in self._drawn]}
        return batch | {"pasted": self._pasted} if self._paste else batch

    def _paste_and_augment(self, paste: Paster, image, segmentation) -> dict[str, Any]:
        case = self._picks[len(self._pasted)].case
        self._pasted.append(paste(case, image[0].numpy(), segmentation[0].numpy()))
        return self._augment(image=image, segmentation=segmentation)
