"""What trainings on labeled and unlabeled cases share: which is which, and batches of one half each."""

import logging
from typing import Any

from torch import Tensor

from labelloop.errors import UserError
from labelloop.training.job import TrainingCase, TrainingJob
from labelloop.training.sampling import Chooser, halves
from labelloop.training.trainers.partial import PartialTrainer

log = logging.getLogger(__name__)


class SemiSupervisedTrainer(PartialTrainer):
    """Learns from labels as :class:`PartialTrainer` does, in the labeled half of each batch.

    A case of which no class is known is unlabeled and needs no label map. ``labeled`` is the number of labeled samples,
    which come first in a batch: half of it, or all when there are no unlabeled cases.
    """

    labeled: int

    @classmethod
    def why_not(cls, case: TrainingCase, job: TrainingJob) -> str | None:
        unlabeled = not case.known(job.classes)
        return "nothing to validate on" if unlabeled and case.split == "validation" else None

    def initialize(self) -> None:
        """Build networks, optimizer and loss.

        Raises:
            UserError: when no case is labeled, or a batch cannot be split in halves.
        """
        known, name = self._cases_of(labeled=True), self.job.name
        unknown = self._cases_of(labeled=False)
        log.info("%s: %d labeled and %d unlabeled cases", name, len(known), len(unknown))
        if not known:
            raise UserError(f"model {name}: {self.job.settings.kind} needs cases with at least one known class")
        if not unknown:
            log.warning("%s: no unlabeled case, so %s learns from labeled ones only", name, self.job.settings.kind)
        elif self.job.plan.batch_size < 2:
            raise UserError(f"model {name}: batch_size 1 has no room for labeled and unlabeled; set 2 or more")
        self.labeled = self.job.plan.batch_size - (self.job.plan.batch_size // 2 if unknown else 0)
        self.epoch = 0
        super().initialize()

    def choosers(self) -> dict[str, Chooser | None]:
        unlabeled = self._cases_of(labeled=False)
        return {"train": halves(self._cases_of(labeled=True), unlabeled, self.batch_size) if unlabeled else None}

    def loader_options(self) -> dict[str, Any]:
        # nnU-Net centers the last samples of a batch on a class, and these are unlabeled
        return super().loader_options() | {"probabilistic_oversampling": True}

    def supervised_loss(
        self, logits: list[Tensor], targets: list[Tensor], unknown: list[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the labeled samples and its terms."""
        loss = self.compute_loss(*([one[: self.labeled] for one in part] for part in (logits, targets, unknown)))
        return loss, self._terms.take()

    def _run_epoch(self, epoch: int, batches: Any, validate: bool) -> None:
        self.epoch = epoch
        super()._run_epoch(epoch, batches, validate)

    def _cases_of(self, labeled: bool) -> list[str]:
        return [c.case for c in self.cases["train"] if self.is_labeled(c) is labeled]

    def is_labeled(self, case: TrainingCase) -> bool:
        """Say whether ``case`` belongs to the labeled half."""
        return bool(case.known(self.job.classes))
