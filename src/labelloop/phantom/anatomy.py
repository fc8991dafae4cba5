"""The atlas: where every organ of the synthetic abdomen lies, drawn anew for each patient.

Atlas coordinates are RAS mm around a point in front of the spine at the height of the kidneys' centers. Positions
and volumes follow adult anatomy (centroids of the BTCV label sets were used as a sanity check).
"""

from dataclasses import dataclass

import numpy as np

from labelloop.phantom.shapes import Ellipsoid, Points, Shape, Tube, Union, Without, smooth_tube, turn

VOLUMES_ML = {  # mean, deviation, low, high of the volume that a patient's organ is grown or shrunk to
    "liver": (1480, 200, 1090, 1880),
    "spleen": (205, 50, 120, 320),
    "right_kidney": (155, 20, 123, 203),
    "left_kidney": (160, 20, 123, 203),
    "pancreas": (80, 12, 60, 108),
    "aorta": (88, 14, 68, 136),
    "inferior_vena_cava": (75, 11, 50, 108),
    "right_adrenal_gland": (4.9, 0.6, 3.9, 6.5),
    "left_adrenal_gland": (5.2, 0.6, 3.9, 6.7),
    "gallbladder": (32, 9, 20, 52),
    "esophagus": (25, 4, 19, 42),
    "stomach": (300, 60, 190, 450),
    "duodenum": (66, 9, 48, 90),
}


@dataclass(frozen=True)
class Structure:
    """One thing to paint: a solid, the tissue of its core, and of its rind if it has one.

    Attributes:
        name: what it is; organs by class name.
        core, rind, rind_mm: tissue names, and the thickness of the rind ("" and 0: none).
        gas, level_mm: tissue of the contents above a height (patients lie on their back: y), "" for none.
        inside: it stays within the abdominal wall and below the diaphragm.
        grow: distance (mm) at which the solid ends: > 0 makes it fatter, < 0 thinner.
    """

    name: str
    shape: Shape
    core: str
    rind: str = ""
    rind_mm: float = 0.0
    gas: str = ""
    level_mm: float = 0.0
    inside: bool = False
    grow: float = 0.0


@dataclass(frozen=True)
class Wall:
    """The body's wall: half axes of the abdominal cavity, thickness of muscle and fat (mm), heights of the domes."""

    half_x: float
    half_y: float
    muscle_mm: float
    fat_mm: float
    dome_right: float
    dome_left: float

    CENTER_Y = 6.0
    SKIN_MM = 2.5

    def outward(self, points: Points) -> np.ndarray:
        """Distance (mm) outwards of the cavity's lateral surface, a superellipse of exponent 2.4."""
        x, y, _ = points
        y = y - np.float32(self.CENTER_Y)
        rho = (np.abs(x / np.float32(self.half_x)) ** 2.4 + np.abs(y / np.float32(self.half_y)) ** 2.4) ** (1 / 2.4)
        return np.hypot(x, y) * (1 - 1 / np.maximum(rho, np.float32(1e-3)))

    def above_dome(self, points: Points) -> np.ndarray:
        """Height (mm) over the diaphragm: a dome over the liver, a lower one on the left, the heart's bed between."""
        x, y, z = points
        right = self.dome_right - 72 * (((x - 66) / 74) ** 2 + ((y - 8) / 88) ** 2)
        left = self.dome_left - 72 * (((x + 74) / 76) ** 2 + ((y + 6) / 92) ** 2)
        middle = self.dome_left - 12 - 72 * ((x / 70) ** 2 + ((y - 40) / 84) ** 2)
        return z - np.maximum(np.maximum(np.maximum(right, left), middle), np.float32(-40))

    @property
    def outer(self) -> tuple[float, float]:
        """Half axes (mm) of the skin."""
        thick = self.muscle_mm + self.fat_mm + self.SKIN_MM
        return self.half_x + thick, self.half_y + thick


