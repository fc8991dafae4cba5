"""The slice classifier: what it sees, and the folder it is loaded from."""

import json

import numpy as np
import pytest
import torch
from test_prepare import random_volume
from tiny_models import tiny_plan

from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import sha256, write_json
from labelloop.inference.postprocess import load_chain, load_model
from labelloop.inference.settings import SliceInput
from labelloop.inference.slices import SliceClassifier, build_classifier, classify, slice_inputs

VIEW = SliceInput(size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "abdomen"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save({"weights": build_classifier().state_dict()}, folder / "weights.pt")
    plan, view = (part.model_dump(mode="json") for part in (tiny_plan(), VIEW))
    content = {"name": "abdomen", "kind": "slice_classifier", "plan": plan, "input": view}
    write_json(folder / "model.json", content | {"weights_sha256": sha256(folder / "weights.pt")})
    return folder


@pytest.fixture(scope="module")
def classifier(folder):
    return SliceClassifier(folder, "cpu")


def test_the_window_is_that_of_width_and_level():
    hounsfield = torch.tensor([-1000.0, -160, -60, 40, 140, 240, 3000])
    ct = tiny_plan().ct
    planes = ((hounsfield - ct.mean) / ct.std)[:, None, None].expand(-1, 20, 30)
    seen = slice_inputs(planes, ct, VIEW)
    assert seen.shape == (7, 3, 32, 32)
    expected = torch.tensor([-1, -1, -0.5, 0, 0.5, 1, 1])[:, None, None, None]
    assert torch.allclose(seen, expected.expand_as(seen), atol=1e-5)


def test_slices_become_squares_without_being_moved():
    plane = torch.zeros(1, 40, 64)
    plane[:, 10:20, 32:48] = 1.0
    middle = slice_inputs(plane, tiny_plan().ct.model_copy(update={"mean": 0.0, "std": 1000.0}), VIEW)[0, 0]
    bright = middle > middle.mean()
    assert np.flatnonzero(bright.any(1)).tolist() == list(range(8, 16))
    assert np.flatnonzero(bright.any(0)).tolist() == list(range(16, 24))


def test_each_slice_is_told_by_itself(classifier, rng):
    array = rng.normal(size=(37, 20, 24)).astype(np.float32)
    whole = classify(classifier.network, array, classifier.plan.ct, VIEW, classifier.device)
    single = [
        classify(classifier.network, array[z : z + 1], classifier.plan.ct, VIEW, classifier.device) for z in (0, 36)
    ]
    assert whole.shape == (37,) and ((whole > 0) & (whole < 1)).all()
    np.testing.assert_allclose([p[0] for p in single], whole[[0, 36]], rtol=1e-4)


def test_mr_has_no_window(folder, rng):
    with pytest.raises(CaseError, match="MR has none"):
        SliceClassifier(folder, "cpu").prepare(random_volume(rng), "MR")


def test_it_locates_but_does_not_segment(folder):
    assert isinstance(load_model(folder, "cpu"), SliceClassifier)
    with pytest.raises(UserError, match="abdomen is a slice classifier; it can only locate"):
        load_chain([{"segment": "abdomen"}], folder.parent, device="cpu")


def test_fingerprint_follows_what_decides(folder, classifier, tmp_path):
    before = classifier.fingerprint
    content = json.loads((folder / "model.json").read_text())
    (tmp_path / "weights.pt").hardlink_to(folder / "weights.pt")
    write_json(tmp_path / "model.json", content | {"name": "renamed"})
    assert SliceClassifier(tmp_path, "cpu").fingerprint == before
    write_json(tmp_path / "model.json", content | {"input": content["input"] | {"level_hu": 50.0}})
    assert SliceClassifier(tmp_path, "cpu").fingerprint != before


def test_altered_or_missing_weights_are_refused(folder, tmp_path):
    (tmp_path / "model.json").write_text((folder / "model.json").read_text())
    with pytest.raises(UserError, match="no such file"):
        SliceClassifier(tmp_path, "cpu")
    (tmp_path / "weights.pt").write_bytes(b"altered")
    with pytest.raises(UserError, match="of another training"):
        SliceClassifier(tmp_path, "cpu")
