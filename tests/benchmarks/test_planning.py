"""``benchmarks/planning``: plans made here are those of nnU-Net's own commands for the same collection."""

import pytest

from labelloop.base.classes import load_classes
from labelloop.training.planning import intensity_properties, plan_for, shapes_of

SCHEME = load_classes("flare")


def test_the_plan_is_that_of_nnunets_own_commands(load_benchmark, phantom, tmp_path):
    planning = load_benchmark("planning")
    cases = planning.complete(phantom)
    theirs = planning.stock_plans(cases, tmp_path / "Dataset005_Phantom")
    shapes = shapes_of(cases, SCHEME, SCHEME.names, most=100)
    expected = theirs["fingerprint"]["foreground_intensity_properties_per_channel"][0]
    assert intensity_properties(shapes) == pytest.approx(expected)
    for network in planning.PLANNERS:
        plan = plan_for(shapes, len(SCHEME.names), len(cases), network)
        assert planning.differences(plan, theirs[network]["configurations"]["3d_fullres"]) == []
        other = plan.model_copy(update={"patch": (8, 8, 8), "batch_size": 1})
        assert planning.differences(other, theirs[network]["configurations"]["3d_fullres"]) == ["patch", "batch_size"]
