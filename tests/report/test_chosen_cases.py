"""Which test cases the page shows."""

import pandas as pd
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.tables import TABLES
from labelloop.report.scores import Scored, chosen_cases

SCHEME = load_classes("flare")


def _scored(rows: list[tuple[str, str, float, float, float]]) -> Scored:
    table = [(case, name, dsc, dsc, truth, found, found - truth) for case, name, dsc, truth, found in rows]
    return Scored("m", pd.DataFrame(table, columns=list(TABLES["scores"])), SCHEME)


@pytest.mark.parametrize(("count", "words"), [(1, ["best"]), (2, ["best", "worst"]), (3, ["best", "median", "worst"])])
def test_few_cases_are_shown_once(count, words):
    chosen = chosen_cases(_scored([(f"c{i}", "liver", 1 - i / 10, 1.0, 1.0) for i in range(count)]), 12)
    assert [(one.words, one.case) for one in chosen] == [((w,), f"c{i}") for i, w in enumerate(words)]


def test_of_many_cases_extremes_and_tumors_are_shown_and_no_more_than_asked_for():
    rows = [(f"c{i:02d}", "liver", 1 - i / 50, 1.0, 1.0) for i in range(40)]
    rows += [("c07", "tumor", 0.9, 5.0, 5.0), ("c08", "tumor", 0.0, 5.0, 0.0), ("c09", "tumor", 1.0, 0.0, 0.0)]
    chosen = {one.case: one for one in chosen_cases(_scored(rows), 8)}
    assert len(chosen) == 8 and list(chosen) == sorted(chosen)
    words = {case: one.words for case, one in chosen.items() if one.words}
    assert words == {
        "c00": ("best",), "c07": ("tumor scored best",), "c08": ("tumor scored worst",), "c20": ("median",),
        "c39": ("worst",),
    }  # fmt: skip
    assert chosen["c08"].missed == ("tumor",) and not chosen["c07"].missed
