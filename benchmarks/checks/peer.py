"""The anatomy rules written down with NumPy and scipy.ndimage, each as one would write it.

The kinds of rules are those of ``labelloop.labels.rules``; a rule's parameters come from the same class scheme. Masks
are taken in the boxes that ``find_objects`` gives once, as careful users of scipy do; distances are looked for in the
box around both structures. Rules are read one after the other and share nothing else.
"""

import numpy as np
from scipy import ndimage

from labelloop.labels.check import FAIL, NOT_APPLICABLE, PASS, load_rules

FULL = np.ones((3, 3, 3))
FOV_MARGIN_MM = 6.0
DIRECTIONS = {
    "above": (0, 1), "below": (0, -1), "in_front": (1, 1), "behind": (1, -1), "right": (2, 1), "left": (2, -1),
}  # fmt: skip
ENDS = {"top": (0, 1), "bottom": (0, -1), "front": (1, 1), "back": (1, -1), "right_end": (2, 1), "left_end": (2, -1)}


class NotApplicable(Exception):  # noqa: N818 - the rule cannot be applied
    """Raised by a rule that cannot be applied."""


class Map:
    """A label map and the questions that rules ask of it."""

    def __init__(self, labels, geometry, scheme, image):
        self.labels, self.scheme, self.image = labels, scheme, image
        self.spacing, self.voxel_ml = np.array(geometry.spacing_zyx), geometry.voxel_ml
        self.boxes = ndimage.find_objects(labels, max(scheme.ids.values()))

    def there(self, names):
        return [n for n in names if self.boxes[self.scheme.ids[n] - 1] is not None]

    def box(self, names):
        boxes = [self.boxes[self.scheme.ids[n] - 1] for n in self.there([names] if isinstance(names, str) else names)]
        return tuple(slice(min(b[a].start for b in boxes), max(b[a].stop for b in boxes)) for a in range(3))

    def mask(self, names, box=None):
        """Return the mask of one or several classes in their box (or another)."""
        crop = self.labels[box or self.box(names)]
        if isinstance(names, str):
            return crop == self.scheme.ids[names]
        return np.isin(crop, [self.scheme.ids[n] for n in names])

    def ml(self, mask):
        return np.count_nonzero(mask) * self.voxel_ml

    def sides(self, box):
        found = set()
        for axis, name in enumerate("zyx"):
            margin = int(FOV_MARGIN_MM // self.spacing[0]) if axis == 0 else 0
            found |= {f"{name}-"} if box[axis].start <= margin else set()
            found |= {f"{name}+"} if box[axis].stop >= self.labels.shape[axis] - margin else set()
        return found

    def center(self, names, box=None):
        box = box or self.box(names)
        return (np.array(ndimage.center_of_mass(self.mask(names, box))) + [b.start for b in box]) * self.spacing

    def parts(self, names):
        """Return the components of classes, the largest first: numbers, and for each its box, voxels and number."""
        box = self.box(names)
        numbered, _ = ndimage.label(self.mask(names), FULL)
        sizes = np.bincount(numbered.ravel())
        parts = []
        for i, inner in enumerate(ndimage.find_objects(numbered), start=1):
            whole = tuple(slice(a.start + b.start, a.stop + b.start) for a, b in zip(inner, box, strict=True))
            parts.append((whole, int(sizes[i]), i, inner))
        return numbered, sorted(parts, key=lambda part: -part[1])

    def detached(self, parts):
        main, *others = parts
        return [p for p in others if not self.sides(p[0])] if self.sides(main[0]) else others


def annotation(rule, m, name):
    raise NotApplicable


def volume(rule, m, name):
    value, (low, high) = m.ml(m.mask(name)), rule.threshold[name]
    return value, not (0 if m.sides(m.box(name)) else low) <= value <= high


def one_component(rule, m, name):
    _, parts = m.parts(name)
    value = max((voxels for _, voxels, *_ in m.detached(parts)), default=0) * m.voxel_ml
    return value, value >= max(rule.limit(name), 8 * m.voxel_ml)


def joined(rule, m, name):
    members = m.there(rule.classes)
    numbered, parts = m.parts(members)
    own = numbered[m.mask(name, m.box(members))]
    value = max((np.count_nonzero(own == part[2]) for part in m.detached(parts)), default=0) * m.voxel_ml
    return value, value >= max(rule.limit(name), 8 * m.voxel_ml)


def continuous(rule, m, name):
    filled = np.flatnonzero(m.mask(name).any(axis=(1, 2)))
    value = (np.diff(filled).max(initial=1) - 1) * m.spacing[0]
    return value, value > rule.limit(name)


def flat_end(rule, m, name):
    numbered, parts = m.parts(name)
    box, _, number, inner = parts[0]
    main, ends = numbered[inner] == number, []
    for axis, letter in enumerate("zyx"):
        if not {f"{letter}-", f"{letter}+"} & m.sides(box) and main.shape[axis] >= 4:
            profile = main.sum(axis=tuple(a for a in range(3) if a != axis))
            ends += [100 * profile[0] / profile.max(), 100 * profile[-1] / profile.max()]
    if not ends:
        raise NotApplicable
    return max(ends), max(ends) > rule.limit(name)


def extent(rule, m, name):
    value = max((b.stop - b.start) * s for b, s in zip(m.box(name), m.spacing, strict=True))
    return value, value > rule.limit(name)


def overlap(rule, m, name):
    return 0.0, False


def position(rule, m, name):
    of = m.there(rule.of)
    axis, sign = DIRECTIONS[rule.direction]
    points = [(name, rule.point), *((o, rule.of_point) for o in of)]
    cut = [n for n, point in points if point == "center" and m.sides(m.box(n)) & {"z-", "z+"}]
    if axis == 0 and cut and "cut" in rule.exceptions:
        raise NotApplicable
    turned = 1
    if rule.oriented_by and m.center(rule.oriented_by[0])[2] < m.center(rule.oriented_by[1])[2]:
        turned = -1
    if rule.shared_slices:
        a, b = m.box(name), m.box(of)
        z = slice(max(a[0].start, b[0].start), min(a[0].stop, b[0].stop))
        if z.start >= z.stop:
            raise NotApplicable
        first, second = (m.center(n, (z, *box[1:]))[axis] for n, box in ((name, a), (of, b)))
    else:
        first, second = along(m, name, rule.point, axis, turned), along(m, of, rule.of_point, axis, turned)
    value, ends = sign * turned * (first - second), False
    if rule.at_end_mm is not None:
        box, (end_axis, side) = m.box(name), ENDS[rule.point]
        left = m.labels.shape[end_axis] - box[end_axis].stop if side > 0 else box[end_axis].start
        ends = left * m.spacing[end_axis] <= rule.at_end_mm
    return value, value < rule.limit(name) and not ends


def along(m, names, point, axis, turned):
    if point == "center":
        return m.center(names)[axis]
    box = m.box(names)[axis]
    return (box.stop - 1 if ENDS[point][1] * (turned if axis == 2 else 1) > 0 else box.start) * m.spacing[axis]


def near(rule, m, name):
    of = [n for n in m.there(rule.of) if n != name]
    numbered, parts = m.parts(name)
    parts = [part for part in parts if part[1] * m.voxel_ml >= rule.component_ml]
    if len(of) < rule.min_found or not parts:
        raise NotApplicable
    box = m.box([name, *of])
    distances = ndimage.distance_transform_edt(~m.mask(of, box), sampling=m.spacing)
    mine = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(m.box(name), box, strict=True))
    value = max(distances[mine][numbered == part[2]].min() for part in parts)
    return value, value > rule.limit(name)


