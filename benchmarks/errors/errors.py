"""Single known errors to put into a complete label map, as careless annotators, networks and converters make them.

Every error is a function (labels, image, spacing, ids, random) -> labels, on canonical arrays [z, y, x]; lengths in mm.
None is drawn with a rule of ``config/classes`` in mind: sizes, places and directions are random. Wrong orientation is a
stored array turned against its header, so the image is turned with it.
"""

import numpy as np
from kinds import slices_of_all
from scipy import ndimage

from labelloop.labels.corrupt import slices_lost, swapped
from labelloop.labels.draft import Draft, Kind

SOLID = ("liver", "spleen", "right_kidney", "left_kidney", "stomach", "pancreas")
TUBES = ("aorta", "inferior_vena_cava", "esophagus")
HALVED = (*SOLID, *TUBES, "gallbladder", "duodenum")


def island(of: str, inside: str) -> Kind:
    def inject(draft: Draft) -> None:
        radius = draft.random.uniform(8, 15)
        host = draft.mask(inside)
        draft.paint(of, draft.ball(draft.pick(ndimage.binary_erosion(host)), radius) & host)

    return inject


def half_an_organ(draft: Draft) -> None:
    """Lose what lies beyond a plane through the middle half of one organ, on one of the three axes."""
    name, axis = draft.one_of(HALVED), int(draft.random.integers(3))
    if name in TUBES:
        axis = 0
    places = np.argwhere(draft.mask(name))[:, axis]
    plane = np.quantile(places, draft.random.uniform(0.35, 0.65))
    grid = np.ogrid[tuple(slice(n) for n in draft.labels.shape)][axis]
    draft.erase(name, grid > plane if draft.random.random() < 0.5 else grid < plane)


def shifted_pancreas(draft: Draft) -> None:
    """Move the pancreas by 50 to 100 mm in a random direction."""
    direction = draft.random.standard_normal(3)
    draft.move("pancreas", draft.random.uniform(50, 100) * direction / np.linalg.norm(direction))


def tumor_in_the_lung(draft: Draft) -> None:
    lung = (draft.image < -600) & (draft.image > -950)
    top = np.flatnonzero(draft.mask("liver").any(axis=(1, 2))).max()
    lung[: max(0, top - round(40 / draft.spacing[0]))] = False
    lung = ndimage.binary_opening(lung, iterations=2)
    draft.paint("tumor", draft.ball(draft.pick(lung), draft.random.uniform(8, 20)) & (draft.image < -300))


def tumor_in_the_air(draft: Draft) -> None:
    """A false finding outside of the patient."""
    air = ndimage.binary_erosion((draft.image < -900) & (draft.labels == 0), iterations=2)
    air[:, :, 10:-10] = False
    draft.paint("tumor", draft.ball(draft.pick(air), draft.random.uniform(8, 15)) & (draft.image < -300))


def duodenum_above_the_liver(draft: Draft) -> None:
    """Move the duodenum up until most of it lies above the dome of the liver."""
    top = np.flatnonzero(draft.mask("liver").any(axis=(1, 2))).max()
    middle = np.median(np.argwhere(draft.mask("duodenum"))[:, 0])
    draft.move("duodenum", ((top - middle) * draft.spacing[0] + draft.random.uniform(0, 30), 0, 0))


def merged(*pair: str) -> Kind:
    """One of two organs, which is drawn, takes all of the other."""

    def inject(draft: Draft) -> None:
        first, second = draft.random.permutation(pair)
        draft.paint(first, draft.mask(second))

    return inject


def leaked_stomach(draft: Draft) -> None:
    """The stomach pours out at a point of its surface into all that is near: 40 to 70 mm around."""
    mask = draft.mask("stomach")
    edge = mask & ~ndimage.binary_erosion(mask)
    draft.paint("stomach", draft.ball(draft.pick(edge), draft.random.uniform(40, 70)))


