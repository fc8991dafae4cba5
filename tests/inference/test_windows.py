"""The sliding window equals nnUNetPredictor's."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from tiny_models import tiny_plan

from labelloop.inference.settings import ManyWindows
from labelloop.inference.windows import Window, gaussian_weights, slide_blocks, step_for, window_starts
from labelloop.networks.network import build_network
from strategies import few, seeds

PATCH = (16, 8, 16)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network(tiny_plan(patch=PATCH), 3).eval()


def slide(network, image, window, walk=None):
    return torch.cat(list(slide_blocks(network, image[None], window, walk)), 1)


def stock_logits(network, image, step, gaussian, mirror):
    """Logits of nnU-Net's predictor, accumulated in float32 (it uses float16, whose rounding alone exceeds 1e-4)."""
    predictor = nnUNetPredictor(step, gaussian, bool(mirror), device=torch.device("cpu"), allow_tqdm=False)
    predictor.network, predictor.allowed_mirroring_axes = network, mirror
    predictor.configuration_manager = SimpleNamespace(patch_size=PATCH)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "half", torch.float32)

        def weights(*a, **k):
            return compute_gaussian(*a, **{**k, "dtype": torch.float32})

        patch.setattr(predict_from_raw_data, "compute_gaussian", weights)
        return predictor.predict_sliding_window_return_logits(image[None])


@few(2)
@given(
    shape=st.tuples(st.integers(1, 24), st.integers(1, 20), st.integers(1, 36)),
    step=st.sampled_from([0.5, 0.8, 1]),
    gaussian=st.booleans(),
    mirror=st.sampled_from([(), (0, 2), (1,)]),
    batch=st.integers(1, 4),
    seed=seeds,
)
def test_logits_of_a_whole_volume_equal_the_predictors(network, shape, step, gaussian, mirror, batch, seed):
    image = torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    expected = stock_logits(network, image, step, gaussian, mirror)
    logits = slide(network, image, Window(PATCH, 3, step, gaussian, mirror, batch))
    assert logits.shape == (3, *shape)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@given(data=st.data(), patch=st.tuples(*[st.integers(2, 40)] * 3), step=st.sampled_from([0.3, 0.5, 0.8, 1]))
def test_positions_equal_nnunets_and_cover_the_volume(data, patch, step):
    shape = tuple(data.draw(st.integers(p, 4 * p)) for p in patch)
    starts = window_starts(shape, patch, step)
    assert starts == compute_steps_for_sliding_window(shape, patch, step)
    for along, p, n in zip(starts, patch, shape, strict=True):
        assert along[0] == 0 and along[-1] + p == n and max(np.diff(along), default=0) <= p


@few()
@given(patch=st.tuples(*[st.integers(4, 40)] * 3))
def test_weights_equal_nnunets(patch):
    expected = compute_gaussian(patch, dtype=torch.float32, device=torch.device("cpu"))
    torch.testing.assert_close(gaussian_weights(patch), expected, atol=1e-6, rtol=1e-4)


def test_skipped_voxels_are_background(network):
    image = torch.zeros(16, 8, 48)
    logits = slide(network, image, Window(PATCH, 3), (step for step in [([(0, 0, 0)], False)]))
    assert torch.isfinite(logits).all()
    assert (logits[:, :, :, 16:].argmax(0) == 0).all() and (logits[0, :, :, 16:] == 1).all()


def test_bad_step_is_refused():
    with pytest.raises(ValueError, match="step"):
        window_starts((16, 16, 16), PATCH, 0)


@pytest.mark.parametrize(("above", "step"), [(11, (1.0, 1.0, 0.5)), (12, 0.5)])
def test_many_windows_are_laid_farther_apart(above, step):
    many = ManyWindows(above=above, step=(1, 1, 0.5))  # 3 x 2 x 2 windows at half a patch
    assert step_for((32, 12, 24), (16, 8, 16), 0.5, many) == step
    assert step_for((32, 12, 24), (16, 8, 16), 0.5, None) == 0.5


@pytest.mark.parametrize("shape", [(33, 17, 40), (32, 24, 48), (16, 8, 17)])
def test_a_step_for_each_axis_covers_every_voxel(network, shape):
    """At a whole patch along z and y, the voxels at the seams and borders still get what the network says."""
    step = (1.0, 1.0, 0.5)
    starts = window_starts(shape, (16, 8, 16), step)
    assert [len(s) for s in starts] == [-(-n // p) if k == 1 else len(window_starts((n,), (p,), 0.5)[0])
                                        for n, p, k in zip(shape, (16, 8, 16), step, strict=True)]  # fmt: skip
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    logits = slide(network, image, Window((16, 8, 16), 3, step=step))
    assert logits.shape[1:] == image.shape
    background = (logits[0] == 1) & (logits[1:] == 0).all(0)
    assert not background.any()  # what a voxel without a window looks like
    corner = network(image[None, None, :16, :8, :16])[0]
    torch.testing.assert_close(logits[:, :8, :4, :1], corner[:, :8, :4, :1], rtol=1e-4, atol=1e-5)  # no other sees it