def inside_abdomen(rule, m, name):
    of = m.there(rule.of)
    if len(of) < rule.min_found:
        raise NotApplicable
    margin, box, abdomen = rule.margin_mm, m.box(of), True
    for axis, (below, above) in enumerate([(margin.below, margin.above)] + [(margin.aside, margin.aside)] * 2):
        places = np.arange(m.box(name)[axis].start, m.box(name)[axis].stop)
        low = box[axis].start - np.ceil(below / m.spacing[axis])
        high = box[axis].stop + np.ceil(above / m.spacing[axis])
        within = ((places >= low) & (places < high)).reshape([-1 if a == axis else 1 for a in range(3)])
        abdomen = abdomen & within
    value = m.ml(m.mask(name) & ~abdomen)
    return value, value > rule.limit(name)


def inside_body(rule, m, name):
    grid = tuple(slice(None, None, max(1, int(4.0 / s))) for s in m.spacing)  # the rule is defined on this grid
    air, _ = ndimage.label(m.image[grid] < -300)
    border = np.unique(np.concatenate([air[:, [0, -1]].ravel(), air[:, :, [0, -1]].ravel()]))
    around = np.isin(air, border[border > 0])
    mask = m.labels[grid] == m.scheme.ids[name]
    if around.mean() <= 0.01 or mask.sum() < 8:
        raise NotApplicable
    value = 100.0 * around[mask].mean()
    return value, value > rule.limit(name)


def values(m, name):
    inside = m.image[m.box(name)][m.mask(name)]
    return inside[:: max(1, inside.size // 200_000)]


def intensity(rule, m, name):
    value, (low, high) = np.median(values(m, name)), rule.threshold[name]
    return value, not low <= value <= high


def tissue(rule, m, name):
    inside = values(m, name)
    value = 100.0 * ((inside >= rule.hu[0]) & (inside <= rule.hu[1])).mean()
    return value, value > rule.limit(name)


def inclusion(rule, m, name):
    grid = tuple(slice(None, None, max(1, int(4.0 / s))) for s in m.spacing)  # the rule is defined on this grid
    image, labels = m.image[grid], m.labels[grid]
    other = (labels == m.scheme.ids[name]) & (image >= rule.hu[0]) & (image <= rule.hu[1])
    value = m.ml(ndimage.binary_erosion(other)) * np.prod([g.step for g in grid])
    return value, value > rule.limit(name)


KINDS = {
    kind.__name__: kind
    for kind in (annotation, volume, one_component, joined, continuous, flat_end, extent, overlap, position, near,
                 inside_abdomen, inside_body, intensity, tissue, inclusion)
}  # fmt: skip


def check(labels, geometry, states, scheme, image, overlap):
    """Return rule, class, value and verdict of every row, as ``labelloop.labels.check.check`` does."""
    m, rows = Map(labels, geometry, scheme, image), []
    for rule in load_rules(scheme):
        for name in rule.classes:
            try:
                if not m.there([name]):
                    raise NotApplicable
                value, failed = KINDS[rule.kind](rule, m, name)
                verdict = FAIL if failed else PASS
            except NotApplicable:
                value, verdict = float("nan"), NOT_APPLICABLE
            rows.append({"rule": rule.name, "class": name, "value": float(value), "verdict": verdict})
    return rows
