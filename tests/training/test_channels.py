"""A model of several channels: trained, run, gone on from, and refused what has other channels."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import CASES, CLASSES, PLAN, make_job, write_cases

from labelloop.base.errors import CaseError, UserError
from labelloop.images.volume import Geometry, Volume
from labelloop.inference.engine import Predictor
from labelloop.inference.prepared import open_image, write_image_array
from labelloop.networks.network import build_network
from labelloop.networks.plans import Plan
from labelloop.training.initial import start_from
from labelloop.training.nnunet import train

TWO = Plan(**PLAN.model_dump() | {"channels": ("T1", "T2")})
GRID = Geometry((30, 28, 20), (3.0, 3.0, 3.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of two channels; what labels follow is seen in the second one alone."""
    root = tmp_path_factory.mktemp("channels")
    write_cases(root)
    for number in range(CASES):
        file = root / "images" / f"case{number}.b2nd"
        seen = open_image(file).array[0]
        write_image_array(file, np.stack([np.random.default_rng(number).normal(size=seen.shape), seen]))
    train(make_job(root, root / "model", plan=TWO))
    return root / "model"


def noise(seed):
    return np.random.default_rng(seed).normal(100, 30, GRID.shape).astype(np.float32)


def test_the_model_takes_its_channels_and_looks_at_each(model):
    predictor = Predictor(model, "cpu")
    assert predictor.plan.channels == ("T1", "T2")
    assert next(iter(predictor.network.parameters())).shape[1] == 2
    image = Volume(noise(0), GRID, (noise(1),))
    first, _ = predictor.logits(predictor.prepare(image, "MR"))
    for other in (replace(image, more=(noise(2),)), replace(image, array=noise(2))):
        assert not torch.allclose(predictor.logits(predictor.prepare(other, "MR"))[0], first)
    for wrong in (Volume(noise(0), GRID), replace(image, more=(noise(1), noise(2)))):
        with pytest.raises(CaseError, match=r"channels_differ.*the model takes 2 channels \(T1, T2\)"):
            predictor.predict(wrong, "MR")


def test_it_says_its_channels_to_nnunet(model):
    assert json.loads((model / "dataset.json").read_text())["channel_names"] == {"0": "T1", "1": "T2"}
    configuration = json.loads((model / "plans.json").read_text())["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"] * 2


def test_a_training_goes_on_from_it_with_the_same_channels_alone(model):
    network = build_network(TWO, len(CLASSES) + 1, deep_supervision=True)
    start_from(network, model, CLASSES)
    expected = torch.load(model / "weights.pt", weights_only=True)["weights"]
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    with pytest.raises(UserError, match="the same input channels"):
        start_from(build_network(PLAN, len(CLASSES) + 1, deep_supervision=True), model, CLASSES)
