"""A recipe with one mistake is refused, by a message that names the key, or it is a chain that works."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st

from labelloop.base.errors import UserError
from labelloop.base.lookup import find
from labelloop.inference.engine import Predictor
from labelloop.inference.postprocess import Chain
from labelloop.inference.slices import SliceClassifier
from labelloop.networks.network import build_network
from labelloop.recipe import load_recipe
from labelloop.recipe.inheritance import with_extended
from labelloop.run import cost
from labelloop.run.run import Run
from labelloop.training.settings import cutmix_of
from mistakes import Mistake, alternatives, changed
from strategies import few

RECIPES = {
    name: load_recipe(name).model_dump(mode="json", by_alias=True, exclude_unset=True)
    for name in ("default_demo", "best_demo", "two_stage_demo", "merge_max_demo", "progressive_demo", "ct_to_mr_demo")
}
RECIPES |= {f"{name}, as written": with_extended(find("recipes", name)) for name in ("best_demo", "ct_to_mr_demo")}
ROWS = ["case,image,label,dataset,modality,sequence,annotated,role"]
ROWS += [f"ct{n},ct{n}.nii.gz,ct{n}_label.nii.gz,flare22,CT,,all,train" for n in range(8)]
ROWS += [f"organs{n},o{n}.nii.gz,o{n}_label.nii.gz,flare22,CT,,organs,train" for n in range(8)]
ROWS += [f"tumor{n},t{n}.nii.gz,t{n}_label.nii.gz,flare22,CT,,tumor,train" for n in range(8)]
ROWS += [f"some{n},s{n}.nii.gz,s{n}_label.nii.gz,flare22,CT,,liver;spleen,train" for n in range(4)]
ROWS += [f"plain{n},p{n}.nii.gz,,flare22,CT,,,train" for n in range(6)]
ROWS += [f"mr{n}_{s},m{n}{s}.nii.gz,,flare22,MR,{s},,train" for n in range(4) for s in ("t1w", "t2w", "arterial")]
ROWS += ["test,test.nii.gz,test_label.nii.gz,flare22,CT,,all,test"]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Return a case table with cases of every kind."""
    path = tmp_path_factory.mktemp("mistakes") / "cases.csv"
    path.write_text("\n".join(ROWS) + "\n")
    return path


class Stand(Predictor):
    """A model of which the inference chain asks its classes only."""

    def __init__(self, run: Run, name: str):
        self._names = run.scheme.select(run.wiring.model(name).classes)
        self._ids = run.scheme.ids

    @property
    def classes(self):
        return self._names

    @property
    def class_ids(self):
        return {name: self._ids[name] for name in self._names}


def works(run: Run) -> None:
    """Ask of a run what its jobs would ask, as far as that needs neither images nor a training."""
    for name in run.wiring.used_models:
        spec, plan = run.wiring.model(name), run.chain.plans[run.wiring.model(name).plan]
        assert set(run.wiring.lineage(name)) <= set(run.wiring.used_models)
        assert run.wiring.images(name) and run.wiring.arrays(name) and run.trainings.mb(name, 1) > 0
        if cutmix_of(spec.trainer):
            assert run.wiring.bank(name) in run.wiring.used_models
        if name in run.wiring.segmenters:
            with torch.device("meta"):
                network = build_network(plan, 3, deep_supervision=bool(spec.trainer.deep_supervision)).train()
                first = network(torch.empty((plan.batch_size, 1, *plan.patch)))
            assert (
                first[0].shape[2:] == plan.patch if isinstance(first, list | tuple) else first.shape[2:] == plan.patch
            )
        if spec.init_from:
            body = [_body(run, each) for each in (name, spec.init_from)]
            assert body[0] == body[1]
    for name in run.wiring.used_label_sets:
        assert run.wiring.models_behind(name) and set(run.wiring.label_set(name).predict) <= set(run.wiring.segmenters)
    models = {
        name: object.__new__(SliceClassifier) if name in run.wiring.slice_classifiers else Stand(run, name)
        for name in run.wiring.inference_models
    }
    Chain([json.loads(step.model_dump_json(by_alias=True)) for step in run.chain.inference], models, run.scheme)
    assert run.wiring.classes("final")
    assert cost.jobs(run.chain, len(run.shards.train), len(run.shards.test))["train"] > 0
    assert run.updates() and run.summary()


def _body(run: Run, model: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = build_network(run.chain.plans[run.wiring.model(model).plan], 2)
    return {name: value.shape for name, value in network.named_parameters() if "seg_layers" not in name}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_with_one_mistake_is_refused_by_name_or_works(name, table, tmp_path):
    @few(3)
    @given(st.sampled_from(alternatives(RECIPES[name])).map(lambda found: changed(RECIPES[name], *found)))
    def one(mistake: Mistake):
        note(str(mistake))
        path = tmp_path / "mine.yaml"
        path.write_text(json.dumps({"name": "mine"} | mistake.recipe))
        try:
            run = Run({"cases": str(table), "recipe": str(path), "results": str(tmp_path / "results")})
            problems = run.problems()
        except UserError as error:
            problems = str(error).splitlines()
        if not problems:
            works(run)
        else:
            assert any(word in line for word in mistake.words for line in problems), problems

    one()


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_itself_works(name, table, tmp_path):
    (tmp_path / "mine.yaml").write_text(json.dumps({"name": "mine"} | RECIPES[name]))
    run = Run({"cases": str(table), "recipe": str(tmp_path / "mine.yaml"), "results": str(tmp_path / "results")})
    assert run.problems() == []
    works(run)
