"""Annotation: what is known of each class in each case.

``present``: annotated and there. ``absent``: annotated and not there. ``unknown``: nobody looked, or it was not seen
and may lie under voxels that are ignored (:data:`labelloop.base.classes.IGNORED`).
Grouping, losses, fusion, selection and scoring read these states, never "which ids occur in the file".
"""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported by what makes a table: every start of the workflow reads this module
    import pandas as pd

STATES = PRESENT, ABSENT, UNKNOWN = "present", "absent", "unknown"
States = Mapping[str, str]
"""Class name to state, for one case."""


def annotated(states: States) -> tuple[str, ...]:
    """Return the classes somebody looked for, in the order of ``states``."""
    return tuple(name for name, state in states.items() if state != UNKNOWN)


def from_table(table: "pd.DataFrame") -> dict[str, dict[str, str]]:
    """Return ``{case: {class: state}}`` from an annotation (or selected) table."""
    result: dict[str, dict[str, str]] = {}
    for case, name, state in zip(table["case"], table["class"], table["state"], strict=True):
        result.setdefault(case, {})[name] = state
    return result


def to_table(states: Mapping[str, States], classes: Iterable[str]) -> "pd.DataFrame":
    """Return the annotation table of ``{case: {class: state}}``; classes not named are unknown."""
    import pandas as pd

    names = list(classes)
    rows = [(case, name, states[case].get(name, UNKNOWN)) for case, name in product(states, names)]
    return pd.DataFrame(rows, columns=["case", "class", "state"])
