"""A classifier of axial slices: is this slice part of the abdomen? (Mao et al., FLARE 2023, section 2.2)

A ResNet-18 looks at one slice at a time. Training shares :func:`build_classifier` and :func:`slice_inputs`, so that
the two cannot drift apart.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from labelloop.base.documents import read_json, validated
from labelloop.base.errors import CaseError
from labelloop.base.files import digest
from labelloop.images.volume import Volume
from labelloop.inference.engine import choose_device
from labelloop.inference.prepare import Prepared, prepare_image
from labelloop.inference.settings import ENGINE_VERSION, SliceInput
from labelloop.inference.stages import Counted, stage
from labelloop.networks.network import check_weights, load_network
from labelloop.networks.plans import CtNormalization, Plan

log = logging.getLogger(__name__)

KIND = "slice_classifier"
THRESHOLD = 0.5
"""A slice with at least this probability is part of the abdomen."""
SLICES_AT_ONCE = 16


class SliceModelFile(BaseModel):
    """What inference reads of the ``model.json`` of a slice classifier."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    kind: Literal["slice_classifier"]
    plan: Plan
    input: SliceInput
    weights_sha256: str


class SliceClassifier:
    """A loaded slice classifier. It segments nothing: it only finds slices.

    Raises:
        UserError: when the folder is incomplete, or the weights are not the ones ``model.json`` names.
    """

    class_ids: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, folder: str | Path, device: str = "auto"):
        path, weights = Path(folder) / "model.json", Path(folder) / "weights.pt"
        self.model = validated(SliceModelFile, read_json(path), path)
        check_weights(weights, self.model.weights_sha256)
        network = load_network(build_classifier, weights)
        self.device = choose_device(device)
        self.network = network.to(self.device).eval()
        log.info("model %s: slice classifier on %s", self.model.name, self.device)

    @property
    def plan(self) -> Plan:
        """Plan by which images are prepared."""
        return self.model.plan

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all, besides the image, that the slices found depend on."""
        about = [self.plan.images, self.model.input.model_dump(mode="json")]
        return digest([ENGINE_VERSION, self.model.weights_sha256, *about])

    def prepare(self, volume: Volume, modality: str) -> Prepared:
        """Bring a volume to the network grid. Raises CaseError for MR, which has no Hounsfield units to window."""
        if modality != "CT":
            found = f"slice classifier {self.model.name} windows Hounsfield units; {modality} has none"
            raise CaseError("modality", "", found, "Locate by a model that segments.", common=True)
        with stage("prepare"):
            return prepare_image(volume, self.plan, modality)

    def find(self, prepared: Prepared) -> np.ndarray:
        """Return for each plane of the network grid whether it is part of the abdomen, bool [z]."""
        with stage("network"):
            probabilities = classify(
                Counted(self.network), prepared.array[0], self.plan.ct_of(), self.model.input, self.device
            )
        return probabilities >= THRESHOLD


def is_slice_classifier(folder: str | Path) -> bool:
    """Whether a model folder holds a slice classifier; anything else is left to the engine to judge."""
    try:
        return json.loads((Path(folder) / "model.json").read_text(encoding="utf-8")).get("kind") == KIND
    except (OSError, json.JSONDecodeError):
        return False


def build_classifier() -> nn.Module:
    """Return an untrained ResNet-18 (He et al. 2016) with two outputs: elsewhere, abdomen."""
    from torchvision.models import resnet18

    return resnet18(weights=None, num_classes=2)


@torch.inference_mode()
def classify(
    network: Callable[[Tensor], Tensor], array: np.ndarray, ct: CtNormalization, view: SliceInput, device: torch.device
) -> np.ndarray:
    """Return the probability of each axial plane of ``array`` [z, y, x] to be part of the abdomen, float32 [z].

    Args:
        array: a prepared image, normalized by ``ct``; anything that gives numpy arrays for slices.
    """
    parts = []
    for start in range(0, array.shape[0], SLICES_AT_ONCE):
        planes = torch.from_numpy(np.ascontiguousarray(array[start : start + SLICES_AT_ONCE])).to(device)
        logits = network(slice_inputs(planes, ct, view)).float()
        parts.append(logits.softmax(1)[:, 1].cpu())
    return torch.cat(parts).numpy()


def slice_inputs(planes: Tensor, ct: CtNormalization, view: SliceInput, placement: Tensor | None = None) -> Tensor:
    """Return what the network sees of ``planes`` [n, y, x], normalized by ``ct``: [n, 3, size, size] from -1 to 1.

    The window of Hounsfield units is stretched to the whole range, the slice to a square; the three channels are equal.

    Args:
        placement: [n, 2, 3], where each slice is looked at, as ``affine_grid`` has it; default: the whole of it.
    """
    hounsfield = planes * ct.std + ct.mean
    windowed = ((hounsfield - view.level_hu) / view.width_hu + 0.5).clamp(0, 1)
    if placement is None:
        placement = torch.eye(2, 3, device=planes.device).expand(len(planes), 2, 3)
    grid = functional.affine_grid(placement, [len(planes), 1, view.size, view.size], align_corners=False)
    squares = functional.grid_sample(windowed[:, None], grid, padding_mode="border", align_corners=False)
    return (squares * 2 - 1).expand(-1, 3, -1, -1)
