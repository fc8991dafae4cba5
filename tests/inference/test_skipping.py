"""Windows are skipped where nothing is, and what is skipped is background."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_prepare import random_volume
from tiny_nnunet import configuration, save_nnunet
from torch import nn

from labelloop.images.volume import Volume
from labelloop.inference.engine import Predictor
from labelloop.inference.nnunet import import_nnunet
from labelloop.inference.settings import CenterFirst, ProbeFirst, Settings
from labelloop.inference.skipping import skipping_walk
from labelloop.inference.windows import Window, slide_blocks, window_starts

PATCH = (8, 8, 8)
SPACING = (2.0, 1.0, 1.0)
CLASSES = ("liver", "aorta")


class Bright(nn.Module):
    """Calls bright voxels liver, very bright ones aorta, and counts its windows."""

    def __init__(self):
        super().__init__()
        self.windows = 0

    def forward(self, x):
        self.windows += len(x)
        return torch.cat([torch.full_like(x, 5.0), 10 * (x > 1) * (x < 3), 10.0 * (x > 3)], 1).float()


def run(image, skip, step=0.5):
    network = Bright()
    walk = skipping_walk(skip, image.shape, PATCH, step, SPACING, CLASSES)
    logits = torch.cat(list(slide_blocks(network, image[None], Window(PATCH, 3, step), walk)), 1)
    assert logits.shape == (3, *image.shape) and torch.isfinite(logits).all()
    return logits.argmax(0), network.windows


def scene(side, box, value=2.0, depth=40):
    image = torch.zeros(depth, side, side)
    image[box] = value
    return image


@pytest.mark.parametrize("side", [12, 16, 20])  # 2 x 2, 3 x 3 and 4 x 4 windows
def test_probe_first_saves_windows_and_keeps_what_the_probes_see(side):
    middle = slice(side // 2 - 2, side // 2 + 2)
    image = scene(side, (slice(10, 20), middle, middle))
    expected, every = run(image, None)
    labels, computed = run(image, ProbeFirst(min_foreground_ml=0.002))
    torch.testing.assert_close(labels, expected)
    assert computed < 0.8 * every


def test_probe_first_wants_all_probes_to_be_empty():
    """2 x 2 windows: an object in one diagonal window only is enough to compute the others."""
    image = scene(12, (slice(18, 22), slice(9, 12), slice(9, 12)))
    image[20, 1, 10] = 2.0  # seen by a window off the diagonal only
    labels, _ = run(image, ProbeFirst(min_foreground_ml=0.002))
    assert labels[20, 1, 10] == 1
    lonely = scene(12, (slice(20, 21), slice(1, 2), slice(10, 11)))
    assert run(lonely, None)[0].any() and not run(lonely, ProbeFirst(min_foreground_ml=0.002))[0].any()


def test_low_volumes_and_single_columns_are_computed_whole():
    image = scene(12, (slice(2, 4), slice(0, 2), slice(10, 12)), depth=12)
    levels = len(window_starts(image.shape, PATCH, 0.5)[0])
    skip = ProbeFirst(min_foreground_ml=1e6, min_levels=levels + 1)
    assert run(image, skip)[1] == run(image, None)[1]
    assert run(image, skip.model_copy(update={"min_levels": levels}))[1] < run(image, None)[1]
    column = scene(8, (slice(2, 4), slice(0, 2), slice(6, 8)))
    assert run(column, ProbeFirst(min_foreground_ml=1e6))[1] == run(column, None)[1]


def test_threshold_is_a_volume():
    """4 voxels of 2 x 1 x 1 mm are 0.008 ml."""
    image = scene(16, (slice(4, 5), slice(7, 9), slice(7, 9)))
    image[4, 2, 2] = 2.0  # outside the center window's reach
    for ml, found in ((0.0079, True), (0.0081, False)):
        labels, _ = run(image, ProbeFirst(min_foreground_ml=ml, min_levels=1))
        assert bool(labels[4, 2, 2]) is found


def test_center_first_skips_the_next_level_too():
    image = scene(16, (slice(0, 0),) * 3)
    levels = len(window_starts(image.shape, PATCH, 0.5)[0])
    labels, computed = run(image, CenterFirst())
    assert computed == -(-levels // 2) and not labels.any()


def test_center_first_keeps_what_is_around_a_full_center():
    image = scene(16, (slice(0, 40), slice(2, 14), slice(2, 14)))
    expected, every = run(image, None)
    labels, computed = run(image, CenterFirst(min_foreground_ml=0.01))
    torch.testing.assert_close(labels, expected)
    assert computed == every == 9 * len(window_starts(image.shape, PATCH, 0.5)[0])


def test_center_first_looks_no_further_than_three_windows():
    image = scene(40, (slice(0, 40), slice(0, 40), slice(0, 40)))
    labels, _ = run(image, CenterFirst(min_foreground_ml=0.01))
    covered = torch.zeros_like(labels)
    covered[:, 12:28, 12:28] = 1
    torch.testing.assert_close(labels, covered)


@pytest.mark.parametrize(("reaches", "windows"), [(slice(4, 12), 3), (slice(6, 10), 1), (slice(4, 10), 2)])
def test_a_tube_is_followed_where_it_leaves_the_center(reaches, windows):
    """The center window of a level spans rows 4 to 11; only aorta in it."""
    image = scene(16, (slice(0, 40), reaches, slice(7, 9)), value=4.0)
    levels = len(window_starts(image.shape, PATCH, 0.5)[0])
    skip = CenterFirst(min_foreground_ml=0.001, edge_mm2=20.0)
    assert run(image, skip)[1] == windows * levels
    assert run(image, skip.model_copy(update={"tubes": ()}))[1] == 9 * levels


@pytest.mark.parametrize("skip", [ProbeFirst(min_levels=1, min_foreground_ml=1e9), CenterFirst(min_foreground_ml=1e9)])
def test_predictor_with_nothing_but_skipped_windows_around_the_probes(model_folder, rng, skip):
    volume = random_volume(rng, (40, 60, 60), (2.5, 1.5, 1.5))
    predictor = Predictor(model_folder, "cpu", Settings(skip=skip))
    result = predictor.predict(volume, "CT")
    outside = np.ones(volume.array.shape, bool)
    outside[:, 12:48, 12:48] = False
    assert result.labels.any() and not result.labels[outside].any()
    assert predictor.fingerprint != Predictor(model_folder, "cpu").fingerprint


def test_no_window_is_skipped_where_levels_do_not_lie_above_each_other(tmp_path, rng):
    """A model of nnU-Net's sees the axes as the file stores them: here, the last one goes up the patient."""
    model = import_nnunet(save_nnunet(tmp_path, configuration()), tmp_path / "home")
    skip = ProbeFirst(min_levels=1, min_foreground_ml=1e9)
    axial = random_volume(rng, (24, 36, 36), (2.5, 1.5, 1.5))
    sagittal = Volume(axial.array, replace(axial.geometry, direction=(0.0, 0, -1.0, 0, 1.0, 0, 1.0, 0, 0)))
    skipping, whole = (Predictor(model, "cpu", Settings(skip=asked)) for asked in (skip, None))
    same = [np.array_equal(skipping.predict(v, "CT").labels, whole.predict(v, "CT").labels) for v in (axial, sagittal)]
    assert same == [False, True]
