"""The training that all kinds share: nnU-Net's network, loss, augmentation and schedule in a loop of our own.

The loop is our own because nnU-Net's cannot be continued exactly, writes its checkpoints in place, and scores classes
that nobody annotated. A kind of training overrides :meth:`Trainer.why_not` (which cases it can use) and
:meth:`Trainer.compute_loss`; further networks go into :meth:`Trainer.state`.
"""

import contextlib
import io
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor

from labelloop.annotation import PRESENT
from labelloop.errors import UserError
from labelloop.training.job import TrainingCase, TrainingJob
from labelloop.training.loading import (
    Channels,
    Draw,
    PreparedDataset,
    iterate,
    random_state,
    restore_random_state,
    seed_of,
    set_random_state,
)
from labelloop.training.losses import LossTerms, drop_unknown
from labelloop.training.progress import Progress, dice_scores, draw_curve
from labelloop.training.settings import AXES
from labelloop.training.stock import CONFIGURATION, dataset_json, plans_json
from labelloop.training.work import Work

log = logging.getLogger(__name__)

LARGEST_GRADIENT_NORM = 12
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Trainer(nnUNetTrainer):
    """A training in progress; make one with :meth:`of`. (nnU-Net forbids a constructor of our own.)"""

    job: TrainingJob
    cases: dict[str, tuple[TrainingCase, ...]]
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "validation")

    @classmethod
    def why_not(cls, case: TrainingCase, job: TrainingJob) -> str | None:
        """Say why this kind of training cannot use ``case``; None if it can."""
        raise NotImplementedError

    def compute_loss(self, logits: list[Tensor], targets: list[Tensor], unknown: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            logits, targets: per deep-supervision output, finest first: [batch, channels, ...] and [batch, 1, ...].
            unknown: bool [batch, channels], classes that nobody looked for in a sample.
        """
        return self.loss(logits, targets)

    @classmethod
    def of(cls, job: TrainingJob) -> "Trainer":
        """Return the trainer of ``job``, ready to :meth:`fit`.

        Raises:
            UserError: when no case can be trained on, or the device cannot do what is asked.
        """
        device = resolve_device(job.device)
        cases = usable_cases(cls, job)
        plans = plans_json(job.name, job.plan) | {"continue_training": False}
        with _nnunet_folders_elsewhere(), contextlib.redirect_stdout(io.StringIO()):
            trainer = cls(plans, CONFIGURATION, 0, dataset_json(job.classes, len(cases["train"])), device)
        trainer.job, trainer.cases = job, cases
        trainer.precision = resolve_precision(job.settings.precision, device)
        settings = job.settings
        trainer.initial_lr, trainer.weight_decay = settings.learning_rate, settings.weight_decay
        trainer.num_epochs = settings.epochs
        trainer.oversample_foreground_percent = settings.foreground_fraction
        trainer.enable_deep_supervision = settings.deep_supervision and len(job.plan.features) > 2
        if trainer.precision != "fp16":
            trainer.grad_scaler = None
        _set_determinism(job.deterministic, device)
        set_random_state(seed_of(settings.seed, "network"))
        trainer.initialize()
        return trainer

    def initialize(self) -> None:
        """Build network, optimizer and loss: nnU-Net's, without its look-up of data folders."""
        self._set_batch_size_and_oversample()
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        self.network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        ).to(self.device)
        if self._do_i_compile():
            self.network = torch.compile(self.network)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.loss = self._build_loss()
        self._unknown = {c.case: self._unknown_channels(c) for cases in self.cases.values() for c in cases}
        self.progress, self._best_weights = Progress(), None
        self.was_initialized = True

    # --- what differs from nnU-Net's methods of the same name

    def print_to_log_file(self, *args, also_print_to_console=True, add_timestamp=True) -> None:
        log.debug(" ".join(map(str, args)))

    def _do_i_compile(self) -> bool:
        return not self.job.deterministic and super()._do_i_compile()

    def configure_optimizers(self):
        settings = self.job.settings
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
        )
        return optimizer, PolyLRScheduler(optimizer, settings.learning_rate, settings.epochs, settings.schedule)

    def _build_loss(self):
        loss = super()._build_loss()
        if not self.enable_deep_supervision:
            loss = DeepSupervisionWrapper(loss, (1.0,))
        self._terms = LossTerms(loss.loss, tuple(weight for weight in loss.weight_factors if weight))
        return loss

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):  # noqa: N802
        rotation, dummy_2d, initial_patch, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return rotation, dummy_2d, initial_patch, tuple(AXES.index(axis) for axis in self.job.settings.mirror_axes)

    def get_dataloaders(self) -> dict[str, nnUNetDataLoader]:
        """Return nnU-Net's loader of each split that has cases and iterations."""
        scales = self._get_deep_supervision_scales()
        patch = list(self.job.plan.patch)
        rotation, dummy_2d, initial_patch, mirror = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        plain = self.get_validation_transforms(scales)
        if self.job.settings.augmentation == "nnunet":
            augment = self.get_training_transforms(patch, rotation, scales, mirror, dummy_2d)
            _do_not_time_blurs(augment)
            how = {"train": (augment, initial_patch), "validation": (plain, patch)}
        else:
            how = dict.fromkeys(self.SPLITS, (plain, patch))
        return {
            split: nnUNetDataLoader(
                PreparedDataset(self.job.images, self.job.labels, {c.case: self._channels(c) for c in cases}),
                self.batch_size,
                how[split][1],
                patch,
                self.label_manager,
                oversample_foreground_percent=self.oversample_foreground_percent,
                transforms=how[split][0],
            )
            for split, cases in self.cases.items()
            if cases and self._iterations(split)
        }

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Take one optimizer step; return the loss and its terms, still on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, *_ = self._loss_of(batch)
        scaled = self.grad_scaler.scale(loss) if self.grad_scaler else loss
        scaled.backward()
        if self.grad_scaler:
            self.grad_scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT_NORM)
        if self.grad_scaler:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        return {"loss": loss.detach(), **self._terms.take()}

    @torch.no_grad()
    def validation_step(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the loss and its terms, and voxels [channels, 3]: true and false positive, false negative.

        Classes that are unknown in a sample do not count there, neither in its label nor in its prediction.
        """
        loss, logits, target, unknown = self._loss_of(batch)
        channels = logits.shape[1]
        prediction = drop_unknown(logits.argmax(1, keepdim=True), unknown)
        pairs = drop_unknown(target, unknown).long() * channels + prediction
        table = torch.bincount(pairs.flatten(), minlength=channels**2).view(channels, channels).double()
        hits = table.diagonal()
        counts = torch.stack([hits, table.sum(0) - hits, table.sum(1) - hits], 1)
        return {"loss": loss.detach(), **self._terms.take()}, counts

    # --- the loop

    def fit(self, work: Work) -> Progress:
        """Train to the last epoch, from the last checkpoint of ``work`` if it has one; return the progress."""
        if work.checkpoint.is_file():
            self.load_state(work.load(self.device))
            log.info("%s: resuming after epoch %d of %d", self.job.name, len(self.progress.epochs), self.num_epochs)
        loaders = self.get_dataloaders()
        draws = list(self._draws(loaders))
        pinned = self.device.type == "cuda"
        stream = iterate(loaders, draws, self.job.settings.seed, self.job.workers, pinned)
        seconds = None
        with contextlib.closing(stream) as batches:  # ends the workers
            for epoch in range(len(self.progress.epochs), self.num_epochs):
                began = time.perf_counter()
                self._run_epoch(epoch, batches, validate="validation" in loaders)
                now = time.perf_counter() - began
                seconds = now if seconds is None else 0.7 * seconds + 0.3 * now
                log.info("%s: %s", self.job.name, self.progress.line(self.num_epochs, seconds))
                if (epoch + 1) % self.job.settings.save_every == 0 or epoch + 1 == self.num_epochs:
                    self._save(work)
        return self.progress

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on."""
        return {
            "network": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.grad_scaler.state_dict() if self.grad_scaler else None,
            "progress": asdict(self.progress),
            "best_weights": self._best_weights,
            "random": random_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state from :meth:`state`."""
        self._bare_network().load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.grad_scaler and state["scaler"]:
            self.grad_scaler.load_state_dict(state["scaler"])
        self.progress, self._best_weights = Progress(**state["progress"]), state["best_weights"]
        restore_random_state(state["random"])

    def weights(self) -> dict[str, Tensor]:
        """Return the network's weights as they are."""
        return self._bare_network().state_dict()

    def exported_weights(self) -> dict[str, Tensor]:
        """Return the weights that the settings ask to export, on the CPU."""
        best = self.job.settings.export == "best" and self._best_weights is not None
        return {name: value.detach().cpu() for name, value in (self._best_weights if best else self.weights()).items()}

    def _run_epoch(self, epoch: int, batches: Iterator[dict[str, Any]], validate: bool) -> None:
        self.network.train()
        self.lr_scheduler.step(epoch)
        train = [self.train_step(next(batches)) for _ in range(self._iterations("train"))]
        validation, counts = [], None
        if validate:
            self.network.eval()
            results = [self.validation_step(next(batches)) for _ in range(self._iterations("validation"))]
            validation = [losses for losses, _ in results]
            counts = torch.stack([count for _, count in results]).sum(0).cpu().tolist()[1:]
        means = _means(train)
        if means["loss"] != means["loss"]:
            raise UserError(
                f"{self.job.name}: the loss of epoch {epoch + 1} is not a number. "
                "Lower learning_rate or set precision: fp32, and check the prepared images for extreme values."
            )
        scores = dice_scores(dict(zip(self.job.classes, counts, strict=True))) if counts else {}
        rate = self.optimizer.param_groups[0]["lr"]
        better = self.progress.add(rate, means, _means(validation), scores)
        if better and self.job.settings.export == "best":
            self._best_weights = {name: value.detach().cpu().clone() for name, value in self.weights().items()}

    def _save(self, work: Work) -> None:
        work.save(len(self.progress.epochs), self.state())
        self.progress.write(work.folder / "training.jsonl")
        draw_curve(work.folder / "curve.png", self.progress.epochs)

    def _draws(self, loaders: dict[str, nnUNetDataLoader]) -> Iterator[Draw]:
        for epoch in range(len(self.progress.epochs), self.num_epochs):
            for split in (s for s in self.SPLITS if s in loaders):
                # the same validation patches in every epoch, so that their scores can be compared
                number = 0 if split == "validation" else epoch
                yield from (Draw(split, number, i) for i in range(self._iterations(split)))

    def _loss_of(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return loss, logits and target at the finest resolution, and the unknown channels [batch, channels]."""
        data = batch["data"].to(self.device, non_blocking=True)
        targets = [t.to(self.device, non_blocking=True) for t in _as_list(batch["target"])]
        unknown = torch.stack([self._unknown[key] for key in batch["keys"]]).to(self.device)
        with torch.autocast(self.device.type, DTYPES.get(self.precision), enabled=self.precision in DTYPES):
            logits = _as_list(self.network(data))
        logits = [output.float() for output in logits]
        return self.compute_loss(logits, targets, unknown), logits[0], targets[0], unknown

    def _iterations(self, split: str) -> int:
        settings = self.job.settings
        return settings.iterations_per_epoch if split == "train" else settings.validation_iterations

    def _channels(self, case: TrainingCase) -> Channels:
        """Only what is present: a label map may hold voxels of a class that selection demoted to absent or unknown."""
        numbered = enumerate(self.job.classes, start=1)
        return {self.job.class_ids[n]: i for i, n in numbered if case.states.get(n) == PRESENT}

    def _unknown_channels(self, case: TrainingCase) -> Tensor:
        unknown = case.unknown(self.job.classes)
        return torch.tensor([False] + [name in unknown for name in self.job.classes])

    def _bare_network(self) -> torch.nn.Module:
        return getattr(self.network, "_orig_mod", self.network)


def usable_cases(trainer: type[Trainer], job: TrainingJob) -> dict[str, tuple[TrainingCase, ...]]:
    """Return the cases of each split that ``trainer`` can use, in the order of their ids; count the others in the log.

    Raises:
        UserError: when no case is left to train on.
    """
    reasons = {case.case: trainer.why_not(case, job) for case in job.cases}
    for reason, number in sorted(Counter(filter(None, reasons.values())).items()):
        log.info("%s: %d of %d cases left out: %s", job.name, number, len(job.cases), reason)
    kept = {
        split: tuple(sorted((c for c in job.cases if c.split == split and not reasons[c.case]), key=lambda c: c.case))
        for split in Trainer.SPLITS
    }
    log.info("%s: %d cases to train, %d to validate", job.name, len(kept["train"]), len(kept["validation"]))
    if not kept["train"]:
        raise UserError(
            f"model {job.name}: none of its {len(job.cases)} cases can be used to train ({job.settings.kind}). "
            "Choose other cases or classes, or trainer: partial if some classes are unknown in every case."
        )
    if not kept["validation"]:
        if job.settings.export == "best":
            raise UserError(f"model {job.name}: export: best needs at least one validation case")
        log.warning("%s: no validation case, so there will be no validation Dice", job.name)
    return kept


def resolve_device(device: str) -> torch.device:
    """Return the torch device of ``auto``, ``cpu`` or ``cuda``. Raises UserError when there is no GPU for cuda."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: torch finds no GPU here. Set device: cpu or auto, or check the driver.")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return the precision of ``auto`` on ``device``. Raises UserError for fp16 on a CPU, which cannot train in it."""
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; on a CPU set precision: auto, fp32 or bf16")
    return precision


def _set_determinism(deterministic: bool, device: torch.device) -> None:
    cuda = device.type == "cuda"
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it to be reproducible
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
    # Only a warning on a GPU: the sum inside its cross-entropy has no reproducible form, but the gradients do.
    torch.use_deterministic_algorithms(deterministic, warn_only=cuda)


@contextlib.contextmanager
def _nnunet_folders_elsewhere() -> Iterator[None]:
    """Let nnU-Net's constructor make its folders and log file where they leave no trace."""
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(dict.fromkeys(names, folder))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _do_not_time_blurs(transforms: Any) -> None:
    """Stop nnU-Net's blur from choosing its algorithm by a stopwatch: results would depend on the machine's mood."""
    for transform in transforms.transforms:
        inner = getattr(transform, "transform", None)
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False


def _as_list(value: Tensor | list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _means(rows: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: torch.stack([row[name] for row in rows]).double().mean().item() for name in (rows[0] if rows else ())}
