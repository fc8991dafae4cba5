"""Labels with known errors: what annotators, networks and converters do wrong, put into a label map that is right.

A :data:`Kind` of error is a function that spoils a :class:`Draft`; it raises :class:`Impossible` where the patient
lacks what it takes. None knows a rule of anatomy: sizes (mm, ml), places and directions are drawn.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from labelloop.base.classes import BACKGROUND, IGNORED
from labelloop.labels.draft import (
    REACH_MM,
    Draft,
    Impossible,
    Kind,
    around,
    ball_of,
    distance,
    draft_of,
    nearest,
    there,
)

ALTERED = 0.4
"""Share of the classes of a corrupted map that get an error of their own; the others keep their voxels, or lose some to
these: models rarely err in one class alone."""
WHOLE_EVERY = 8
"""Of so many corrupted maps of a case, the last gets an error of the whole map instead."""


def corrupted(
    labels: np.ndarray,
    image: np.ndarray,
    spacing: Sequence[float],
    ids: Mapping[str, int],
    drawn_by: tuple[int, str, int],
    other: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, str]]:
    """Return a corrupted copy of a label map, and the kind of error by class ("" for one of the whole map).

    Args:
        labels, image: canonical arrays [z, y, x]; ignored voxels stay what they are.
        spacing: voxel size in mm (z, y, x).
        ids: the classes that may get errors; those without a voxel get none.
        drawn_by: seed, case, and number of the map among those of the case (from 0): all that is drawn follows from it.
        other: canonical labels of another patient, of any shape, to be mistaken for this one's.
    """
    seed, case, number = drawn_by
    draft = draft_of(labels, image, spacing, ids, (seed, case, f"map {number}"), other)
    done: dict[str, str] = {}
    if number % WHOLE_EVERY == WHOLE_EVERY - 1:
        _try_one(draft, OF_ALL, "", done)
    else:
        for name in ids:
            if draft.random.random() < ALTERED and draft.mask(name).any():
                _try_one(draft, {kind: of(name) for kind, of in OF_CLASS.items()}, name, done)
    draft.labels[draft.labels == IGNORED] = BACKGROUND
    draft.labels[labels == IGNORED] = IGNORED
    return draft.labels, done


def _try_one(draft: Draft, kinds: Mapping[str, Kind], name: str, done: dict[str, str]) -> None:
    """Put in the first kind of error, in an order that is drawn, that the patient can have."""
    for kind in draft.random.permutation(list(kinds)):
        before = draft.labels.copy()
        try:
            kinds[kind](draft)
        except Impossible:
            draft.labels = before
        else:
            done[name] = str(kind)
            return


def swapped(one: str, other: str) -> Kind:
    """Two classes have each other's voxels (all their ml)."""

    def inject(draft: Draft) -> None:
        there(draft, one, other)
        a, b = draft.mask(one), draft.mask(other)
        draft.paint(one, b)
        draft.paint(other, a)

    return inject


def dilated(name: str, mm: float | None = None) -> Kind:
    """The class grows by ``mm`` (default: as takes in 0.1 to 1.5 of its ml) to all sides, over what is there."""

    def inject(draft: Draft) -> None:
        there(draft, name)
        mask = draft.mask(name)
        box = around(mask, draft.spacing, REACH_MM if mm is None else mm)
        away = distance(~mask[box], draft.spacing)
        by = mm
        if by is None:
            new = np.sort(away[away > 0])
            by = new[min(int(draft.drawn(0.1, 1.5) * np.count_nonzero(mask)), len(new) - 1)] if len(new) else 0.0
        draft.labels[box][away <= by] = draft.ids[name]

    return inject


def eroded(name: str, mm: float | None = None) -> Kind:
    """The class shrinks by ``mm`` (default: as takes away 0.05 to 0.8 of its ml) from all sides."""

    def inject(draft: Draft) -> None:
        there(draft, name)
        mask = draft.mask(name)
        box = around(mask, draft.spacing, mm or 0.0)
        depth = distance(mask[box], draft.spacing)
        by = np.quantile(depth[mask[box]], draft.drawn(0.05, 0.8)) if mm is None else mm
        draft.labels[box][mask[box] & (depth <= by)] = 0

    return inject


