"""Kinds of anatomy rules: each is a model of its parameters and a small function from a label map to a finding."""

from labelloop.labels.rules import border, image, place, shape
from labelloop.labels.rules.base import KINDS, RENAMED, Evidence, Finding, Limit, Range, Rule, Skip

__all__ = [
    "KINDS", "RENAMED", "Evidence", "Finding", "Limit", "Range", "Rule", "Skip", "border", "image", "place", "shape",
]  # fmt: skip
