"""Give a CT the look of MR, window by window."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from labelloop.base.documents import read_json, validated
from labelloop.base.errors import UserError
from labelloop.base.sequences import flat
from labelloop.inference.out_of_memory import first_that_fits
from labelloop.inference.windows import Window, padding, slide_blocks
from labelloop.networks.generator import Generator
from labelloop.networks.network import check_weights, load_network
from labelloop.networks.settings import TranslatorSettings

BLACK = -1.0


def load_generator(folder: Path, device: torch.device | str = "cpu") -> tuple[Generator, TranslatorSettings]:
    """Return the generator from CT to MR of a finished translator, and the settings that it was trained with.

    Raises:
        UserError: when the folder holds no translator, or its weights are not those that were trained.
    """
    description = Path(folder) / "model.json"
    content = read_json(description) if description.is_file() else {}
    if content.get("kind") != "translator":
        raise UserError(f"{folder} holds no translator: its model.json is missing or tells of another kind of model")
    weights = Path(folder) / "weights.pt"
    check_weights(weights, str(content.get("weights_sha256")))
    settings = validated(TranslatorSettings, content.get("settings"), description)
    network = load_network(lambda: Generator(settings.features, settings.blocks), weights)
    return network.to(device).eval(), settings


@torch.inference_mode()
def translate(network: nn.Module, image: np.ndarray, patch: tuple[int, int, int], overlap: float = 0.5) -> np.ndarray:
    """Return the translation of a whole volume, float32 [z, y, x] from -1 to 1.

    Windows overlap and are blended with Gaussian weights, where the released code takes plain means. A volume
    smaller than a window is surrounded by black.

    Args:
        network: a generator, on the device that it is to run on.
        image: float32, as prepared by the plan of the translator, from -1 to 1: the same that training sees.
        patch: size of the windows (z, y, x), that of training.
        overlap: of neighboring windows, as a share of the patch.
    """
    first = next(network.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    pad = padding(image.shape, patch)
    padded = functional.pad(torch.from_numpy(image), flat(reversed(pad)), value=BLACK)
    window = Window(patch, outputs=1, step=1 - overlap, device=device)
    network.eval()

    def blocks(home: torch.device) -> list[torch.Tensor]:
        return [block.float().cpu() for block in slide_blocks(network, padded[None].to(home), window)]

    homes = list(dict.fromkeys([device, torch.device("cpu")]))  # where windows are added up
    whole = torch.cat(first_that_fits(homes, blocks), dim=1)[0]
    inner = tuple(slice(before, before + n) for (before, _), n in zip(pad, image.shape, strict=True))
    return whole[inner].clamp(BLACK, -BLACK).numpy()
