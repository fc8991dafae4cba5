"""nnU-Net's trainer as a job describes it: network, optimizer, loss and loaders, without its folders and its loop."""

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor

from labelloop.base.classes import IGNORED
from labelloop.base.errors import UserError
from labelloop.base.precision import DTYPES, Precision
from labelloop.base.sequences import flat
from labelloop.cases.annotation import PRESENT, UNKNOWN, States, annotated
from labelloop.training.cpu import by_onednn
from labelloop.training.distributed import Team
from labelloop.training.initial import start_from
from labelloop.training.intensity import RandomIntensityTransform
from labelloop.training.job import TrainingCase, TrainingJob, mirror_axes_of
from labelloop.training.loading import Channels, PreparedDataset
from labelloop.training.losses import LossTerms, ReproducibleCrossEntropy
from labelloop.training.sampling import Chooser, Loader, streams
from labelloop.training.settings import SegmenterSettings

log = logging.getLogger(__name__)
SPATIAL = (SpatialTransform, Convert2DTo3DTransform)
"""What nnU-Net's augmentation begins with. It takes flat patches for planes, turns these, and makes them 3-D again."""


class Adapter(nnUNetTrainer):
    """nnU-Net's trainer with ``job`` and ``cases`` set from outside: nnU-Net forbids a constructor of our own."""

    job: TrainingJob
    cases: dict[str, tuple[TrainingCase, ...]]
    precision: Precision
    deterministic: bool
    team: Team
    """The processes that share the batches."""
    streams: dict[str, Chooser | None]
    """What :meth:`choosers` returns."""
    ignored: int | None = None
    """Number in targets of voxels of which nobody knows the class; None where no label map has any."""

    @property
    def settings(self) -> SegmenterSettings:
        """The settings of the training."""
        return self.job.segmenter

    def add_networks(self) -> None:
        """Add what a kind of training needs beside ``network``; called once that is built."""
        raise NotImplementedError

    def choosers(self) -> dict[str, Chooser | None]:
        """Return the streams of training batches, and how each chooses its cases; None: any cases."""
        settings = self.settings
        if settings.sampling == "uniform":
            return {"train": None}
        return dict(streams(self.cases["train"], self.job.classes, settings.sampling, settings.favor, self.batch_size))

    def initialize(self) -> None:
        """Build network, optimizer and loss: nnU-Net's, without its look-up of data folders."""
        self._set_batch_size_and_oversample()
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        self.network = self.new_network()
        if self.job.init_from:
            bias, job = self.settings.new_class_bias or 0.0, self.job
            start_from(bare(self.network), self.job.init_from, job.classes, bias, job.start_names)
        self.add_networks()
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.loss = self._build_loss()
        self._unknown = {c.case: self._unknown_channels(c.states) for c in flat(self.cases.values())}
        self.was_initialized = True

    def new_network(self) -> torch.nn.Module:
        """Return a network of the plan, initialized from torch's generator."""
        network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        )
        return self.compiled(by_onednn(network).to(self.device).to(memory_format=self._memory_format))

    @property
    def _memory_format(self) -> torch.memory_format:
        """Channels last on CPUs: a training step then takes a quarter less time."""
        return torch.channels_last_3d if self.device.type == "cpu" else torch.preserve_format

    def compiled(self, network: torch.nn.Module) -> torch.nn.Module:
        """Return the network compiled, where nnU-Net would."""
        # type: torch's stub says that a function comes back; of a module, a module does
        return torch.compile(network) if self._do_i_compile() else network  # type: ignore[return-value]

    # --- what differs from nnU-Net's methods of the same name

    def print_to_log_file(self, *args, also_print_to_console=True, add_timestamp=True) -> None:
        log.debug(" ".join(map(str, args)))

    def _do_i_compile(self) -> bool:
        return not self.deterministic and super()._do_i_compile()

    def configure_optimizers(self):
        settings = self.settings
        weights = flat(network.parameters() for network in self.trained)
        optimizer: torch.optim.Optimizer
        if settings.optimizer == "adamw":
            optimizer = torch.optim.AdamW(weights, settings.learning_rate, weight_decay=settings.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                weights,
                settings.learning_rate,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
                nesterov=settings.momentum > 0,
            )
        return optimizer, PolyLRScheduler(optimizer, settings.learning_rate, settings.epochs, settings.poly_exponent)

    def _build_loss(self):
        loss = super()._build_loss()
        if not self.enable_deep_supervision:
            loss = DeepSupervisionWrapper(loss, (1.0,))
        elif self.settings.deep_supervision == "all_outputs":
            weights = [0.5**level for level in range(len(loss.weight_factors))]
            loss.weight_factors = tuple(weight / sum(weights) for weight in weights)
        loss.loss.ce.weight = self._class_weights()
        if self.deterministic and self.device.type == "cuda":
            loss.loss.ce = ReproducibleCrossEntropy(loss.loss.ce.weight)
        loss.loss = self.loss_of(loss.loss)
        self._terms = LossTerms(loss.loss, tuple(weight for weight in loss.weight_factors if weight))
        return loss

    def loss_of(self, loss: torch.nn.Module) -> torch.nn.Module:
        """Return the loss of one output, made from nnU-Net's Dice and cross-entropy."""
        return loss

    def _class_weights(self) -> Tensor | None:
        weights = self.settings.class_weights
        if not weights:
            return None
        self._known(weights, "class_weights")
        return torch.tensor([1.0] + [weights.get(name, 1.0) for name in self.job.classes], device=self.device)

    def _known(self, names: Iterable[str], key: str) -> None:
        for name in names:
            if name not in self.job.classes:
                raise UserError(f"model {self.job.name}: {key}: {name!r} is none of {', '.join(self.job.classes)}")

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):  # noqa: N802
        rotation, dummy_2d, initial_patch, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return rotation, dummy_2d, initial_patch, mirror_axes_of(self.job)

    def get_dataloaders(self) -> dict[str, Loader]:
        """Return the loader of each training stream, and of validation if it has cases and iterations."""
        scales = self._get_deep_supervision_scales()
        rotation, dummy_2d, initial_patch, mirror = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        augment = plain = self.get_validation_transforms(scales)
        first_patch = patch = list(self.job.plan.patch)
        if self.settings.augmentation == "nnunet":
            first_patch = initial_patch
            augment = self.get_training_transforms(patch, rotation, scales, mirror, dummy_2d)
            _do_not_time_blurs(augment)
        augment = self._with_other_intensities(augment)
        loaders = {
            stream: self._loader("train", first_patch, augment, choose=choose, **self.loader_options())
            for stream, choose in self.streams.items()
        }
        if self.cases["validation"] and self.settings.validation_iterations:
            loaders["validation"] = self._loader("validation", patch, plain)
        return loaders

    def _with_other_intensities(self, transforms: Any) -> Any:
        """Add the transform of ``random_intensity``: behind the spatial ones: it sees the patch alone, in 3-D."""
        settings = self.settings.random_intensity
        if not settings:
            return transforms
        listed = transforms.transforms
        behind = max((i for i, one in enumerate(listed, start=1) if isinstance(one, SPATIAL)), default=0)
        return ComposeTransforms([*listed[:behind], RandomIntensityTransform(settings), *listed[behind:]])

    def loader_options(self) -> dict[str, Any]:
        """Return what the loaders of training batches are told besides."""
        favor = self.settings.favor
        if not favor:
            return {"favored": None}
        self._known([favor.name], "favor.name")
        return {"favored": (self.job.classes.index(favor.name) + 1, favor.drop_others)}

    def _loader(self, split: str, first_patch: list[int], transforms: Any, **options) -> Loader:
        crop = self.settings.crop_z_mm
        margin = None if crop is None else [math.ceil(crop / side) for side in self.job.plan.spacing_mm]
        channels = {c.case: self.channels_of(c.states) for c in self.cases[split]}
        return Loader(
            PreparedDataset(self.job.images, self.job.labels, channels, margin),
            self.batch_size,
            first_patch,
            list(self.job.plan.patch),
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            transforms=transforms,
            share=self.team.share,
            **options,
        )

    def on_device(self, batch: dict[str, Any]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return images, targets and unknown channels of a batch as :meth:`compute_loss` takes them, on the device.

        They are those of the whole batch, also where several processes have made it.
        """
        total = len(batch["keys"])
        data, *targets = (
            self.team.join(part.to(self.device, non_blocking=True), total)
            for part in (batch["data"], *_as_list(batch["target"]))
        )
        data = data.to(memory_format=self._memory_format)
        unknown = torch.stack([self._unknown[key] for key in batch["keys"]])
        if self.device.type == "cuda":
            unknown = unknown.pin_memory()  # else the copy waits for all that the GPU still has to do
        return data, targets, [unknown.to(self.device, non_blocking=True)] * len(targets)

    def logits_of(self, network: torch.nn.Module, data: Tensor) -> list[Tensor]:
        """Return the logits of a network in full precision, one tensor per deep-supervision output.

        Several processes compute a share of the samples each, and all return the logits of all.
        """
        with torch.autocast(self.device.type, DTYPES.get(self.precision), enabled=self.precision in DTYPES):
            logits = _as_list(network(data[self.team.share(len(data))]))
        return [self.team.join(output, len(data)).float() for output in logits]

    def channels_of(self, states: States) -> Channels:
        """Return the channels of a case with ``states``: of what is present, and what ignored voxels are.

        A label map may hold voxels of a class that selection demoted to absent or unknown. Of an unlabeled case: none.
        """
        numbered = enumerate(self.job.classes, start=1)
        present = {self.job.class_ids[n]: i for i, n in numbered if states.get(n) == PRESENT}
        if self.ignored is None or not annotated({name: states.get(name, UNKNOWN) for name in self.job.classes}):
            return present
        return present | {IGNORED: self.ignored}

    def _unknown_channels(self, states: States) -> Tensor:
        return torch.tensor([False] + [states.get(name, UNKNOWN) == UNKNOWN for name in self.job.classes])


def bare(network: torch.nn.Module) -> torch.nn.Module:
    """Return a network without the wrapper of ``torch.compile``."""
    return getattr(network, "_orig_mod", network)


def _do_not_time_blurs(transforms: Any) -> None:
    """Stop nnU-Net's blur from choosing its algorithm by a stopwatch: results would differ between runs."""
    for transform in transforms.transforms:
        inner = getattr(transform, "transform", None)
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False


def _as_list(value: Tensor | list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]
