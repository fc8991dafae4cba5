import numpy as np
import pytest
import torch
from tiny_training import PLAN, make_job

from labelloop.training import intensity
from labelloop.training.intensity import RandomIntensityTransform, random_look
from labelloop.training.loading import Draw, iterate
from labelloop.training.settings import RandomIntensity
from labelloop.training.trainers import TRAINERS

SETTINGS = RandomIntensity()


def patch(seed=0, shape=(1, 6, 8, 9)):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def look(image, seed):
    torch.manual_seed(seed)
    return random_look(image, SETTINGS)


@pytest.mark.parametrize("seed", range(5))
def test_a_look_has_the_norm_and_grid_of_its_patch_and_follows_the_seed(seed):
    image = patch()
    altered = look(image, seed)
    assert altered.shape == image.shape and altered.dtype == image.dtype
    assert float(altered.norm()) == pytest.approx(float(image.norm()), rel=1e-3)
    assert torch.equal(altered, look(image, seed))
    assert not torch.allclose(altered, look(image, seed + 100))


def test_without_neighbors_equal_intensities_stay_equal(monkeypatch):
    monkeypatch.setattr(intensity, "KERNELS", (1,))
    image = torch.randint(4, (1, 6, 8, 9)).float()
    altered = look(image, 3)
    for value in range(4):
        assert float(altered[image == value].std()) < 1e-5


def test_looks_differ_in_the_order_of_intensities():
    """Bright becomes dark in some: no window and no gamma does that, and between CT and MR it happens."""
    image = patch()
    correlations = [np.corrcoef(image.ravel(), look(image, seed).ravel())[0, 1] for seed in range(30)]
    assert min(correlations) < 0 < max(correlations)


def test_an_empty_patch_stays_finite():
    assert torch.isfinite(look(torch.zeros(1, 4, 4, 4), 0)).all()


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 200), (0.5, pytest.approx(100, abs=25))])
def test_so_many_patches_are_altered(probability, expected):
    torch.manual_seed(0)
    transform, image = RandomIntensityTransform(RandomIntensity(probability=probability)), patch()
    seen = [transform(image=image, segmentation=image) for _ in range(200)]
    assert sum(not torch.equal(one["image"], image) for one in seen) == expected
    assert all(torch.equal(one["segmentation"], image) for one in seen)


@pytest.mark.parametrize(
    ("augmentation", "patch"),  # nnU-Net turns patches as flat as the last one plane by plane
    [("nnunet", PLAN.patch), ("none", PLAN.patch), ("nnunet", (8, 32, 32))],
)
def test_training_sees_other_intensities_and_the_same_labels(data, tmp_path, augmentation, patch):
    batches, plan = [], PLAN.model_copy(update={"patch": patch})
    for own in ({}, {"random_intensity": {}}):
        job = make_job(data, tmp_path, plan=plan, settings={"augmentation": augmentation, **own})
        loaders = TRAINERS["supervised"].of(job).get_dataloaders()
        batches.append(list(iterate(loaders, [Draw("train", 0, 0), Draw("validation", 0, 0)], seed=1, workers=0)))
    (plain, validated), (altered, validated_too) = batches
    assert plain["data"].shape == altered["data"].shape == (2, 1, *patch)
    assert not torch.allclose(plain["data"], altered["data"])
    if augmentation == "none":
        assert torch.equal(plain["target"][0], altered["target"][0])
    assert torch.equal(validated["data"], validated_too["data"])