def draw_wall(rng: np.random.Generator) -> Wall:
    """Draw slim to stout walls."""
    return Wall(
        half_x=126 + rng.normal(0, 3),
        half_y=86 + rng.normal(0, 3),
        muscle_mm=rng.uniform(9, 13),
        fat_mm=rng.uniform(8, 24),
        dome_right=114 + rng.normal(0, 3),
        dome_left=106 + rng.normal(0, 3),
    )


def by(x: float, y: float, z: float) -> np.ndarray:
    """Return a step in mm."""
    return np.array([x, y, z], float)


class Jitter:
    """Small random shifts, so that organs also move against each other."""

    def __init__(self, rng: np.random.Generator, size: float):
        self.rng, self.size = rng, size

    def __call__(self, *place: float, mm: float = 2.0) -> np.ndarray:
        return np.array(place, float) + np.clip(self.rng.standard_normal(3), -2, 2) * mm * self.size

    def angle(self, degrees: float) -> float:
        """Return an angle around 0."""
        return float(np.clip(self.rng.standard_normal(), -2, 2) * degrees * self.size)


def kidney_with_adrenal(move: Jitter, side: int) -> tuple[Shape, Shape]:
    """Return a bean with its sinus, upper pole towards the spine, and the three-limbed gland on that pole.

    ``side`` is 1 for the patient's right, -1 for the left.
    """
    center = move(62, -24, -5, mm=3) if side > 0 else move(-68, -27, 4, mm=3)
    turned = turn(x=12 + move.angle(4), y=-side * (13 + move.angle(4)))
    bean = Ellipsoid(center, (28, 24.5, 53), turned)
    sinus = Ellipsoid(center + turned @ np.array([-side * 26.0, 9, 0]), (18, 9, 19), turned)
    pole = center + turned @ np.array([-side * 15.0, 8, 40])
    top = pole + by(-side * 8, 6, 12)
    ends = [pole + by(side * 3, -3, -3), pole + by(-side * 14, -5, -2), top + by(-side * 4, 8, 6)]
    limbs = [Tube(np.array([top, end]), np.array([4.6, 3.6])) for end in ends]
    return Without(bean, sinus), Union(tuple(limbs), 2.0)


def upper_gut(move: Jitter) -> dict[str, Shape]:
    """Return esophagus, stomach and duodenum: they share cardia and pylorus, so they stay connected."""
    cardia, pylorus = move(-38, 16, 84), move(27, 47, 29)
    esophagus = smooth_tube(
        np.array([[-4, 4, 215], [-6, 6, 160], move(-12, 9, 122), move(-24, 13, 98), cardia, cardia + by(-14, 0, -4)]),
        [9, 9, 9, 9, 9, 8],
    )
    body = smooth_tube(
        np.array([cardia + by(-24, -4, 2), move(-64, 26, 62), move(-50, 50, 36), move(-16, 60, 20), pylorus]),
        [29, 31, 27, 20, 15],
    )
    fundus = Ellipsoid(move(-64, 4, 84), (34, 33, 31), turn(z=20))
    descending = move(50, 24, 0)
    duodenum = smooth_tube(
        np.array([
            pylorus + by(-7, 0, 0), pylorus + by(14, -5, 3), descending + by(-4, 6, 20), descending,
            descending + by(-4, -7, -28),
            move(22, 18, -40), move(-8, 25, -38), move(-27, 27, -20), move(-35, 32, -2),
        ]),
        [11, 12, 11, 10.5, 10.5, 10, 9, 9, 9],
    )  # fmt: skip
    return {"esophagus": esophagus, "stomach": Union((body, fundus), 18.0), "duodenum": duodenum}


