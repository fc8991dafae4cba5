"""Kinds of training: one class each, by the name that recipes use (``trainer.kind``)."""

from labelloop.training.trainers.base import Trainer
from labelloop.training.trainers.cross_pseudo import CrossPseudoTrainer
from labelloop.training.trainers.mean_teacher import MeanTeacherTrainer
from labelloop.training.trainers.partial import PartialTrainer
from labelloop.training.trainers.supervised import SupervisedTrainer

TRAINERS: dict[str, type[Trainer]] = {
    "supervised": SupervisedTrainer,
    "partial": PartialTrainer,
    "mean_teacher": MeanTeacherTrainer,
    "cross_pseudo": CrossPseudoTrainer,
}
