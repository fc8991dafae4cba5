"""What the page draws: the chain, curves, strips of dots, thresholds."""

import base64

import pandas as pd
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.tables import TABLES
from labelloop.report.calibration import calibration_of
from labelloop.report.chain import draw_chain
from labelloop.report.charts import Line, curves, strips

GRAPH = [
    {"name": "truth", "title": "truth", "kind": "truth", "parents": []},
    {"name": "teacher", "title": "model teacher", "kind": "model", "parents": ["truth"]},
    {"name": "round1", "title": "labels round1", "kind": "labels", "parents": ["truth", "teacher"]},
]


def test_the_chain_has_a_box_for_each_part_and_an_arrow_for_each_parent():
    drawn = draw_chain(GRAPH)
    assert drawn.count("<rect") == 3
    assert drawn.count('fill="none"') == 3
    assert draw_chain([]) is None


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [float("nan"), 1e-9, 0.0], [-1.3, 0.2, 40.0]])
def test_curves_are_pictures_of_equal_bytes(values):
    lines = [Line("a", "#486581", range(1, len(values) + 1), values)]
    assert curves(lines, "Loss") == curves(lines, "Loss")
    svg = base64.b64decode(curves(lines, "Loss").src.partition(",")[2]).decode()
    assert ">Loss</text>" in svg and "<dc:date>" not in svg


def test_nothing_finite_is_no_chart():
    assert curves([Line("a", "#486581", [1, 2], [float("nan")] * 2)], "Loss") is None
    assert strips([("liver", "#486581", {"m": {}})], "DSC", "%") is None


def test_thousands_of_dots_do_not_swell_a_chart():
    sizes = {
        number: len(strips([("liver", "#486581", {"m": {str(i): i / 100 for i in range(number)}})], "DSC", "%").src)
        for number in (3000, 30000)
    }
    assert sizes[30000] < sizes[3000]


def test_nothing_held_out_is_no_section():
    empty = [pd.DataFrame(columns=list(TABLES[kind])) for kind in ("held_out", "calibration")]
    assert calibration_of(*empty, load_classes("flare")) is None