def organ_shapes(rng: np.random.Generator, variation: float) -> dict[str, Shape]:
    """Draw the 13 organs of one patient; ``variation`` scales how much they move (1 normal)."""
    move = Jitter(rng, variation)
    right_kidney, right_adrenal = kidney_with_adrenal(move, 1)
    left_kidney, left_adrenal = kidney_with_adrenal(move, -1)
    spleen_at = move(-99, -26, 62, mm=4)
    lie = turn(x=30 + move.angle(6), y=12 + move.angle(5), z=14 + move.angle(5))
    spleen = Without(
        Ellipsoid(spleen_at, (35, 49, 60), lie), Ellipsoid(spleen_at + by(44, 14, -4), (27, 32, 42), turn(x=30))
    )
    right_lobe = Ellipsoid(move(70, 10, 46, mm=3), (68, 80, 76), turn(y=8 + move.angle(4)))
    left_lobe = Ellipsoid(move(-2, 58, 70, mm=4), (70, 38, 36), turn(y=-14 + move.angle(6)))
    lower_tip = Ellipsoid(move(98, 4, 0, mm=5), (30, 54, 42), turn())
    gallbladder_at = move(58, 60, 11, mm=4)
    pancreas = smooth_tube(
        np.array([
            move(34, 22, -4), move(31, 27, 12), move(10, 34, 22), move(-20, 32, 32, mm=3), move(-46, 13, 41, mm=3),
            spleen_at + by(27, 8, -10),
        ]),
        [13, 15, 11, 11, 11, 8],
    )  # fmt: skip
    aorta = [[-17, -14, 215], [-17, -11, 130], move(-13, -2, 60), move(-11, 1, 0), move(-8, 2, -66)]
    cava = [move(13, 4, -70), move(17, 8, -10), move(19, 12, 40), move(21, 16, 85), [18, 26, 118], [10, 34, 150]]
    return {
        "aorta": smooth_tube(np.array(aorta), [13, 12, 11, 10.5, 9.5]),
        "inferior_vena_cava": smooth_tube(np.array(cava), [9.5, 9.5, 10.5, 11.5, 12, 13]),
        "right_adrenal_gland": right_adrenal,
        "left_adrenal_gland": left_adrenal,
        "gallbladder": Ellipsoid(gallbladder_at, (14, 19, 27), turn(x=-35 + move.angle(10), y=15)),
        **upper_gut(move),
        "right_kidney": right_kidney,
        "left_kidney": left_kidney,
        "pancreas": pancreas,
        "spleen": spleen,
        "liver": Union((right_lobe, left_lobe, lower_tip), 26.0),
    }


PAINT = {  # core, rind, thickness of the rind in mm, gas, stays inside the cavity
    "aorta": ("aorta", "", 0, "", False),
    "inferior_vena_cava": ("inferior_vena_cava", "", 0, "", False),
    "esophagus": ("esophagus", "", 0, "", False),
    "right_kidney": ("right_kidney_medulla", "right_kidney_cortex", 7, "", True),
    "left_kidney": ("left_kidney_medulla", "left_kidney_cortex", 7, "", True),
    "stomach": ("stomach_fluid", "stomach_wall", 4, "stomach_gas", True),
    "duodenum": ("duodenum_fluid", "duodenum_wall", 3.5, "", True),
}
# Who keeps a voxel that two solids claim: the earlier. Tumors come after FIRST; so they cannot cut the thin organs.
FIRST = (
    "aorta", "inferior_vena_cava", "right_adrenal_gland", "left_adrenal_gland", "gallbladder", "esophagus", "duodenum",
)  # fmt: skip
THEN = ("right_kidney", "left_kidney", "pancreas", "stomach", "spleen", "liver")


def organ(name: str, shape: Shape, gas_level_mm: float) -> Structure:
    """Return the structure of an organ."""
    core, rind, thick, gas, inside = PAINT.get(name, (name, "", 0, "", True))
    return Structure(name, shape, core, rind, thick, gas, gas_level_mm, inside)


def _line(shape: Shape) -> np.ndarray:
    if not isinstance(shape, Tube):
        raise TypeError(f"only a tube has a line, not a {type(shape).__name__}")
    return shape.line


