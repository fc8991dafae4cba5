"""What trainings on labeled and unlabeled cases share: which is which, batches of both, what the unlabeled teach."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from labelloop.base.errors import UserError
from labelloop.training.job import TrainingCase, TrainingJob
from labelloop.training.loading import seed_of
from labelloop.training.loop import Pause
from labelloop.training.losses import ramp_up
from labelloop.training.sampling import Chooser, evenly, streams, two_parts
from labelloop.training.settings import SemiSupervisedSettings, Unlabeled, settings_of
from labelloop.training.trainers.partial import PartialTrainer
from labelloop.training.unlabeled import ConfidenceMask, strong_augmentation

log = logging.getLogger(__name__)


class SemiSupervisedTrainer(PartialTrainer):
    """Learns from labels as :class:`PartialTrainer` does, in the labeled part of each batch.

    A case of which no class is known is unlabeled and needs no label map. ``labeled`` is the number of labeled samples,
    which come first in a batch: half of it by default, or all when there are no unlabeled cases. ``confidence_mask``
    says where the unlabeled ones teach.
    """

    labeled: int
    confidence_mask: ConfidenceMask

    @classmethod
    def why_not(cls, case: TrainingCase, job: TrainingJob) -> str | None:
        unlabeled = not case.known(job.classes)
        return "nothing to validate on" if unlabeled and case.split == "validation" else None

    def initialize(self) -> None:
        """Build networks, optimizer and loss.

        Raises:
            UserError: when no case is labeled, or a batch has no room for both.
        """
        known, name = self._cases_of(labeled=True), self.job.name
        unknown = self._cases_of(labeled=False)
        log.info("%s: %d labeled and %d unlabeled cases", name, len(known), len(unknown))
        if not known:
            found = f"in none of {len(unknown)} to learn from is {self.must_be_known} known"
            raise UserError(f"model {name}: {self.settings.kind} needs labeled cases, and {found}")
        if not unknown:
            log.warning("%s: no unlabeled case, so %s learns from labeled ones only", name, self.settings.kind)
        elif self.job.plan.batch_size < 2:
            raise UserError(f"model {name}: batch_size 1 has no room for labeled and unlabeled; set 2 or more")
        number = max(1, int(self.unlabeled.share * self.job.plan.batch_size)) if unknown else 0
        self.labeled = self.job.plan.batch_size - number
        self.confidence_mask = ConfidenceMask(self.unlabeled, len(self.job.classes) + 1, self.device)
        self.epoch = 0
        super().initialize()

    def choosers(self) -> dict[str, Chooser | None]:
        settings, unlabeled = self.settings, self._cases_of(labeled=False)
        labeled = [case for case in self.cases["train"] if self.is_labeled(case)]
        drawn = {"train": evenly([case.case for case in labeled], self.labeled)}
        if settings.sampling != "uniform":
            drawn = streams(labeled, self.job.classes, settings.sampling, settings.favor, self.labeled)
        rest = evenly(unlabeled, self.batch_size - self.labeled)
        return {name: two_parts(choose, rest) if unlabeled else choose for name, choose in drawn.items()}

    def supervised_loss(
        self, logits: list[Tensor], targets: list[Tensor], unknown: list[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the labeled samples and its terms."""
        loss = self.compute_loss(*([one[: self.labeled] for one in part] for part in (logits, targets, unknown)))
        return loss, self._terms.take()

    @property
    def unlabeled(self) -> Unlabeled:
        """What is set for unlabeled samples."""
        return settings_of(self.job.settings, SemiSupervisedSettings).unlabeled

    @property
    def update(self) -> int:
        """The number of the update at hand."""
        return self.epoch * self.settings.iterations_per_epoch + len(self.losses)

    def weight_now(self, weight: float, ramp: float) -> float:
        """Return the weight of unlabeled samples in this epoch, which grows to ``weight`` over a share ``ramp``."""
        return weight * ramp_up(self.epoch, self.num_epochs, ramp, self.unlabeled.burn_in)

    def learned_from(self, data: Tensor, first: int, step: int) -> Tensor:
        """Return the images that the network sees which learns: from sample ``first`` on in a strong view, if asked.

        The view follows from the seed and the number of the step alone.
        """
        if not self.unlabeled.strong_augmentation or first >= len(data):
            return data
        generator = torch.Generator(self.device).manual_seed(seed_of(self.settings.seed, "view", step))
        return torch.cat([data[:first], strong_augmentation(data[first:], generator)])

    def state(self) -> dict[str, Any]:
        return super().state() | {"confidence": self.confidence_mask.means}

    def load_state(self, state: dict[str, Any]) -> None:
        self.confidence_mask.means = state["confidence"].to(self.device)
        super().load_state(state)

    def _run_epoch(self, epoch: int, batches: Iterator[dict[str, Any]], pause: Pause, validate: bool) -> None:
        self.epoch = epoch
        super()._run_epoch(epoch, batches, pause, validate)

    def _cases_of(self, labeled: bool) -> list[str]:
        return [c.case for c in self.cases["train"] if self.is_labeled(c) is labeled]

    @property
    def must_be_known(self) -> str:
        """What must be known of a case of the labeled half, in words."""
        return "any class of the model"

    def is_labeled(self, case: TrainingCase) -> bool:
        """Say whether ``case`` belongs to the labeled half."""
        return bool(case.known(self.job.classes))
