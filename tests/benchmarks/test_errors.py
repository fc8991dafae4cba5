"""A small version of ``benchmarks/errors``: one phantom with each of the first ten kinds of error, ten without."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "errors" / "run.py"


@pytest.fixture(scope="module")
def tally(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("errors_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, benchmark)
        patch.setattr(sys, "path", list(sys.path))
        spec.loader.exec_module(benchmark)
        benchmark.CACHE = tmp_path_factory.mktemp("phantoms")
        yield benchmark.run(10, first=506)


def test_errors_are_found(tally):
    assert tally.tried.total() == len(tally.tried) == 10
    assert tally.recall >= 0.9, tally.missed


def test_maps_without_errors_pass(tally):
    assert tally.rows >= 10 * 13
    assert tally.false_alarms <= 0.02, tally.alarm_reasons