def cut(names: Sequence[str], axis: int, end: int, share: float) -> Kind:
    """A class loses the ``share`` of its voxels at one end of an axis (z, y, x); ``end`` -1 the low one, 1 the high.

    Of several ``names`` one is drawn.
    """

    def inject(draft: Draft) -> None:
        there(draft, *names)
        name = str(draft.random.choice(names))
        places = np.argwhere(draft.mask(name))[:, axis]
        plane = np.quantile(places, 1 - share if end > 0 else share)
        grid = np.ogrid[tuple(slice(n) for n in draft.labels.shape)][axis]
        draft.erase(name, grid > plane if end > 0 else grid < plane)

    return inject


def end_lost(name: str) -> Kind:
    """A class loses 0.1 to 0.9 of its ml at one of its six ends."""

    def inject(draft: Draft) -> None:
        axis, end = int(draft.random.integers(3)), int(draft.random.choice([-1, 1]))
        cut((name,), axis, end, draft.drawn(0.1, 0.9))(draft)

    return inject


def slanting_cut(name: str, low: float, high: float) -> Kind:
    """A class loses the share ``low`` to ``high`` of its ml beyond a plane of any direction."""

    def inject(draft: Draft) -> None:
        there(draft, name)
        normal = draft.random.standard_normal(3)
        places = np.argwhere(draft.mask(name))
        heights = places * draft.spacing @ (normal / np.linalg.norm(normal))
        lost = places[heights > np.quantile(heights, 1 - draft.random.uniform(low, high))]
        draft.labels[tuple(lost.T)] = 0

    return inject


def relabeled(name: str, as_name: str) -> Kind:
    """The whole class (all its ml) is called by another's name."""

    def inject(draft: Draft) -> None:
        there(draft, name, as_name)
        draft.paint(as_name, draft.mask(name))

    return inject


def part_relabeled(name: str, as_name: str, axis: int, end: int, share: float) -> Kind:
    """The ``share`` of the ml of a class at one end of an axis goes to a neighbor."""

    def inject(draft: Draft) -> None:
        there(draft, name, as_name)
        before = draft.mask(name)
        cut((name,), axis, end, share)(draft)
        draft.paint(as_name, before & ~draft.mask(name))

    return inject


def shared_with_nearest(name: str, gives: bool) -> Kind:
    """The class gives 0.1 to 0.9 of its ml to the class nearest to it, or takes as much of that one's."""

    def inject(draft: Draft) -> None:
        pair = (name, nearest(draft, name))
        axis, end = int(draft.random.integers(3)), int(draft.random.choice([-1, 1]))
        part_relabeled(*(pair if gives else pair[::-1]), axis, end, draft.drawn(0.1, 0.9))(draft)

    return inject


def swapped_with_nearest(name: str) -> Kind:
    """The class and the one nearest to it have each other's voxels (all their ml)."""
    return lambda draft: swapped(name, nearest(draft, name))(draft)


def left_out(name: str) -> Kind:
    """The class, that is there, has 0 ml."""

    def inject(draft: Draft) -> None:
        there(draft, name)
        draft.erase(name)

    return inject


def leak(name: str, ml: float | None = None, free_only: bool = True) -> Kind:
    """The class pours ``ml`` (default: 0.2 to 1.5 of its own) out at a point of its surface: a ball around it.

    Args:
        free_only: of what no class has; else of anything.
    """

    def inject(draft: Draft) -> None:
        there(draft, name)
        mask = draft.mask(name)
        amount = draft.drawn(0.2, 1.5) * draft.ml(name) if ml is None else ml
        depth = distance(mask, draft.spacing)
        edge = mask & (depth <= draft.spacing.max())
        body = draft.image > max(-200, draft.image.min())
        where = body & (draft.labels == 0) if free_only else body & ~mask
        for _ in range(50 if edge.any() else 0):
            ball, wanted = ball_of(draft, draft.pick(edge), amount, where)
            if wanted:
                draft.paint(name, ball)
                return
        raise Impossible(f"no place for {amount:.3g} ml beside the {name}")

    return inject


