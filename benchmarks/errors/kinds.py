"""Kinds of errors for expert labels of real scans: one error a label map, sizes in mm and ml.

``NAMED`` are the kinds of which it was asked whether the rules catch them, ``OWN`` are added here, as networks,
annotators and converters make them. A kind is a function that spoils a :class:`~errors.Draft`; it raises ``Impossible``
where the patient lacks what it takes (no gas in the stomach, no gallbladder). None knows a rule of ``config/classes``.
"""

from collections.abc import Callable, Sequence

import cc3d
import edt
import numpy as np
from errors import Draft, swapped

Kind = Callable[[Draft], None]
KIDNEYS = ("right_kidney", "left_kidney")
ADRENALS = ("right_adrenal_gland", "left_adrenal_gland")
ORGANS = ("liver", "spleen", "right_kidney", "left_kidney", "stomach", "pancreas", "aorta", "inferior_vena_cava")
GAS_HU = -120
"""Gas in BTCV's images, which are cut off at -125 HU; smoothed fat is brighter."""


class Impossible(Exception):  # noqa: N818 - no fault: the patient lacks what the error takes
    """Raised by a kind of error that the patient cannot have."""


def there(draft: Draft, *names: str) -> None:
    """Raise Impossible unless all classes have voxels."""
    missing = [name for name in names if name not in draft.ids or not draft.mask(name).any()]
    if missing:
        raise Impossible(f"no {', '.join(missing)}")


