"""Training on cases in which every class of the model is annotated."""

from labelloop.training.job import TrainingCase, TrainingJob
from labelloop.training.settings import SupervisedSettings
from labelloop.training.trainers.base import Trainer


class SupervisedTrainer(Trainer):
    """nnU-Net's own training. Unknown classes are taken for background only when the recipe says so."""

    @classmethod
    def why_not(cls, case: TrainingCase, job: TrainingJob) -> str | None:
        if isinstance(job.settings, SupervisedSettings) and job.settings.unknown == "background":
            return None
        return "a class of the model is unknown" if case.unknown(job.classes) else None
