"""A small version of ``benchmarks/errors``: one phantom with each of the first ten kinds of error, ten without."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from labelloop.base.classes import load_classes

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "errors" / "run.py"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("errors_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, benchmark)
        patch.setattr(sys, "path", list(sys.path))
        spec.loader.exec_module(benchmark)
        benchmark.CACHE = tmp_path_factory.mktemp("phantoms")
        yield benchmark


@pytest.fixture(scope="module")
def tally(benchmark):
    return benchmark.run(10, first=506)


def test_errors_are_found(tally):
    assert tally.tried.total() == len(tally.tried) == 10
    assert tally.recall >= 0.9, tally.missed


def test_maps_without_errors_pass(tally):
    assert tally.rows >= 10 * 13
    assert tally.false_alarms <= 0.02, tally.alarm_reasons


def test_every_kind_of_error_for_real_scans_alters_the_map_and_is_drawn_alike_again(benchmark, monkeypatch):
    """On a phantom of 3 mm: what it is about to alter is altered, or the reason is given why it cannot be."""
    real, scheme = benchmark.real, load_classes("flare")
    monkeypatch.setattr(real, "check", lambda *arguments, **named: [])  # what the rules say does not matter here
    scans = {name: benchmark.phantom(number, 3.0) for name, number in (("a", 506), ("b", 507))}
    before = scans["a"][0].copy()
    of = real.Collection("phantoms", ["a"], scans.get, {"a": lambda: scans["b"][0]}, ["organs"], ["a"])
    kinds = {real.UNALTERED: None} | real.NAMED | real.OWN
    found = [list(real.outcomes_of("a", of, kinds, scheme)) for _ in range(2)]
    assert found[0] == found[1]
    assert np.array_equal(scans["a"][0], before)
    assert [o.kind for o in found[0] if not o.altered and not o.impossible] == [real.UNALTERED]
    assert len(real.NAMED) == 34 and len(real.OWN) >= 10
    assert sum(bool(o.impossible) for o in found[0]) <= 4


def test_a_row_that_was_broken_before_the_error_is_not_caught(benchmark):
    real = benchmark.real
    row = SimpleNamespace(liver=["liver", "fat"], spleen=["spleen", "holes"])
    kind = next(iter(real.NAMED))
    outcomes = [
        real.Outcome("a", real.UNALTERED, [], [row.liver], [], ["liver", "spleen"]),
        real.Outcome("a", kind, ["spleen"], [row.liver], [], ["liver"]),
        real.Outcome("b", real.UNALTERED, [], [], [], ["liver"]),
        real.Outcome("b", kind, ["spleen"], [row.liver], [], ["liver"]),
        real.Outcome("c", real.UNALTERED, [], [], [], ["liver"]),
        real.Outcome("c", kind, ["spleen"], [row.liver, row.spleen], [], ["liver"]),
        real.Outcome("d", real.UNALTERED, [], [], [row.liver], ["liver"]),
        real.Outcome("d", kind, ["spleen"], [], [row.liver, row.spleen], ["liver"]),
    ]
    count = real.counted(outcomes, kind)
    assert (count.maps, count.refused, count.noticed, count.right) == (4, 2, 3, 2)
    assert dict(count.rules) == {"holes": 2}
    assert real.unaltered_rows(outcomes, "failed")[:2] == (1, 5)
    assert real.unaltered_rows(outcomes, "doubted")[:2] == (1, 5)
    assert real.macro([count]) == "0.50 | 0.75 | 0.67"
