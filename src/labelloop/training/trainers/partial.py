"""Training on cases in which some classes are unknown: each case is asked only what is known of it."""

from torch import Tensor

from labelloop.training.job import TrainingCase, TrainingJob
from labelloop.training.losses import PartialLabelLoss
from labelloop.training.trainers.base import Trainer


class PartialTrainer(Trainer):
    """Merges the unknown classes of each sample into its background, in the prediction and in the label."""

    @classmethod
    def why_not(cls, case: TrainingCase, job: TrainingJob) -> str | None:
        return "no class of the model is annotated" if len(case.unknown(job.classes)) == len(job.classes) else None

    def _build_loss(self):
        loss = super()._build_loss()
        loss.loss = PartialLabelLoss(loss.loss, self.job.settings.merge)
        return loss

    def compute_loss(self, logits: list[Tensor], targets: list[Tensor], unknown: Tensor) -> Tensor:
        return self.loss(logits, targets, [unknown] * len(logits))
