"""A model folder on a volume."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import random_volume, turned
from tiny_models import CLASSES, IDS, save_model, tiny_plan

from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import sha256
from labelloop.images.volume import Geometry, Volume, canonical
from labelloop.inference.engine import Predictor, softmax_
from labelloop.inference.settings import Settings
from strategies import millimeters, orientations, seeds


@pytest.fixture
def predictor(model_folder):
    return Predictor(model_folder, "cpu")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return Predictor(save_model(tmp_path_factory.mktemp("models") / "quick"), "cpu", Settings(step=1))


@given(spacing=st.tuples(*[millimeters(0.5, 8)] * 3), orientation=orientations, seed=seeds)
def test_labels_lie_on_the_grid_of_the_input(quick, spacing, orientation, seed):
    """Flipping or permuting the input flips or permutes the output."""
    extent = (40, 28, 30)  # mm, so that all spacings make networks grids of one size
    shape = tuple(max(4, min(20, round(mm / s))) for mm, s in zip(extent, spacing, strict=True))
    volume = random_volume(np.random.default_rng(seed), shape, spacing)
    expected = quick.predict(volume, "CT")
    assert expected.labels.dtype == np.uint8 and set(np.unique(expected.labels)) <= {0, *IDS.values()}
    stored = turned(volume, *orientation)
    result = quick.predict(stored, "CT")
    assert result.labels.shape == stored.geometry.shape
    np.testing.assert_array_equal(canonical(Volume(result.labels, stored.geometry)).array, expected.labels)
    assert [r["volume_ml"] for r in result.rows] == pytest.approx([r["volume_ml"] for r in expected.rows])


@pytest.mark.parametrize("shape", [(1, 20, 20), (3, 4, 5), (1, 1, 1), (30, 5, 40)])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_small_and_thin_volumes(predictor, rng, shape, modality):
    result = predictor.predict(random_volume(rng, shape), modality)
    assert result.labels.shape == shape
    assert [r["class"] for r in result.rows] == list(CLASSES)
    assert all(r["confidence"] is None or 0 <= r["confidence"] <= 1 for r in result.rows)


def test_same_answer_twice_and_for_any_batch(model_folder, rng):
    volume = random_volume(rng)
    first, second = (Predictor(model_folder, "cpu").predict(volume, "CT") for _ in range(2))
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.rows == second.rows
    batched = Predictor(model_folder, "cpu", Settings(window_batch=3)).predict(volume, "CT")
    assert (batched.labels == first.labels).mean() > 0.999


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_fast_is_close_to_exact(model_folder, rng, precision):
    volume = random_volume(rng)
    exact = Predictor(model_folder, "cpu").predict(volume, "CT")
    fast = Predictor(model_folder, "cpu", Settings(mode="fast", precision=precision)).predict(volume, "CT")
    assert (fast.labels == exact.labels).mean() > 0.95


def test_logits_and_their_softmax(predictor, rng):
    prepared = predictor.prepare(random_volume(rng), "CT")
    logits, _ = predictor.logits(prepared)
    assert logits.shape == (4, *prepared.array.shape[1:]) and logits.dtype == torch.float32
    torch.testing.assert_close(softmax_(logits.clone()), logits.softmax(0))


def test_fingerprint_follows_weights_and_settings(tmp_path):
    a, same, b = (Predictor(save_model(tmp_path / n, seed=s), "cpu") for n, s in (("a", 0), ("c", 0), ("b", 1)))
    assert a.fingerprint == same.fingerprint != b.fingerprint
    changed = a.with_settings(step=0.7)
    assert changed.fingerprint != a.fingerprint and a.settings.step == 0.5 and changed.network is a.network


def test_a_model_that_knows_ct_as_mr_only_labels_no_ct(tmp_path, rng):
    plan = tiny_plan(grey={}, translate="to_mr")
    predictor = Predictor(save_model(tmp_path / "m", plan), "cpu")
    assert predictor.predict(random_volume(rng), "MR").labels.any()
    with pytest.raises(CaseError, match="learned from CT translated to MR, not from CT"):
        predictor.predict(random_volume(rng), "CT")


def test_a_broken_model_folder_is_refused(model_folder, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Predictor(tmp_path / "nowhere")
    content = json.loads((model_folder / "model.json").read_text())
    wrong = content | {"plan": tiny_plan(features=(4, 16)).model_dump(mode="json")}
    (model_folder / "model.json").write_text(json.dumps(wrong))
    with pytest.raises(UserError, match="does not fit the plan"):
        Predictor(model_folder, "cpu")
    (model_folder / "model.json").write_text(json.dumps(content | {"classes": ["liver", "heart"]}))
    with pytest.raises(UserError, match="heart"):
        Predictor(model_folder, "cpu")
    (model_folder / "model.json").write_text(json.dumps(content))
    (model_folder / "weights.pt").write_bytes((model_folder / "weights.pt").read_bytes() + b"x")
    with pytest.raises(UserError, match="sha256"):
        Predictor(model_folder, "cpu")


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"class_ids": {"liver": 1, "spleen": 1, "tumor": 14}}, "several classes have one id"),
     ({"class_ids": {"liver": 255, "spleen": 1, "tumor": 14}}, "with ids from 1 to 254; at fault: .'liver'"),
     ({"ct": {"clip_hu": [300, -200]}}, "300 is not below -200"), ({"ct": {"mean": float("nan")}}, "finite"),
     ({"ct": {"std": 0}}, "greater than 0")],
)  # fmt: skip
def test_a_description_that_would_paint_nonsense_is_refused(model_folder, changes, found):
    content = json.loads((model_folder / "model.json").read_text())
    content["plan"] |= {key: changes.pop(key) for key in ("ct",) if key in changes}
    (model_folder / "model.json").write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=found):
        Predictor(model_folder, "cpu")


@pytest.mark.parametrize("change", [lambda v: v * float("inf"), lambda v: v * float("nan"), lambda v: v.int()])
def test_weights_that_are_no_finite_floats_are_refused(model_folder, change):
    """One infinite weight can leave the scores finite, and the label map wrong."""
    state = torch.load(model_folder / "weights.pt", weights_only=True)["weights"]
    first = next(iter(state))
    torch.save({"weights": state | {first: change(state[first])}}, model_folder / "weights.pt")
    content = json.loads((model_folder / "model.json").read_text())
    content["weights_sha256"] = sha256(model_folder / "weights.pt")
    (model_folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"weights that are not finite numbers|other tensors"):
        Predictor(model_folder, "cpu")


def test_oblique_geometry_is_kept(predictor, rng):
    angle = np.deg2rad(20)
    direction = (np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1)
    array = random_volume(rng).array
    volume = Volume(array, Geometry(array.shape[::-1], (1.2, 1.1, 3.0), direction=tuple(map(float, direction))))
    assert predictor.predict(volume, "CT").labels.shape == array.shape


@pytest.mark.slow
def test_inference_imports_neither_training_nor_nnunetv2_and_torchvision_only_for_a_classifier():
    code = (
        "import sys, labelloop.inference.infer; assert 'torch' not in sys.modules; "  # so that reading does not wait
        "import labelloop.inference.postprocess; "
        "from labelloop.networks.network import build_network; from labelloop.networks.plans import Plan; "
        "build_network(Plan(spacing_mm=(1,1,1), patch=(16,16,16), features=(4,8)), 2); "
        "unwanted = ('nnunetv2', 'monai', 'torchvision', 'labelloop.training'); "
        "print([m for m in sys.modules if f'{m}.'.startswith(tuple(f'{u}.' for u in unwanted))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