def island(name: str, host: str | None) -> Kind:
    """A ball of 8 to 15 mm radius of one class inside another, or, without ``host``, 60 mm or more from the class."""

    def inject(draft: Draft) -> None:
        there(draft, name, *([host] if host else []))
        if host:
            mask = draft.mask(host)
            where = mask & (distance(mask, draft.spacing) > 6)
        else:
            where = (draft.labels == 0) & (draft.image > -50)
            mask = draft.mask(name)
            box = around(mask, draft.spacing, 60.0)
            where[box] &= distance(~mask[box], draft.spacing) > 60
        if not where.any():
            raise Impossible(f"no place for an island of {name}")
        ball = draft.ball(draft.pick(where), draft.random.uniform(8, 15))
        draft.paint(name, ball & (draft.mask(host) if host else draft.labels == 0))

    return inject


def slices_lost(names: Sequence[str]) -> Kind:
    """One of the classes loses 10 to 30 mm of slices, not at its ends."""

    def inject(draft: Draft) -> None:
        name = draft.one_of(names)
        filled = np.flatnonzero(draft.mask(name).any(axis=(1, 2)))
        thick = max(2, round(draft.random.uniform(10, 30) / draft.spacing[0]))
        start = filled[0] + (len(filled) - thick) * draft.random.uniform(0.25, 0.75)
        z = np.arange(draft.labels.shape[0])[:, None, None]
        draft.erase(name, (z >= start) & (z < start + thick))

    return inject


def every_other_slice(names: Sequence[str]) -> Kind:
    """One of the classes has every other slice only (3 to 5 mm each), as where every other one was drawn."""

    def inject(draft: Draft) -> None:
        name = draft.one_of(names)
        z = np.arange(draft.labels.shape[0])[:, None, None]
        draft.erase(name, np.broadcast_to(z % 2 == int(draft.random.integers(2)), draft.labels.shape))

    return inject


def jagged_slices(names: Sequence[str]) -> Kind:
    """Each slice of one of the classes is moved by up to 10 mm in its plane, as by breathing between slices."""

    def inject(draft: Draft) -> None:
        name = draft.one_of(names)
        mask = draft.mask(name)
        draft.erase(name)
        for z in np.flatnonzero(mask.any(axis=(1, 2))):
            by = np.rint(draft.random.uniform(-10, 10, 2) / draft.spacing[1:]).astype(int)
            draft.labels[z][np.roll(mask[z], tuple(by), (0, 1))] = draft.ids[name]

    return inject


def holes(names: Sequence[str], low: float = 0.05, high: float = 0.05) -> Kind:
    """The share ``low`` to ``high`` of the ml of one of the classes are holes of single voxels."""

    def inject(draft: Draft) -> None:
        inside = np.flatnonzero(draft.mask(draft.one_of(names)))
        number = int(draft.drawn(low, high) * len(inside) + 1e-6)
        draft.labels.flat[draft.random.choice(inside, number, replace=False)] = 0

    return inject


def hollow(name: str, low: float, high: float) -> Kind:
    """The class loses the share ``low`` to ``high`` of its ml at its deepest places: only its shell is left."""

    def inject(draft: Draft) -> None:
        there(draft, name)
        mask = draft.mask(name)
        depth = distance(mask, draft.spacing)
        draft.erase(name, depth > np.quantile(depth[mask], 1 - draft.drawn(low, high)))

    return inject


def moved(name: str, mm: float | None = None) -> Kind:
    """The class lies ``mm`` (default: 0.05 to 0.8 of its width) off in a random direction, over whatever is there."""

    def inject(draft: Draft) -> None:
        there(draft, name)
        direction = draft.random.standard_normal(3)
        by = draft.drawn(0.05, 0.8) * np.cbrt(draft.ml(name) * 1000) if mm is None else mm
        draft.move(name, by * direction / np.linalg.norm(direction))

    return inject