def leaked_liver(draft: Draft) -> None:
    """The liver pours out at its underside into bowel, fat and muscle that carry no label: 40 to 60 mm around."""
    mask = draft.mask("liver")
    edge = mask & ~ndimage.binary_erosion(mask)
    edge[np.argwhere(mask)[:, 0].mean().astype(int) :] = False
    spill = draft.ball(draft.pick(edge), draft.random.uniform(40, 60)) & (draft.labels == 0) & (draft.image > -300)
    draft.paint("liver", spill)


def wrong_orientation(draft: Draft) -> None:
    """Labels and image are turned against their header: one axis reversed, or two axes exchanged."""
    turns = [lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a[:, :, ::-1], lambda a: a[:, ::-1, ::-1],
             lambda a: a[::-1, :, ::-1]]  # fmt: skip
    turn = turns[draft.random.integers(len(turns))]
    draft.labels, draft.image = (np.ascontiguousarray(turn(a)) for a in (draft.labels, draft.image))


def labels_turned_alone(draft: Draft) -> None:
    """Only the label map is turned against its header: it does not lie on the image anymore."""
    axis = int(draft.random.integers(3))
    draft.labels = np.ascontiguousarray(np.flip(draft.labels, axis))


def adrenal_on_its_kidneys_lower_pole(draft: Draft) -> None:
    side = str(draft.random.choice(["right", "left"]))
    kidney, gland = (np.argwhere(draft.mask(f"{side}_{n}"))[:, 0] for n in ("kidney", "adrenal_gland"))
    draft.move(f"{side}_adrenal_gland", ((kidney.min() - gland.mean()) * draft.spacing[0], 0, 0))


def spleen_below_the_kidneys(draft: Draft) -> None:
    low = min(np.argwhere(draft.mask(name))[:, 0].min() for name in ("right_kidney", "left_kidney"))
    top = np.argwhere(draft.mask("spleen"))[:, 0]
    draft.move("spleen", ((low - top.mean()) * draft.spacing[0] - draft.random.uniform(5, 20), 0, 0))


def detached_gallbladder(draft: Draft) -> None:
    """A loop of bowel or nothing at all is called gallbladder, 60 to 120 mm below it."""
    draft.move("gallbladder", (-draft.random.uniform(60, 120), 0, 0))


def left_out(draft: Draft) -> None:
    """An organ that is there is left out."""
    draft.erase(draft.one_of([name for name in draft.ids if name != "tumor"]))


ERRORS: dict[str, Kind] = {
    "swapped kidneys": swapped("right_kidney", "left_kidney"),
    "swapped adrenals": swapped("right_adrenal_gland", "left_adrenal_gland"),
    "aorta and cava swapped": swapped("aorta", "inferior_vena_cava"),
    "liver and spleen swapped": swapped("liver", "spleen"),
    "liver island in the spleen": island("liver", "spleen"),
    "spleen island in the liver": island("spleen", "liver"),
    "missing slice range of one organ": slices_lost((*SOLID, *TUBES, "duodenum")),
    "missing slice range of all": slices_of_all,
    "half an organ": half_an_organ,
    "shifted pancreas": shifted_pancreas,
    "tumor in the lung": tumor_in_the_lung,
    "tumor in the air": tumor_in_the_air,
    "duodenum above the liver": duodenum_above_the_liver,
    "merged adrenals": merged("right_adrenal_gland", "left_adrenal_gland"),
    "merged kidneys": merged("right_kidney", "left_kidney"),
    "leaked stomach": leaked_stomach,
    "leaked liver": leaked_liver,
    "wrong orientation": wrong_orientation,
    "labels turned, image not": labels_turned_alone,
    "adrenal at the lower pole": adrenal_on_its_kidneys_lower_pole,
    "spleen below the kidneys": spleen_below_the_kidneys,
    "gallbladder far too low": detached_gallbladder,
    "organ left out": left_out,
}
