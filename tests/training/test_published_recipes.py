"""What the recipes of Mao and Meng say of their networks holds."""

import numpy as np
import pytest
import torch

from labelloop.base.files import sha256, write_json
from labelloop.networks.network import build_network
from labelloop.recipe import load_recipe
from labelloop.training.initial import start_from

PARAMETERS = [
    ("two_stage", "student", 1.387e6),  # Mao prints 1.385 M
    ("coarse_to_fine", "coarse", 30.80e6),  # the released network: 30.79 M
    ("coarse_to_fine", "tumors_seed1", 30.80e6),
    ("coarse_to_fine", "organs_fine", 30.80e6),
]


@pytest.mark.parametrize(("recipe", "model", "expected"), PARAMETERS)
def test_networks_are_as_large_as_published(recipe, model, expected):
    found = load_recipe(recipe)
    spec = found.models[model]
    with torch.device("meta"):
        network = build_network(found.plans[spec.plan], len(found.scheme.select(spec.classes)) + 1)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(expected, rel=1e-3)


def test_no_published_network_pools_an_axis_to_nothing():
    """As pinned strides of Zhou's coarse grid did with the levels of the fine one: 32 to 1, at its bottom."""
    for name in ("two_stage", "coarse_to_fine", "merge_max", "progressive"):
        for plan_name, plan in load_recipe(name).plans.items():
            bottom = np.array(plan.patch) // np.prod(plan.stage_strides, axis=0)
            released = (name, plan_name) == ("merge_max", "coarse")  # so in Zhou's code
            assert released or bottom.min() >= 4, (name, plan_name, bottom)


def test_mao_grows_from_14_to_15_outputs_and_says_the_same_of_the_organs(tmp_path):
    recipe = load_recipe("two_stage")
    student = recipe.models["student"]
    donor, plan = recipe.models[student.init_from], recipe.plans[student.plan]
    organs, everything = (recipe.scheme.select(m.classes) for m in (donor, student))
    assert (len(organs) + 1, len(everything) + 1) == (14, 15)
    assert recipe.plans[donor.plan] == plan and student.trainer.new_class_bias is None
    torch.manual_seed(0)
    before = build_network(plan, 14, deep_supervision=True)
    torch.save({"weights": before.state_dict()}, tmp_path / "weights.pt")
    content = {"name": "organs_small", "classes": organs, "channels": ["background", *organs]}
    content |= {"plan": plan.model_dump(mode="json"), "weights_sha256": sha256(tmp_path / "weights.pt")}
    write_json(tmp_path / "model.json", content)
    after = build_network(plan, 15, deep_supervision=True)
    start_from(after, tmp_path, everything)
    image = torch.randn(1, 1, 8, 64, 64)
    with torch.no_grad():
        for old, new in zip(before.eval()(image), after.eval()(image), strict=True):
            kept = [0, *(everything.index(name) + 1 for name in organs)]
            assert torch.allclose(new[:, kept], old, rtol=0, atol=1e-6)
            assert not new[:, everything.index("tumor") + 1].any()
    assert not after.decoder.seg_layers[-1].weight[everything.index("tumor") + 1].any()


def test_papers_draw_all_cases_alike_and_our_own_recipes_do_not():
    learns = ("supervised", "partial", "mean_teacher", "cross_pseudo")
    for name in ("two_stage", "coarse_to_fine", "merge_max", "progressive", "ct_to_mr", "default", "best"):
        drawn = {m.trainer.sampling == "uniform" for m in load_recipe(name).models.values() if m.trainer.kind in learns}
        assert drawn == {name not in ("default", "best")}, name
