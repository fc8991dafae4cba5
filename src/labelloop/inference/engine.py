"""One model on one volume: load a model folder, compute logits, export the label map."""

import copy
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from labelloop.base.classes import BACKGROUND, IGNORED
from labelloop.base.documents import read_json, validated
from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import digest
from labelloop.base.heartbeat import counted
from labelloop.base.precision import DTYPES, choose_precision
from labelloop.images.volume import Volume
from labelloop.inference.budget import ALONE, MIB, Budget, Choice, Held, Sizes, best_batch, choices
from labelloop.inference.cpu import OneDnnConv, channels_last, keep_freed_memory
from labelloop.inference.export import Prediction, to_prediction
from labelloop.inference.out_of_memory import first_that_fits, free_mb
from labelloop.inference.prepare import Frame, Prepared, prepare_image
from labelloop.inference.settings import ENGINE_VERSION, MirrorAxes, Settings, Skip
from labelloop.inference.skipping import skipping_walk
from labelloop.inference.stages import Counted, stage, staged
from labelloop.inference.windows import Window, padding, slide_blocks, step_for
from labelloop.networks.network import build_network, check_weights, load_network
from labelloop.networks.nnunet_plan import parse_plan
from labelloop.networks.plans import Plan

log = logging.getLogger(__name__)
Network = TypeVar("Network", bound=torch.nn.Module)
ALL_LOGITS = Held(logits=1)


