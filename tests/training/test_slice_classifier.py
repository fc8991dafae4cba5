"""Training of the slice classifier: it learns, is reproducible, survives a kill, and inference loads what it leaves."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_training import IDS, PLAN, make_job

from labelloop.base.paths import SLICE_OUTPUTS
from labelloop.base.tables import read_table
from labelloop.inference.prepared import open_image, open_label, write_image_array, write_label_array
from labelloop.inference.slices import SliceClassifier, classify
from labelloop.training import slices as module
from labelloop.training.settings import SliceClassifierSettings, trainer_settings
from labelloop.training.slices import SliceTraining, slice_scores, train

CLASSES = ("liver", "spleen")
STATES = dict.fromkeys(range(4), dict.fromkeys(CLASSES, "present"))
SETTINGS = {
    "kind": "slice_classifier", "size": 32, "batch_size": 8, "epochs": 3, "iterations_per_epoch": 8,
    "validation_iterations": 2, "learning_rate": 1e-3, "save_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Cases whose middle planes show a bright organ; a tumor, which is not asked for, lies elsewhere."""
    root = tmp_path_factory.mktemp("slices")
    for number in range(4):
        rng = np.random.default_rng(number)
        image, label = rng.normal(0, 0.2, (24, 30, 36)).astype(np.float32), np.zeros((24, 30, 36), np.int16)
        low, high = 5 + number, 15 + number
        label[low:high, 8:20, 10:25] = IDS[CLASSES[number % 2]]
        label[1, 5:9, 5:9] = IDS["tumor"]
        image[label > 0] += 1
        write_image_array(root / "images" / f"case{number}.b2nd", image)
        write_label_array(root / "labels" / f"case{number}.b2nd", label)
    return root


def job(data, folder, **settings):
    return make_job(data, folder, states=STATES, classes=CLASSES, settings=SETTINGS | settings)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "abdomen"
    train(job(data, folder))
    return folder


def test_it_learns_and_says_how_well(trained, data):
    scores = read_table(trained / "scores.csv", "slice_scores").to_dict("records")
    assert len(scores) == 1 and (scores[0]["cases"], scores[0]["slices"], scores[0]["positive"]) == (1, 24, 10)
    assert scores[0]["auc"] > 0.9
    assert json.loads((trained / "model.json").read_text())["scores"][0]["auc"] == pytest.approx(scores[0]["auc"], 1e-5)
    cases = read_table(trained / "cases.csv", "training_cases")
    assert dict(zip(cases["case"], cases["split"], strict=True)) == {
        "case0": "validation", "case1": "train", "case2": "train", "case3": "train"
    }  # fmt: skip


def test_inference_finds_the_slices_from_the_folder_alone(trained, data):
    classifier = SliceClassifier(trained, "cpu")
    array = open_image(data / "images" / "case0.b2nd").array[0]
    found = classify(classifier.network, array, PLAN.ct, classifier.model.input, classifier.device) >= 0.5
    truth = np.isin(open_label(data / "labels" / "case0.b2nd").array[0], [IDS[c] for c in CLASSES]).any((1, 2))
    row = read_table(trained / "scores.csv", "slice_scores").iloc[0]
    assert row["accuracy"] == pytest.approx((found == truth).mean(), abs=1e-5)
    assert (classifier.model.input.size, classifier.class_ids) == (32, {})


def test_interrupted_training_goes_on_to_the_same_bytes(trained, data, tmp_path, monkeypatch, caplog):
    step, count = SliceTraining._train_step, [0]

    def stop(self, batch):
        count[0] += 1
        if count[0] == 20:  # in the third epoch
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(SliceTraining, "_train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(job(data, tmp_path))
    assert not (tmp_path / "weights.pt").exists()
    monkeypatch.setattr(SliceTraining, "_train_step", step)
    caplog.set_level(logging.INFO)
    train(replace(job(data, tmp_path), workers=1))
    assert "resuming after epoch 2 of 3" in caplog.text
    for name in SLICE_OUTPUTS:
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name


def test_a_finished_training_is_not_done_again(trained, data, monkeypatch):
    before = {name: (trained / name).read_bytes() for name in SLICE_OUTPUTS}
    (trained / "weights.pt").unlink()
    monkeypatch.setattr(module, "SliceTraining", lambda job: pytest.fail("trained again"))
    train(job(data, trained))
    assert {name: (trained / name).read_bytes() for name in SLICE_OUTPUTS} == before


def test_refused_labels_are_no_finds(data, tmp_path):
    """The label map keeps the voxels of a class that the selection, or a reviewer, called absent."""
    refused = {"liver": "absent", "spleen": "present"}
    asked = make_job(data, tmp_path, states=STATES | {2: refused}, classes=CLASSES, settings=SETTINGS)
    positive = {c.case.case: int(c.positive.sum()) for c in SliceTraining(asked).cases["train"]}
    assert positive == {"case1": 10, "case2": 0, "case3": 10}


def test_scores_against_counting_by_hand():
    positive = np.array([True, True, True, False, False])
    row = slice_scores(positive, np.array([0.9, 0.5, 0.2, 0.3, 0.6]))
    assert row == {
        "slices": 5, "positive": 3, "auc": pytest.approx(3 / 6), "accuracy": pytest.approx(3 / 5),
        "sensitivity": pytest.approx(2 / 3), "specificity": pytest.approx(1 / 2),
    }  # fmt: skip
    row = slice_scores(np.array([True, True]), np.array([0.9, 0.1]))
    assert (row["auc"], row["sensitivity"], row["specificity"]) == (None, 0.5, None)


def test_augmentation_turns_shifts_and_zooms_within_bounds():
    view = SliceClassifierSettings(rotate_degrees=20, shift=0.1, zoom=0.2)
    np.random.seed(0)
    draws = torch.cat([module._placement(view, (30, 60)) for _ in range(200)]).numpy().astype(float)
    pixels = np.diag([30.0, 15.0])  # half the sides x, y: rotations are ones of pixels, not of the stretched square
    turns = np.stack([pixels @ m @ np.linalg.inv(pixels) for m in draws[:, :, :2]])
    zoom = np.sqrt(np.linalg.det(turns))
    angles = np.degrees(np.arctan2(turns[:, 1, 0], turns[:, 0, 0]))
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), zoom[:, None, None] ** 2 * np.eye(2), atol=1e-5)
    assert 0.79 < zoom.min() < 0.85 and 1.15 < zoom.max() < 1.21
    assert 15 < np.abs(angles).max() <= 20.01 and 0.15 < np.abs(draws[:, :, 2]).max() <= 0.2


@pytest.mark.parametrize("wrong", [{"momentum": 0.5}, {"export": "best"}, {"precision": "bf16"}, {"crop_z_mm": 5}])
def test_settings_that_it_does_not_read_are_refused(wrong):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        trainer_settings({"kind": "slice_classifier"} | wrong)