def distance(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the distance (mm) of each voxel of a mask to what is not in it; the volume's border counts as inside."""
    return edt.edt(np.ascontiguousarray(mask), anisotropy=tuple(spacing), black_border=False, parallel=1)


def around(mask: np.ndarray, spacing: np.ndarray, margin_mm: float) -> tuple[slice, ...]:
    """Return the box of a mask, ``margin_mm`` wider."""
    places, pad = np.argwhere(mask), np.ceil(margin_mm / spacing).astype(int) + 1
    low, high = np.maximum(places.min(0) - pad, 0), np.minimum(places.max(0) + 1 + pad, mask.shape)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def dilated(name: str, mm: float) -> Kind:
    """The class grows by ``mm`` in all directions, over background and neighbors."""

    def inject(draft: Draft) -> None:
        there(draft, name)
        mask = draft.mask(name)
        box = around(mask, draft.spacing, mm)
        grown = distance(~mask[box], draft.spacing) <= mm
        draft.labels[box][grown] = draft.ids[name]

    return inject


def eroded(name: str, mm: float) -> Kind:
    """The class shrinks by ``mm`` from all sides."""

    def inject(draft: Draft) -> None:
        there(draft, name)
        mask = draft.mask(name)
        box = around(mask, draft.spacing, mm)
        rim = mask[box] & (distance(mask[box], draft.spacing) <= mm)
        draft.labels[box][rim] = 0

    return inject


def cut(names: Sequence[str], axis: int, end: int, share: float) -> Kind:
    """A class loses the ``share`` of its voxels at one end of an axis (z, y, x); ``end`` -1 the low one, 1 the high.

    Canonical axes: z upwards, y to the front, x to the patient's right. Of several ``names`` one is drawn.
    """

    def inject(draft: Draft) -> None:
        there(draft, *names)
        name = str(draft.random.choice(names))
        places = np.argwhere(draft.mask(name))[:, axis]
        plane = np.quantile(places, 1 - share if end > 0 else share)
        grid = np.ogrid[tuple(slice(n) for n in draft.labels.shape)][axis]
        draft.erase(name, grid > plane if end > 0 else grid < plane)

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


def left_out(name: str) -> Kind:
    """The class, that is there, has 0 ml."""

    def inject(draft: Draft) -> None:
        there(draft, name)
        draft.erase(name)

    return inject


def leak(name: str, ml: float, free_only: bool = True, below: bool = False) -> Kind:
    """The class pours ``ml`` out at a point of its surface: a ball around it, of what no class has (or of anything)."""

    def inject(draft: Draft) -> None:
        there(draft, name)
        mask = draft.mask(name)
        depth = distance(mask, draft.spacing)
        edge = mask & (depth <= draft.spacing.max())
        if below:
            edge[int(np.argwhere(mask)[:, 0].mean()) :] = False
        body = draft.image > max(-200, draft.image.min())
        for _ in range(50):
            center = draft.pick(edge)
            ball, wanted = ball_of(draft, center, ml, body & (draft.labels == 0) if free_only else body & ~mask)
            if wanted:
                draft.paint(name, ball)
                return
        raise Impossible(f"no place for {ml} ml beside the {name}")

    return inject


def ball_of(draft: Draft, center: np.ndarray, ml: float, where: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the ``ml`` of ``where`` that lie nearest to a voxel, within 60 mm; and whether there is that much."""
    squares = sum(
        ((g - c) * s) ** 2
        for g, c, s in zip(np.ogrid[tuple(slice(n) for n in where.shape)], center, draft.spacing, strict=True)
    )
    squares = np.where(where, squares, np.inf).astype(np.float32)
    number = round(ml * 1000 / float(np.prod(draft.spacing)))
    reach = np.partition(squares, number, axis=None)[number]
    return squares <= reach, bool(reach <= 60.0**2)


def island(name: str, host: str | None) -> Kind:
    """A ball of 8 to 15 mm radius of one class inside another, or, without ``host``, 60 mm or more from the class."""

    def inject(draft: Draft) -> None:
        there(draft, name, *([host] if host else []))
        if host:
            mask = draft.mask(host)
            where = mask & (distance(mask, draft.spacing) > 6)
        else:
            where = (draft.labels == 0) & (draft.image > -50) & (distance(~draft.mask(name), draft.spacing) > 60)
        if not where.any():
            raise Impossible(f"no place for an island of {name}")
        ball = draft.ball(draft.pick(where), draft.random.uniform(8, 15))
        draft.paint(name, ball & (draft.mask(host) if host else draft.labels == 0))

    return inject


def slices_of_one(draft: Draft) -> None:
    """One organ loses 10 to 30 mm of slices, not at its ends."""
    name = draft.one_of(ORGANS)
    filled = np.flatnonzero(draft.mask(name).any(axis=(1, 2)))
    thick = max(2, round(draft.random.uniform(10, 30) / draft.spacing[0]))
    start = filled[0] + (len(filled) - thick) * draft.random.uniform(0.25, 0.75)
    z = np.arange(draft.labels.shape[0])[:, None, None]
    draft.erase(name, (z >= start) & (z < start + thick))


def slices_of_all(draft: Draft) -> None:
    """The whole map loses 15 to 30 mm of slices within the liver."""
    filled = np.flatnonzero(draft.mask("liver").any(axis=(1, 2)))
    thick = max(2, round(draft.random.uniform(15, 30) / draft.spacing[0]))
    start = round(draft.random.uniform(filled[0] + 0.3 * len(filled), filled[0] + 0.7 * len(filled)))
    draft.labels[start : start + thick] = 0


def every_other_slice(draft: Draft) -> None:
    """One organ has every other slice only (3 to 5 mm each), as where every other one was drawn."""
    name = draft.one_of(ORGANS)
    z = np.arange(draft.labels.shape[0])[:, None, None]
    draft.erase(name, np.broadcast_to(z % 2 == int(draft.random.integers(2)), draft.labels.shape))


def jagged_slices(draft: Draft) -> None:
    """Each slice of one organ is moved by up to 10 mm in its plane, as by breathing between slices."""
    name = draft.one_of(("liver", "spleen", *KIDNEYS))
    mask = draft.mask(name)
    draft.erase(name)
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        by = np.rint(draft.random.uniform(-10, 10, 2) / draft.spacing[1:]).astype(int)
        draft.labels[z][np.roll(mask[z], tuple(by), (0, 1))] = draft.ids[name]


def random_voxels(draft: Draft) -> None:
    """5 % of the labeled ml get another class at random, voxel by voxel."""
    labeled = np.flatnonzero(draft.labels)
    chosen = draft.random.choice(labeled, len(labeled) // 20, replace=False)
    draft.labels.flat[chosen] = draft.random.choice(list(draft.ids.values()), len(chosen))


def holes(draft: Draft) -> None:
    """5 % of the ml of one organ are holes of single voxels."""
    name = draft.one_of(ORGANS)
    inside = np.flatnonzero(draft.mask(name))
    draft.labels.flat[draft.random.choice(inside, len(inside) // 20, replace=False)] = 0


def round_holes(draft: Draft) -> None:
    """5 % of the ml of the liver are round holes of 4 to 8 mm radius."""
    mask = draft.mask("liver")
    deep, left = mask & (distance(mask, draft.spacing) > 9), mask.sum() // 20
    if not deep.any():
        raise Impossible("no liver that is thick enough")
    places = np.argwhere(deep)
    while left > 0:
        center, radius = places[draft.random.integers(len(places))], draft.random.uniform(4, 8)
        reach = np.ceil(radius / draft.spacing).astype(int)
        low, high = np.maximum(center - reach, 0), np.minimum(center + reach + 1, mask.shape)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        grid = np.ogrid[box]
        squares = (((g - c) * s) ** 2 for g, c, s in zip(grid, center, draft.spacing, strict=True))
        ball = (sum(squares) <= radius**2) & (draft.labels[box] == draft.ids["liver"])
        draft.labels[box][ball] = 0
        left -= int(ball.sum())


def hollow_liver(draft: Draft) -> None:
    """The liver loses 150 ml inside of one lobe, up to 8 mm below its surface."""
    mask = draft.mask("liver")
    deep = mask & (distance(mask, draft.spacing) > 8)
    ball, enough = ball_of(draft, draft.pick(deep), 150, deep)
    if not enough:
        raise Impossible("no liver that is thick enough")
    draft.erase("liver", ball)


def stomach_gas(draft: Draft) -> None:
    """The gas in the stomach (at least 10 ml) is left out."""
    gas = draft.mask("stomach") & (draft.image <= GAS_HU)
    parts = cc3d.connected_components(gas, connectivity=6)
    sizes = np.bincount(parts.ravel())[1:] * float(np.prod(draft.spacing)) / 1000
    if not sizes.size or sizes.max() < 10:
        raise Impossible("less than 10 ml of gas in the stomach")
    draft.erase("stomach", np.isin(parts, np.flatnonzero(sizes >= 1) + 1))


def gallbladder_in_liver(draft: Draft) -> None:
    """The gallbladder is a ball of its ml within the liver, at least 10 mm deep, not where it is."""
    there(draft, "gallbladder", "liver")
    gallbladder, liver = draft.mask("gallbladder"), draft.mask("liver")
    deep = liver & (distance(liver, draft.spacing) > 10) & (distance(~gallbladder, draft.spacing) > 30)
    if not deep.any():
        raise Impossible("no liver that is thick enough")
    draft.erase("gallbladder")
    ml = gallbladder.sum() * float(np.prod(draft.spacing)) / 1000
    draft.paint("gallbladder", ball_of(draft, draft.pick(deep), ml, liver)[0])


def moved(name: str, mm: float) -> Kind:
    """The class lies ``mm`` off in a random direction, over whatever is there."""

    def inject(draft: Draft) -> None:
        there(draft, name)
        direction = draft.random.standard_normal(3)
        draft.move(name, mm * direction / np.linalg.norm(direction))

    return inject


def all_moved(draft: Draft) -> None:
    """The whole label map lies 12 mm off its image, in a random direction."""
    direction = draft.random.standard_normal(3)
    by = np.rint(12 * direction / np.linalg.norm(direction) / draft.spacing).astype(int)
    turned = np.roll(draft.labels, tuple(by), (0, 1, 2))
    for axis, step in enumerate(by):  # what left at one side does not come back at the other
        edge = slice(0, step) if step > 0 else slice(draft.labels.shape[axis] + step, None)
        if step:
            np.moveaxis(turned, axis, 0)[edge] = 0
    draft.labels = turned


def scaled(draft: Draft) -> None:
    """The whole label map is 10 % larger than its image in the plane, as with a wrong spacing in mm."""
    axes = [np.arange(n) for n in draft.labels.shape]
    for axis in (1, 2):
        middle = (draft.labels.shape[axis] - 1) / 2
        axes[axis] = np.rint((axes[axis] - middle) / 1.1 + middle).astype(int)
    draft.labels = np.ascontiguousarray(draft.labels[np.ix_(*axes)])


def blocks(draft: Draft) -> None:
    """The label map was made on blocks of 12 mm."""
    steps = np.maximum(1, np.rint(12 / draft.spacing)).astype(int)
    axes = [np.minimum(np.arange(n) // k * k + k // 2, n - 1) for n, k in zip(draft.labels.shape, steps, strict=True)]
    draft.labels = np.ascontiguousarray(draft.labels[np.ix_(*axes)])


def another_patients(draft: Draft) -> None:
    """The labels are another patient's (0 mm of them right), scaled to the volume."""
    if draft.other is None:
        raise Impossible("no other patient")
    axes = [
        np.linspace(0, m - 1, n).round().astype(int) for n, m in zip(draft.labels.shape, draft.other.shape, strict=True)
    ]
    draft.labels = np.ascontiguousarray(draft.other[np.ix_(*axes)])


def flipped(*axes: int) -> Kind:
    """The label map alone is turned on its axes (z, y, x), so that it lies up to the body's width in mm off."""

    def inject(draft: Draft) -> None:
        draft.labels = np.ascontiguousarray(np.flip(draft.labels, axes))

    return inject


def liver_over_the_dome(draft: Draft) -> None:
    """The uppermost section of the liver goes on upwards for 25 mm, into heart and lung."""
    filled = np.flatnonzero(draft.mask("liver").any(axis=(1, 2)))
    start, steps = int(np.quantile(filled, 0.9)), round(25 / draft.spacing[0])
    end = min(filled[-1] + steps, draft.labels.shape[0])
    if end - filled[-1] < 3:
        raise Impossible("the volume ends at the dome of the liver")
    section = draft.mask("liver")[start]
    for z in range(start, end):
        draft.labels[z][section & (draft.labels[z] == 0)] = draft.ids["liver"]


def aorta_takes_the_cava(draft: Draft) -> None:
    """The upper half (by ml) of the cava is called aorta."""
    part_relabeled("inferior_vena_cava", "aorta", 0, 1, 0.5)(draft)


NAMED: dict[str, Kind] = {
    "kidneys swapped": swapped(*KIDNEYS),
    "adrenals swapped": swapped(*ADRENALS),
    "aorta and cava swapped": swapped("aorta", "inferior_vena_cava"),
    "labels mirrored left to right": flipped(2),
    "labels front to back": flipped(1),
    "labels upside down": flipped(0),
    "island in another organ, 8 to 15 mm": island("spleen", "liver"),
    "island elsewhere, 8 to 15 mm": island("liver", None),
    "slices of one organ missing, 10 to 30 mm": slices_of_one,
    "slices of all missing, 15 to 30 mm": slices_of_all,
    "half a kidney, upper or lower": lambda d: cut(KIDNEYS, 0, int(d.random.choice([-1, 1])), 0.5)(d),
    "half the cava, lower": cut(("inferior_vena_cava",), 0, -1, 0.5),
    "half the cava, upper": cut(("inferior_vena_cava",), 0, 1, 0.5),
    "5 % random voxels": random_voxels,
    "all labels 12 mm off": all_moved,
    "another patient's labels": another_patients,
    "liver dilated 6 mm": dilated("liver", 6),
    "spleen labeled as liver": relabeled("spleen", "liver"),
    "right kidney dilated 6 mm": dilated("right_kidney", 6),
    "left kidney dilated 6 mm": dilated("left_kidney", 6),
    "tail of the pancreas missing, 35 %": cut(("pancreas",), 2, -1, 0.35),
    "left lobe of the liver missing, 20 %": cut(("liver",), 2, -1, 0.2),
    "pancreas 40 mm off": moved("pancreas", 40),
    "stomach leaks 150 ml": leak("stomach", 150),
    "gallbladder a ball in the liver": gallbladder_in_liver,
    "upper half of the esophagus missing": cut(("esophagus",), 0, 1, 0.5),
    "right kidney labeled as liver": relabeled("right_kidney", "liver"),
    "pancreas dilated 6 mm": dilated("pancreas", 6),
    "spleen eroded 6 mm": eroded("spleen", 6),
    "5 % holes of single voxels": holes,
    "liver leaks 100 ml": leak("liver", 100),
    "gas of the stomach left out": stomach_gas,
    "60 % of the right adrenal missing": cut(("right_adrenal_gland",), 0, 1, 0.6),
    "60 % of the left adrenal missing": cut(("left_adrenal_gland",), 0, 1, 0.6),
}
"""The 34 kinds; where one line of the request names two (a pair of organs, both halves), each counts."""

OWN: dict[str, Kind] = {
    "liver eroded 5 mm": eroded("liver", 5),
    "kidney eroded 4 mm": lambda d: eroded(str(d.random.choice(KIDNEYS)), 4)(d),
    "spleen dilated 6 mm": dilated("spleen", 6),
    "aorta dilated 5 mm": dilated("aorta", 5),
    "liver without 15 to 35 %, slanting": slanting_cut("liver", 0.15, 0.35),
    "spleen without 25 to 45 %, slanting": slanting_cut("spleen", 0.25, 0.45),
    "liver hollow, 150 ml": hollow_liver,
    "5 % round holes of 4 to 8 mm": round_holes,
    "spleen left out": left_out("spleen"),
    "pancreas left out": left_out("pancreas"),
    "gallbladder labeled as liver": relabeled("gallbladder", "liver"),
    "upper 30 % of the left kidney labeled as spleen": part_relabeled("left_kidney", "spleen", 0, 1, 0.3),
    "right 30 % of the stomach labeled as pancreas": part_relabeled("stomach", "pancreas", 2, 1, 0.3),
    "upper half of the cava labeled as aorta": aorta_takes_the_cava,
    "spleen leaks 60 ml into anything": leak("spleen", 60, free_only=False),
    "kidney leaks 40 ml": lambda d: leak(str(d.random.choice(KIDNEYS)), 40)(d),
    "liver 25 mm over its dome": liver_over_the_dome,
    "stomach 25 mm off": moved("stomach", 25),
    "labels 10 % too large": scaled,
    "labels in blocks of 12 mm": blocks,
    "every other slice of one organ": every_other_slice,
    "slices jagged by 10 mm": jagged_slices,
}
"""Kinds of our own."""