def surroundings(rng: np.random.Generator, shapes: dict[str, Shape]) -> tuple[Structure, ...]:
    """Draw what is no class but looks like one: vessels, bowel, muscles, heart."""
    move = Jitter(rng, 1.0)
    pancreas = _line(shapes["pancreas"])
    level = float(rng.uniform(45, 60))

    def vessel(name: str, core: str, radii: list[float], *knots) -> Structure:
        return Structure(name, smooth_tube(np.array(knots), radii), core)

    vessels = [
        vessel("portal_vein", "vein", [6, 6.5, 6], [6, 27, 12], [16, 27, 32], [36, 34, 56]),
        vessel("mesenteric_vein", "vein", [5, 5.5, 6], [4, 36, -80], [5, 33, -30], [6, 27, 12]),
        vessel("mesenteric_artery", "artery", [4, 3.5, 3], [-11, 8, 24], [-7, 26, 0], [-6, 34, -80]),
        vessel("celiac_artery", "artery", [4, 3.5], [-12, 4, 42], [-8, 26, 44]),
        vessel("right_renal_vein", "vein", [4, 4], [17, 8, -6], [46, -14, -6]),
        vessel("left_renal_vein", "vein", [4, 4, 4], [14, 10, 2], [-16, 16, 4], [-52, -18, 2]),
        vessel("renal_artery", "artery", [3, 3], [-14, 0, 2], [-52, -22, 0]),
        vessel("iliac_right", "artery", [7, 6], [-8, 2, -66], [22, -4, -130]),
        vessel("iliac_left", "artery", [7, 6], [-8, 2, -66], [-38, -4, -130]),
        vessel("iliac_vein", "vein", [8, 8], [13, 2, -72], [40, -8, -130]),
        Structure("splenic_vein", Tube(pancreas[8:] + by(0, -11, 2), np.full(len(pancreas) - 8, 4.0)), "vein"),
    ]
    colon = {
        "ascending": ([105, 8, -140], [106, 10, -70], [98, 22, -34], [80, 40, -30]),
        "transverse": ([80, 40, -30], [50, 72, -42], [0, 82, -52], [-50, 74, -30], [-88, 46, 10], [-102, 18, 22]),
        "descending": ([-102, 18, 22], [-112, -12, -20], [-112, -8, -80], [-106, 0, -140]),
    }
    bowel = [
        Structure(f"colon_{n}", smooth_tube(np.array([move(*p, mm=4) for p in knots]), [19] * len(knots)),
                  "stool", "bowel_wall", 3, "gas", level + 14, True)
        for n, knots in colon.items()
    ]  # fmt: skip
    for loop in range(12):
        start = np.array([rng.uniform(-85, 80), rng.uniform(10, 76), rng.uniform(-125, -36)])
        knots = start + np.cumsum(rng.normal(0, [24, 12, 14], (6, 3)), axis=0)
        knots = np.clip(knots, [-88, 8, -140], [82, 78, -30])
        if loop == 0:  # the jejunum goes on where the duodenum ends
            knots = np.concatenate([_line(shapes["duodenum"])[-1:] + by(-4, 4, -4), knots])
        tube = smooth_tube(knots, [float(rng.uniform(10, 13))] * len(knots))
        bowel.append(Structure(f"small_bowel_{loop}", tube, "bowel_fluid", "bowel_wall", 3.5, "gas", 74, True))
    muscles = [
        Structure(f"psoas_{side}", smooth_tube(np.array([[side * 26, -34, 30], [side * 38, -26, -40],
                  [side * 52, -12, -140]]), [9, 19, 26]), "muscle") for side in (1, -1)
    ] + [
        Structure(f"paraspinal_{side}", Tube(np.array([[side * 30.0, -74, 230], [side * 32.0, -74, -150]]),
                                             np.array([18.0, 25.0])), "muscle") for side in (1, -1)
    ]  # fmt: skip
    crura = [
        Structure(f"crus_{side}", smooth_tube(np.array([[side * 13, -12, -20], [side * 19 - 6, -8, 40],
                  [side * 24 - 10, 8, 92]]), [4, 5, 6]), "muscle") for side in (1, -1)
    ]  # fmt: skip
    heart = Structure("heart", Ellipsoid(move(-22, 48, 158, mm=3), (60, 50, 44), turn(z=-25)), "heart")
    return (heart, *vessels, *bowel, *muscles, *crura)


