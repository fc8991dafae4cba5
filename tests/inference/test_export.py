"""Export equals the argmax of nnU-Net's resampled logits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from scipy.ndimage import gaussian_filter
from test_prepare import RAS, grids, turned

from labelloop.base.errors import CaseError
from labelloop.images.volume import Geometry, Volume, canonical
from labelloop.inference import export
from labelloop.inference.export import Tally, export_labels, to_prediction
from labelloop.inference.prepare import Frame
from labelloop.inference.resample import Resampling, target_shape
from strategies import orientations, seeds

IDS = [0, 5, 2, 200]
NAMES = ("a", "b", "c")


def frame_of(spacing, target, shape=(21, 26, 31), crop=((1, 20), (0, 26), (2, 31))):
    geometry = Geometry(shape[::-1], spacing[::-1], direction=RAS)
    return Frame(geometry, geometry, crop, target)


def smooth_logits(rng, shape, channels=4, sigma=2.0, background=0.0):
    logits = np.stack([gaussian_filter(rng.normal(size=shape), sigma) for _ in range(channels)]) * 20
    logits[0] += background
    return torch.from_numpy(logits.astype(np.float32))


def stock_labels(logits, frame):
    upsampled = resample_torch_fornnunet(
        logits, frame.cropped_shape, frame.spacing_mm, frame.oriented.spacing_zyx, num_threads=2
    )
    result = np.zeros(frame.oriented.shape, np.uint8)
    result[frame.slices] = np.asarray(IDS, np.uint8)[upsampled.argmax(0).numpy()]
    return result


@given(
    grid=grids,
    slab=st.sampled_from([1, 3000, 1 << 22]),
    tile=st.integers(1, 16),
    background=st.floats(0, 3),
    seed=seeds,
)
def test_exact_equals_argmax_of_nnunets_logits(grid, slab, tile, background, seed):
    frame = frame_of(*grid)
    logits = smooth_logits(np.random.default_rng(seed), frame.shape, background=background)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "TILE", tile)
        labels = export_labels([logits], frame, IDS, "exact", slab)
    np.testing.assert_array_equal(labels, stock_labels(logits, frame))


@given(grid=grids, slab=st.sampled_from([1, 3000, 1 << 22]), mode=st.sampled_from(["exact", "fast"]), seed=seeds)
def test_what_a_gpu_computes_at_once_equals_what_a_cpu_computes_plane_by_plane(grid, slab, mode, seed):
    frame = frame_of(*grid)
    logits = smooth_logits(np.random.default_rng(seed), frame.shape)
    one = to_prediction(logits, frame, NAMES, dict(zip(NAMES, IDS[1:], strict=True)), mode, slab_voxels=slab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_largest", export._largest_at_once)
        patch.setattr(export, "_gather", export._gather_on_gpu)
        all_at_once = to_prediction(
            logits, frame, NAMES, dict(zip(NAMES, IDS[1:], strict=True)), mode, slab_voxels=slab
        )
    assert (all_at_once.labels == one.labels).mean() > 0.9999  # ties, by the last bit
    for a, b in zip(all_at_once.rows, one.rows, strict=True):
        if a["volume_ml"] == b["volume_ml"]:
            assert a["confidence"] == pytest.approx(b["confidence"], rel=1e-6)


def test_a_gpu_tells_scores_that_are_not_finite():
    scores = torch.zeros(3, 2, 4, 4)
    scores[1, 1, 2, 2] = torch.nan
    total = export._gather_on_gpu(scores, probabilities=False)[0]
    assert not np.isfinite(total).all()


def waits(monkeypatch, work):
    """Return how often ``work`` asks for numbers, which on a GPU waits for all that is under way."""
    asked = []
    with monkeypatch.context() as patch:
        for name in ("cpu", "item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
            original = getattr(torch.Tensor, name)
            patch.setattr(
                torch.Tensor, name, lambda *args, original=original, **more: asked.append(1) or original(*args, **more)
            )
        work()
    return len(asked)


@pytest.mark.parametrize("gather", [lambda s: export._gather_on_gpu(s, False), lambda s: export._close(s, False)])
def test_a_gpu_is_waited_for_once_a_block_not_for_each_plane(monkeypatch, gather):
    numbers = [waits(monkeypatch, lambda depth=depth: gather(torch.zeros(3, depth, 6, 6))) for depth in (2, 20)]
    assert numbers == [1, 1]


@given(grid=grids, seed=seeds)
def test_fast_agrees_where_classes_are_blobs(grid, seed):
    frame = frame_of(*grid)
    logits = smooth_logits(np.random.default_rng(seed), frame.shape, background=3.0)
    fast = export_labels([logits], frame, IDS, "fast")
    assert (fast == stock_labels(logits, frame)).mean() > 0.999


def test_fast_finds_specks_that_win_only_between_the_voxels_of_the_network_grid():
    """Two classes win at every other voxel, a third is second everywhere: halfway between, it is the best."""
    frame = frame_of((1.0, 1.0, 1.0), (3.0, 3.0, 3.0), (30, 30, 30), ((0, 30), (0, 30), (0, 30)))
    logits = torch.full((4, *frame.shape), -20.0)
    logits[0] = 0
    even = torch.arange(4) % 2 == 0
    logits[1, 5, 5, 3:7], logits[2, 5, 5, 3:7] = torch.where(even, 9.0, 3.0), torch.where(even, 3.0, 9.0)
    logits[3, 5, 5, 3:7] = 7.5
    fast = export_labels([logits], frame, IDS, "fast")
    assert (logits.argmax(0) != 3).all() and (fast == IDS[3]).any()
    np.testing.assert_array_equal(fast, stock_labels(logits, frame))


def test_pruning_leaves_work_out(rng, monkeypatch):
    """In a clear-cut volume only the surroundings of the object are resampled."""
    frame = frame_of((2.0, 1.0, 1.0), (2.0, 2.0, 2.0), (20, 200, 200), ((0, 20), (0, 200), (0, 200)))
    logits = torch.zeros(3, *frame.shape)
    logits[0], logits[1:], logits[1, 5:9, 40:50, 40:50] = 5, -5, 20
    seen = []
    original = Resampling.sections
    monkeypatch.setattr(Resampling, "sections", lambda s, a, z, yx: seen.append((z, *yx)) or original(s, a, z, yx))
    labels = export_labels([logits], frame, [0, 1, 2], "exact")
    assert labels.any()
    computed = sum(np.prod([b - a for a, b in box]) for box in seen)
    assert 0 < computed < 0.5 * labels.size


@given(orientation=orientations, seed=seeds)
def test_any_orientation_gets_its_own_grid(orientation, seed):
    plain = Volume(np.zeros((9, 12, 14), np.int16), Geometry((14, 12, 9), (1.2, 1.1, 3.0), direction=RAS))
    stored = turned(plain, *orientation)
    crop, spacing = ((0, 9), (1, 12), (0, 13)), (2.5, 1.5, 1.5)
    frames = [Frame(v.geometry, canonical(v).geometry, crop, spacing) for v in (plain, stored)]
    logits = smooth_logits(np.random.default_rng(seed), frames[0].shape)
    expected, labels = (export_labels([logits], f, IDS) for f in frames)
    assert labels.shape == stored.array.shape
    np.testing.assert_array_equal(canonical(Volume(labels, stored.geometry)).array, expected)


def test_rows(rng):
    frame = frame_of((3.0, 1.1, 1.2), (2.5, 1.5, 1.5))
    logits = smooth_logits(rng, frame.shape)
    logits[3] = -50
    ids = dict(zip(NAMES, IDS[1:], strict=True))
    result = to_prediction(logits, frame, NAMES, ids)
    for row in result.rows[:2]:
        assert row["volume_ml"] == pytest.approx((result.labels == ids[row["class"]]).sum() * 3.0 * 1.1 * 1.2 / 1000)
        assert 0 < row["confidence"] <= 1
    assert result.rows[2] == {"class": "c", "volume_ml": 0.0, "confidence": None}
    same = to_prediction(logits.softmax(0), frame, NAMES, ids, probabilities=True)
    assert [r["confidence"] for r in same.rows] == pytest.approx([r["confidence"] for r in result.rows])


def test_confidence_is_the_mean_probability_where_a_class_wins(rng):
    logits = smooth_logits(rng, (12, 14, 16), sigma=1.0)
    gathered = Tally(4)
    for block in logits.split(5, 1):
        gathered.add(block)
    confidence = gathered.confidence()
    probability, winner = logits.softmax(0).max(0)
    for channel in range(4):
        assert confidence[channel] == pytest.approx(probability[winner == channel].mean().item(), abs=1e-6)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(CaseError, match="not finite"):
        Tally(2).add(torch.full((2, 2, 2, 2), torch.nan))


def test_network_grid_may_be_the_images(rng):
    assert target_shape((4, 5, 6), (1, 1, 1), (1, 1, 1)) == (4, 5, 6)
    frame = frame_of((2.0, 2.0, 2.0), (2.0, 2.0, 2.0))
    logits = smooth_logits(rng, frame.cropped_shape)
    np.testing.assert_array_equal(export_labels([logits], frame, IDS), stock_labels(logits, frame))