class ModelFile(BaseModel):
    """What inference reads of a ``model.json``; other keys (training data, versions) are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    classes: tuple[str, ...]
    class_ids: dict[str, int]
    plan: Plan
    weights_sha256: str
    mirror_axes: MirrorAxes = ()

    @field_validator("plan", mode="before")
    @classmethod
    def _of_its_kind(cls, plan: Any) -> Any:
        return parse_plan(plan) if isinstance(plan, dict) else plan

    @model_validator(mode="after")
    def _consistent(self) -> "ModelFile":
        missing = [c for c in self.classes if not BACKGROUND < self.class_ids.get(c, BACKGROUND) < IGNORED]
        if missing or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be unique, with ids from 1 to 254; at fault: {missing or self.classes}")
        ids = [self.class_ids[name] for name in self.classes]
        if len(set(ids)) != len(ids):
            raise ValueError(f"several classes have one id: {dict(zip(self.classes, ids, strict=True))}")
        return self


class Predictor:
    """A loaded model.

    Args:
        model_folder: holds ``model.json`` and ``weights.pt``.
        device: ``auto`` (CUDA if there is one), or what torch accepts.
        budget: memory that must be kept; it changes no decision, only how much is done at a time. Without one, a GPU's
            free memory decides, and what does not fit after all is tried again with less.
        deterministic: equal runs give equal bytes on a GPU, too: as many windows at a time as the settings say, and
            convolutions by cuDNN's reproducible algorithms instead of the fastest.

    Raises:
        UserError: when the folder is incomplete, or the weights are not the ones ``model.json`` names.
    """

    def __init__(
        self,
        model_folder: str | Path,
        device: str = "auto",
        settings: Settings | None = None,
        budget: Budget | None = None,
        deterministic: bool = False,
    ):
        folder = Path(model_folder)
        self.settings, self.budget = settings or Settings(), budget or Budget()
        self.model = read_model(folder)
        self.device, self._deterministic = choose_device(device), deterministic
        self._dtype = _choose_dtype(self.settings, self.device)
        weights = folder / "weights.pt"
        check_weights(weights, self.model.weights_sha256)
        network = load_network(lambda: build_network(self.plan, len(self.classes) + 1), weights)
        network = network.to(self.device).eval()
        self.network = cast_weights(channels_last(network) if self.device.type == "cpu" else network, self._dtype)
        if self.device.type == "cuda":  # all windows have one shape
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
            torch.backends.cudnn.allow_tf32 = False  # who asks for fp32 means its 24 bits, not 11
        if self.device.type == "cpu" and self.budget.max_ram_mb is None:
            keep_freed_memory()
        log.info("model %s: %d classes on %s", self.model.name, len(self.classes), self.device)

    @property
    def plan(self) -> Plan:
        """Plan of the model."""
        return self.model.plan

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that the model labels: not CT, if it knows CT in the look of MR only."""
        return ("MR",) if self.plan.translate else ("CT", "MR")

    @property
    def upright(self) -> bool:
        """Whether the model knows upright patients only."""
        return self.plan.upright

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in channel order, background left out."""
        return self.model.classes

    @property
    def class_ids(self) -> dict[str, int]:
        """Id of each class in label maps."""
        return {c: self.model.class_ids[c] for c in self.classes}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all, besides the image, that a prediction depends on."""
        settings = self.settings.model_dump(mode="json")
        plan = self.plan.model_dump(mode="json")
        about = [ENGINE_VERSION, self.model.weights_sha256, plan, list(self.class_ids.items()), settings]
        exact = ["no TF32"] if self.device.type == "cuda" and self._dtype == torch.float32 else []
        return digest([*about, str(self._dtype), *exact])

    def with_settings(self, **changes) -> "Predictor":
        """Return a predictor with some settings changed; it shares the network.

        Raises:
            ValueError: for another precision, which the weights are in.
        """
        changed = copy.copy(self)
        changed.settings = Settings.model_validate({**self.settings.model_dump(), **changes})
        if _choose_dtype(changed.settings, self.device) != self._dtype:
            raise ValueError("the precision is chosen when a model is loaded")
        return changed

    def prepare(self, volume: Volume, modality: str) -> Prepared:
        """Bring a volume to the network grid. Models with equal ``plan.images`` can share the result.

        Raises:
            CaseError: for a CT, when the model learned from CTs that were translated.
        """
        if modality not in self.modalities:
            what, action = (
                f"model {self.model.name} learned from CT translated to MR, not from CT",
                "Use one that learned from CT.",
            )
            raise CaseError("modality", modality, what, action, common=True)
        with stage("prepare"):
            return prepare_image(volume, self.plan, modality)

    def logits(self, prepared: Prepared, held: Held = ALL_LOGITS) -> tuple[torch.Tensor, Choice]:
        """Return all logits [1 + classes, z, y, x] on the network grid, float32, and how they were computed.

        Raises:
            CaseError: when the memory budget does not allow it.
        """
        tried = self.choices(prepared.frame, prepared.stored_bytes, held)
        return first_that_fits(tried, lambda choice: (self._logits(prepared, choice), choice))

    def _logits(self, prepared: Prepared, choice: Choice) -> torch.Tensor:
        logits = torch.empty((len(self.classes) + 1, *prepared.array.shape[1:]), device=self._home(choice))
        start = 0
        for block in self.logit_blocks(prepared, choice):
            logits[:, start : start + block.shape[1]] = block
            start += block.shape[1]
        return logits

    def logit_blocks(self, prepared: Prepared, choice: Choice) -> Iterator[torch.Tensor]:
        """Yield the logits [1 + classes, planes, y, x] from the first plane to the last, as they are finished."""
        s, plan = self.settings, self.plan
        image = torch.from_numpy(prepared.array).to(self._home(choice))
        size = image.shape[1:]
        z, y, x = (n + sum(pad) for n, pad in zip(size, padding(size, plan.patch), strict=True))
        padded = (z, y, x)
        step = step_for(padded, plan.patch, s.step, s.many_windows)
        window = Window(
            plan.patch, len(self.classes) + 1, step, s.gaussian, s.mirror_axes, choice.batch, self._dtype,
            self.device,
        )  # fmt: skip
        skip = self._skip_of(prepared.frame)
        walk = skipping_walk(skip, padded, plan.patch, step, plan.spacing_mm, self.classes)
        return staged("network", _told(slide_blocks(Counted(self.network), image, window, walk), size[0]))

    def _skip_of(self, frame: Frame) -> Skip | None:
        """Return the test for windows that need not be computed; it goes from level to level along the first axis."""
        if self.settings.skip and frame.height_axis != 0:
            log.info("model %s sees another axis than z first: no window is skipped", self.model.name)
            return None
        return self.settings.skip

    def predict(self, volume: Volume, modality: str) -> Prediction:
        """Return the label map of ``volume`` on its stored grid, and volume and confidence of each class.

        Raises:
            ValueError: when the volume cannot be used, or the memory budget does not allow it.
        """
        return self.finish(self.begin(volume, modality))

    def begin(self, volume: Volume, modality: str) -> Prepared:
        """Return the prepared image; needs the CPU alone."""
        return self.prepare(volume, modality)

    def finish(self, begun: Prepared, held: Held = ALONE) -> Prediction:
        """Return what :meth:`predict` does, of an image that is prepared already; all logits are never held at once.

        Raises:
            ValueError: when the memory budget does not allow it.
        """
        return first_that_fits(self.choices(begun.frame, begun.stored_bytes, held), partial(self._predict, begun))

    def _predict(self, prepared: Prepared, choice: Choice) -> Prediction:
        blocks = self.logit_blocks(prepared, choice)
        mode, slab = self.settings.mode, choice.slab_voxels
        return to_prediction(blocks, prepared.frame, self.classes, self.class_ids, mode, slab_voxels=slab)

    def choices(self, frame: Frame, stored_bytes: int = 2, held: Held = ALONE) -> list[Choice]:
        """Return how a case is run within the memory budget, and what to fall back to.

        Raises:
            CaseError: when nothing fits.
        """
        stored = frame.stored.size[0] * frame.stored.size[1] * frame.stored.size[2]
        sizes = Sizes(stored, stored_bytes, frame.shape, len(self.classes) + 1, self.plan, held)
        gpu = self.device.type != "cpu"
        batch = self.settings.window_batch or best_batch(self.plan, gpu and not self._deterministic)
        free = free_mb(self.device)
        return choices(sizes, self.budget, gpu, batch, free if free is None else free + held.gpu_bytes / MIB)

    def _home(self, choice: Choice) -> torch.device:
        return self.device if choice.on_gpu else torch.device("cpu")


