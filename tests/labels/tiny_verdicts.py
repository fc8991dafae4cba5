"""Verdicts on the clean abdomen of ``conftest``, what is in them, and errors to put into its labels."""

import numpy as np

from labelloop.labels.check import check

RIGHT, LEFT = "right_kidney", "left_kidney"


def failing(rows):
    return {(row["class"], row["rule"]) for row in rows if row["verdict"] == "fail"}


def broken(rows):
    """Return the classes and rules that fail or are doubted."""
    return {(row["class"], row["rule"]) for row in rows if row["verdict"] in ("fail", "doubt")}


def verdict(rows, name, rule):
    return next(row for row in rows if (row["class"], row["rule"]) == (name, rule))


def verdicts(anatomy, scheme, states=None, **arguments):
    arguments.setdefault("image", anatomy.image)
    return check(anatomy.labels, anatomy.geometry, states or {}, scheme, **arguments)


def reasons(rows, name, verdict="not_applicable"):
    return {r["reason"] for r in rows if r["class"] == name and r["verdict"] == verdict}


def move(anatomy, name, by):
    """Move a class by (z, y, x) voxels, over whatever lies there."""
    mask = anatomy.labels == anatomy.ids[name]
    anatomy.labels[mask] = 0
    moved = tuple(index + shift for index, shift in zip(np.nonzero(mask), by, strict=True))
    anatomy.labels[moved] = anatomy.ids[name]


def erase(anatomy, name, where):
    region = anatomy.labels[where]
    region[region == anatomy.ids[name]] = 0


def paint(anatomy, name, mask):
    anatomy.labels[mask] = anatomy.ids[name]


def shrink(anatomy, name, mask):
    """Put a class into ``mask``, in the image too, and fat where it was."""
    before = anatomy.labels == anatomy.ids[name]
    hu = np.median(anatomy.image[before])
    anatomy.labels[before], anatomy.image[before] = 0, -90
    anatomy.labels[mask], anatomy.image[mask] = anatomy.ids[name], hu


def swap(anatomy, one, other):
    a, b = anatomy.labels == anatomy.ids[one], anatomy.labels == anatomy.ids[other]
    anatomy.labels[a], anatomy.labels[b] = anatomy.ids[other], anatomy.ids[one]


def mirror(anatomy):
    anatomy.labels, anatomy.image = anatomy.labels[:, :, ::-1].copy(), anatomy.image[:, :, ::-1].copy()


def upside_down(anatomy):
    anatomy.labels, anatomy.image = anatomy.labels[::-1].copy(), anatomy.image[::-1].copy()


def front_to_back(anatomy):
    anatomy.labels, anatomy.image = anatomy.labels[:, ::-1].copy(), anatomy.image[:, ::-1].copy()
