from itertools import product

import pytest
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from labelloop.networks.plans import SMALLEST_FEATURE_MAP, Plan

SPACINGS = [(z, y, y) for z, y in product((0.8, 1.2, 1.5, 2.5, 3, 5, 7.5), (0.7, 0.8, 1.2, 1.5, 2.5))]
SPACINGS += [(1.5, 3, 1.5), (0.8, 2.5, 5), (2, 1, 3)]
PATCHES = [(z, y, x) for z in (8, 16, 24, 48, 64, 160) for y, x in ((8, 40), (64, 96), (160, 224), (192, 192))]


def of_nnunet(spacing, patch):
    pools, strides, kernels, padded, _ = get_pool_and_conv_props(spacing, patch, SMALLEST_FEATURE_MAP, 999999)
    return strides, kernels, tuple(map(int, padded)) == patch and max(pools) < 10


@pytest.mark.parametrize("spacing", SPACINGS)
def test_strides_and_kernels_are_those_of_nnunet(spacing):
    compared = 0
    for patch in PATCHES:
        strides, kernels, fits = of_nnunet(spacing, patch)
        if not fits or not 2 <= len(strides) <= 10:
            continue
        compared += 1
        plan = Plan(spacing_mm=spacing, patch=patch, features=(8,) * len(strides))
        assert (plan.stage_strides, plan.stage_kernels) == (strides, kernels), patch
    assert compared > 10


def test_fewer_stages_are_the_first_ones_and_more_pool_nothing():
    spacing, patch = (5, 0.8, 0.8), (48, 192, 192)
    strides, kernels, _ = of_nnunet(spacing, patch)
    few = Plan(spacing_mm=spacing, patch=patch, features=(8,) * 3)
    assert few.stage_strides == strides[:3]
    assert few.stage_kernels == (*kernels[:2], (3, 3, 3))
    many = Plan(spacing_mm=spacing, patch=patch, features=(8,) * (len(strides) + 2))
    assert many.stage_strides == (*strides, (1, 1, 1), (1, 1, 1))
    assert many.stage_kernels == (*kernels, (3, 3, 3), (3, 3, 3))