def _told(blocks: Iterator[torch.Tensor], planes: int) -> Iterator[torch.Tensor]:
    """Yield blocks [channel, planes, y, x], and count their planes for the signs of life."""
    with counted("plane", planes) as count:
        for block in blocks:
            count.done += block.shape[1]
            yield block


def softmax_(logits: torch.Tensor) -> torch.Tensor:
    """Turn logits [c, z, y, x] into probabilities in place, plane by plane: no second tensor of all classes."""
    for z in range(logits.shape[1]):
        logits[:, z] = logits[:, z].softmax(0)
    return logits


def read_model(folder: Path) -> ModelFile:
    """Read ``model.json``. Raises UserError when it is missing or cannot be understood."""
    path = Path(folder) / "model.json"
    if not path.is_file():
        theirs = "one of nnU-Net's plans.json, dataset.json and its folds"
        raise UserError(f"{path}: no such file; a trained model folder holds model.json and weights.pt, {theirs}")
    return validated(ModelFile, read_json(path), path)


def choose_device(device: str) -> torch.device:
    """Return the torch device for ``auto`` or a device name, a GPU with its number, and make that GPU the current one.

    Raises:
        UserError: when it is not usable here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"no device {device!r}; take auto, cpu, cuda, or cuda:1 for the second GPU") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU is usable here (see nvidia-smi); take the device cpu")
    if chosen.type != "cuda":
        return chosen
    number = chosen.index or 0
    if number >= torch.cuda.device_count():
        raise UserError(f"no device {device!r}: {torch.cuda.device_count()} GPUs are usable here, numbered from 0")
    torch.cuda.set_device(number)  # what libraries do on "the" GPU, pinned memory for one, is not to touch another
    return torch.device("cuda", number)


def cast_weights(network: Network, dtype: torch.dtype) -> Network:
    """Bring the weights of convolutions to ``dtype``, in place, as ``torch.autocast`` does anew for every pass.

    Norms stay in float32, as there; so does the head on a CPU (see ``OneDnnConv``).
    """
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if (
            isinstance(weight, torch.Tensor)
            and weight.ndim > 1
            and not (isinstance(module, OneDnnConv) and module.head)
        ):
            module.to(dtype)
    return network


def _choose_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    return DTYPES.get(choose_precision(settings.precision, device, on_cpu="fp32"), torch.float32)