def random_voxels(draft: Draft) -> None:
    """5 % of the labeled ml get another class at random, voxel by voxel."""
    labeled = np.flatnonzero(draft.labels)
    chosen = draft.random.choice(labeled, len(labeled) // 20, replace=False)
    draft.labels.flat[chosen] = draft.random.choice(list(draft.ids.values()), len(chosen))


def all_moved(mm: float) -> Kind:
    """The whole label map lies ``mm`` off its image, in a random direction."""

    def inject(draft: Draft) -> None:
        direction = draft.random.standard_normal(3)
        by = np.rint(mm * direction / np.linalg.norm(direction) / draft.spacing).astype(int)
        turned = np.roll(draft.labels, tuple(by), (0, 1, 2))
        for axis, step in enumerate(by):  # what left at one side does not come back at the other
            edge = slice(0, step) if step > 0 else slice(max(draft.labels.shape[axis] + step, 0), None)
            if step:
                np.moveaxis(turned, axis, 0)[edge] = 0
        draft.labels = turned

    return inject


def scaled(factor: float) -> Kind:
    """The whole label map is larger than its image in the plane by a factor, as with a wrong spacing in mm."""

    def inject(draft: Draft) -> None:
        axes = [np.arange(n) for n in draft.labels.shape]
        for axis in (1, 2):
            middle = (draft.labels.shape[axis] - 1) / 2
            axes[axis] = np.rint((axes[axis] - middle) / factor + middle).astype(int)
        draft.labels = np.ascontiguousarray(draft.labels[np.ix_(*axes)])

    return inject


def blocks(mm: float) -> Kind:
    """The label map was made on blocks of ``mm``."""

    def inject(draft: Draft) -> None:
        steps = np.maximum(1, np.rint(mm / draft.spacing)).astype(int)
        sizes = draft.labels.shape
        axes = [np.minimum(np.arange(n) // k * k + k // 2, n - 1) for n, k in zip(sizes, steps, strict=True)]
        draft.labels = np.ascontiguousarray(draft.labels[np.ix_(*axes)])

    return inject


def another_patients(draft: Draft) -> None:
    """The labels are another patient's (0 mm of them right), scaled to the volume."""
    if draft.other is None:
        raise Impossible("no other patient")
    sizes = zip(draft.labels.shape, draft.other.shape, strict=True)
    axes = [np.linspace(0, m - 1, n).round().astype(int) for n, m in sizes]
    draft.labels = np.ascontiguousarray(draft.other[np.ix_(*axes)])


def flipped(*axes: int) -> Kind:
    """The label map alone is turned on its axes (z, y, x), so that it lies up to the body's width in mm off."""

    def inject(draft: Draft) -> None:
        draft.labels = np.ascontiguousarray(np.flip(draft.labels, axes))

    return inject


OF_CLASS: dict[str, Callable[[str], Kind]] = {
    "dilated": dilated,
    "eroded": eroded,
    "an end lost": end_lost,
    "a slanting part lost": lambda name: slanting_cut(name, 0.05, 0.9),
    "slices lost": lambda name: slices_lost((name,)),
    "every other slice": lambda name: every_other_slice((name,)),
    "jagged slices": lambda name: jagged_slices((name,)),
    "holes of single voxels": lambda name: holes((name,), 0.02, 0.4),
    "hollow": lambda name: hollow(name, 0.1, 0.6),
    "leaks": leak,
    "leaks into anything": lambda name: leak(name, free_only=False),
    "moved": moved,
    "an island elsewhere": lambda name: island(name, None),
    "a part called as its neighbor": lambda name: shared_with_nearest(name, True),
    "takes in its neighbor": lambda name: shared_with_nearest(name, False),
    "swapped with its neighbor": swapped_with_nearest,
    "left out": left_out,
}
"""Kinds of errors that any class may have, of all sizes: each a function of the class's name."""

OF_ALL: dict[str, Kind] = {
    "moved": lambda draft: all_moved(draft.drawn(4, 30))(draft),
    "mirrored": flipped(2),
    "front to back": flipped(1),
    "upside down": flipped(0),
    "too large": lambda draft: scaled(draft.drawn(1.03, 1.2))(draft),
    "in blocks": lambda draft: blocks(draft.drawn(6, 20))(draft),
    "random voxels": random_voxels,
    "another patient's": another_patients,
}
"""Kinds of errors of a whole label map."""
