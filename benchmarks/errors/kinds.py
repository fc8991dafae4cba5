"""Kinds of errors for expert labels of real scans: one error a label map, sizes in mm and ml.

``NAMED`` are the kinds of which it was asked whether the rules catch them, ``OWN`` are added here, as networks,
annotators and converters make them. What a kind is, and most of them, stand in ``labelloop.labels.corrupt``; here are
those of organs by name. None knows a rule of ``config/classes``.
"""

import cc3d
import numpy as np

from labelloop.labels.corrupt import (
    all_moved,
    another_patients,
    blocks,
    cut,
    dilated,
    eroded,
    every_other_slice,
    flipped,
    holes,
    island,
    jagged_slices,
    leak,
    left_out,
    moved,
    part_relabeled,
    random_voxels,
    relabeled,
    scaled,
    slanting_cut,
    slices_lost,
    swapped,
)
from labelloop.labels.draft import Draft, Impossible, Kind, ball_of, box_around, distance, squared_mm, there

KIDNEYS = ("right_kidney", "left_kidney")
ADRENALS = ("right_adrenal_gland", "left_adrenal_gland")
ORGANS = ("liver", "spleen", "right_kidney", "left_kidney", "stomach", "pancreas", "aorta", "inferior_vena_cava")
GAS_HU = -120
"""Gas in BTCV's images, which are cut off at -125 HU; smoothed fat is brighter."""


def slices_of_all(draft: Draft) -> None:
    """The whole map loses 15 to 30 mm of slices within the liver, where a window or a block of them was not done."""
    filled = np.flatnonzero(draft.mask("liver").any(axis=(1, 2)))
    thick = max(2, round(draft.random.uniform(15, 30) / draft.spacing[0]))
    start = round(draft.random.uniform(filled[0] + 0.3 * len(filled), filled[0] + 0.7 * len(filled)))
    draft.labels[start : start + thick] = 0


def round_holes(draft: Draft) -> None:
    """5 % of the ml of the liver are round holes of 4 to 8 mm radius."""
    mask = draft.mask("liver")
    deep, left = mask & (distance(mask, draft.spacing) > 9), mask.sum() // 20
    if not deep.any():
        raise Impossible("no liver that is thick enough")
    places = np.argwhere(deep)
    while left > 0:
        center, radius = places[draft.random.integers(len(places))], draft.random.uniform(4, 8)
        box = box_around(center, radius, draft.spacing, mask.shape)
        ball = (squared_mm(box, center, draft.spacing) <= radius**2) & (draft.labels[box] == draft.ids["liver"])
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
    "slices of one organ missing, 10 to 30 mm": slices_lost(ORGANS),
    "slices of all missing, 15 to 30 mm": slices_of_all,
    "half a kidney, upper or lower": lambda d: cut(KIDNEYS, 0, int(d.random.choice([-1, 1])), 0.5)(d),
    "half the cava, lower": cut(("inferior_vena_cava",), 0, -1, 0.5),
    "half the cava, upper": cut(("inferior_vena_cava",), 0, 1, 0.5),
    "5 % random voxels": random_voxels,
    "all labels 12 mm off": all_moved(12),
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
    "5 % holes of single voxels": holes(ORGANS),
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
    "labels 10 % too large": scaled(1.1),
    "labels in blocks of 12 mm": blocks(12),
    "every other slice of one organ": every_other_slice(ORGANS),
    "slices jagged by 10 mm": jagged_slices(("liver", "spleen", *KIDNEYS)),
}
"""Kinds of our own."""
