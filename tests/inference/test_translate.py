"""The translator's networks, its use on whole volumes, and the check that labels still fit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_body import GRID, draw, stored
from torch import nn

from labelloop.base.errors import CaseError
from labelloop.images.volume import Volume
from labelloop.inference import translate as translate_module
from labelloop.inference.structure import structure_fit
from labelloop.inference.translate import translate
from labelloop.inference.windows import Window
from labelloop.networks.generator import Discriminator, Generator
from labelloop.networks.settings import TranslatorSettings


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_published_networks_have_the_published_size():
    """He, Table 2: 90.32 million parameters, two generators and two discriminators."""
    s = TranslatorSettings()
    with torch.device("meta"):
        total = 2 * parameters(Generator(s.features, s.blocks)) + 2 * parameters(Discriminator(s.features, s.layers))
    assert total == 90_318_724


@pytest.mark.parametrize("settings", [TranslatorSettings(), TranslatorSettings(patch=(16, 32, 32), layers=2)])
def test_shapes(settings):
    with torch.device("meta"):
        image = torch.empty(1, 1, *settings.patch)
        assert Generator(settings.features, settings.blocks)(image).shape == image.shape
        verdict = Discriminator(settings.features, settings.layers)(image)
    assert verdict.shape[:2] == (1, 1) and all(
        1 <= n < p for n, p in zip(verdict.shape[2:], settings.patch, strict=True)
    )


def test_patches_that_the_generators_cannot_halve_are_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        TranslatorSettings(patch=(48, 158, 160))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_patches_that_the_discriminators_cannot_halve_are_refused(layers):
    least = -(-3 * 2**layers // 4) * 4
    settings = TranslatorSettings(patch=(least,) * 3, layers=layers)
    assert Discriminator(2, settings.layers)(torch.zeros(1, 1, *settings.patch)).numel() > 0
    if least > 8:
        with pytest.raises(ValueError, match="discriminators"):
            TranslatorSettings(patch=(least - 4, least, least), layers=layers)


@pytest.mark.parametrize("shape", [(20, 33, 41), (5, 50, 16), (16, 16, 16)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_an_identity_returns_what_it_is_given(shape, overlap):
    image = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    assert np.allclose(translate(nn.Identity(), image, (16, 16, 16), overlap), image, atol=1e-5)


def test_what_lies_beyond_the_volume_is_black():
    """A network that answers with the mean of its window sees how a small volume was surrounded."""

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3, 4), keepdim=True).expand_as(x)

    small = translate(Mean(), np.ones((8, 16, 16), np.float32), (16, 16, 16))
    assert small == pytest.approx(np.zeros((8, 16, 16)), abs=1e-3)


@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
def test_labels_fit_their_image_in_any_contrast(orientation):
    image, label = (stored(v, orientation) for v in draw())
    inverted = Volume(255 - image.array, image.geometry)
    assert structure_fit(image, label).fits
    assert structure_fit(inverted, label).fits
    assert structure_fit(image, label).information == pytest.approx(
        structure_fit(inverted, label).information, abs=0.01
    )


def test_invented_anatomy_is_noticed():
    image, label = draw()
    other = draw(shift=(0, 0, 24))[0]
    noise = Volume(np.random.default_rng(0).uniform(0, 255, image.array.shape).astype(np.float32), GRID)
    assert not structure_fit(other, label).fits
    assert structure_fit(noise, label).information < 0.05 < structure_fit(image, label).information


def test_labels_of_another_grid_and_empty_ones_are_refused():
    image, label = draw()
    with pytest.raises(CaseError, match="label_empty"):
        structure_fit(image, Volume(np.zeros_like(label.array), GRID))
    with pytest.raises(CaseError, match="label_grid"):
        structure_fit(image, stored(label, "RAS"))


def test_windows_are_added_up_in_ram_where_the_gpu_has_no_room(monkeypatch):
    """The first try, on the device of the network, runs out of memory."""
    tried = []
    original = translate_module.slide_blocks

    def crowded(network, image, window):
        tried.append(image.device)
        if len(tried) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(network, image, window)

    class Elsewhere(nn.Identity):
        """An identity that says it is on another device than the CPU."""

        def parameters(self, recurse=True):
            yield SimpleNamespace(device=torch.device("meta"))

    monkeypatch.setattr(translate_module, "slide_blocks", crowded)
    monkeypatch.setattr(translate_module, "Window", lambda *a, device, **k: Window(*a, **k))
    image = np.zeros((16, 16, 16), np.float32)
    assert np.array_equal(translate(Elsewhere(), image, (16, 16, 16)), image)
    assert tried == [torch.device("meta"), torch.device("cpu")]