def liver_vessels(rng: np.random.Generator) -> Shape:
    """Draw the portal and hepatic veins inside the liver, as one solid."""
    move = Jitter(rng, 2.0)
    lines = (
        [[36, 34, 56], move(70, 20, 52), move(105, 8, 40)],
        [[36, 34, 56], move(72, 38, 40), move(92, 44, 16)],
        [[30, 34, 56], move(8, 52, 66), move(-20, 60, 72)],
        [[20, 20, 96], move(60, 6, 84), move(98, -8, 62)],
        [[20, 20, 96], move(44, 44, 82), move(60, 62, 58)],
        [[18, 22, 96], move(4, 50, 86), move(-14, 62, 76)],
    )
    return Union(tuple(smooth_tube(np.array(line), [5, 4, 2.5], parts=3) for line in lines))


def spine(codes: np.ndarray, points: Points, code: dict[str, int]) -> None:
    """Paint vertebrae (one every 34 mm) with discs, canal, arches and processes, in place."""
    x, y, z = points
    level = np.mod(z + 7, np.float32(34))
    body = np.sqrt((x / 23) ** 2 + ((y + 33) / 17) ** 2)
    canal = np.hypot(x / 10, (y + 58) / 8)
    ring = (canal < 1.55) & (level > 8)
    spinous = (np.abs(x) < 4) & (y < -68) & (y > -94) & (level > 12) & (level < 30)
    transverse = (np.abs(y + 54) < 5) & (np.abs(x) < 38) & (level > 16) & (level < 25)
    for where, name in (
        (canal < 1, "spinal_canal"),
        ((body < 1) & (level < 7), "disc"),
        (body < 0.88, "marrow"),
        ((body < 1) | ring | spinous | transverse, "compact_bone"),
    ):
        codes[where & (codes == 0)] = code[name]


def envelope(codes: np.ndarray, points: Points, wall: Wall, texture: np.ndarray, code: dict[str, int]) -> None:
    """Paint what is left: lungs, mediastinum, diaphragm, visceral fat, ribs, muscle wall, fat, skin, table."""
    x, y, z = points
    out = wall.outward(points)
    above = wall.above_dome(points)
    middle = ((x + 4) / 34) ** 2 + ((y - 14) / 74) ** 2 < 1
    slope = z + 0.55 * (y - wall.CENTER_Y)  # ribs run downwards to the front, up to the costal arch
    rib = (np.abs(np.mod(slope, np.float32(29)) - 14) < 5.5) & (out > 1) & (out < 8) & (z > 0.75 * y - 18)
    muscle = wall.muscle_mm
    fat_end = muscle + wall.fat_mm
    left = codes == 0
    table = np.abs(np.hypot(x, y - 250) - (wall.outer[1] + 250 - wall.CENTER_Y + 6)) < 4
    for where, name in (
        ((out < 0) & (above > 4) & ~middle, "lung"),
        ((out < 0) & (above > 0) & (above <= 4), "muscle"),
        (out < 0, "fat"),
        (rib, "compact_bone"),
        (out < muscle + 1.5 * texture, "muscle"),
        (out < fat_end, "fat"),
        (out < fat_end + wall.SKIN_MM, "skin"),
        (table & (y < 0), "table"),
    ):
        codes[where & left] = code[name]
        left &= ~where
