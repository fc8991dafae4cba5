"""Training on cases in which every class of the model is annotated."""

from labelloop.training.job import TrainingCase, TrainingJob
from labelloop.training.trainers.base import Trainer


class SupervisedTrainer(Trainer):
    """nnU-Net's own training. Unknown classes are taken for background only when the recipe says so."""

    @classmethod
    def why_not(cls, case: TrainingCase, job: TrainingJob) -> str | None:
        if job.settings.unknown == "exclude" and case.unknown(job.classes):
            return "a class of the model is unknown"
        return None
