"""Mean teacher (Tarvainen & Valpola 2017) as He et al. use it in FLARE 2024 (section 2.3 and their released code)."""

import copy
from typing import Any

import torch
from torch import Tensor

from labelloop.training.loading import seed_of
from labelloop.training.settings import MeanTeacherSettings, settings_of
from labelloop.training.trainers.adapter import bare
from labelloop.training.trainers.base import Candidate
from labelloop.training.trainers.semi import SemiSupervisedTrainer


class MeanTeacherTrainer(SemiSupervisedTrainer):
    """A student learns from labels and agrees with its teacher, the moving average of its own weights.

    The teacher sees the student's images with noise clamp(0.1 N(0, 1), -0.2, 0.2). Disagreement is the mean squared
    difference of their softmax; its weight grows as 0.1 exp(-5 (1 - t)^2). The teacher is validated and exported. He's
    code halves the supervised loss; there a weight of 0.1 is what 0.2 is here, at half the learning rate.
    """

    def add_networks(self) -> None:
        self.teacher = self.compiled(copy.deepcopy(bare(self.network)).requires_grad_(False))
        self.trained, self.candidates = [self.network], [Candidate(self.teacher)]
        self.step = 0

    def training_loss(
        self, data: Tensor, targets: list[Tensor], unknown: list[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings = settings_of(self.job.settings, MeanTeacherSettings)
        weight = self.weight_now(settings.consistency_weight, settings.consistency_ramp)
        first = self.labeled if settings.consistency_on == "unlabeled" else 0
        logits = self.logits_of(self.network, self.learned_from(data, first, self.step))
        loss, terms = self.supervised_loss(logits, targets, unknown)
        compared = data[first:]
        if not settings.consistency or not len(compared):
            return loss, terms
        with torch.no_grad():
            wanted = self.logits_of(self.teacher, compared + self._noise(compared))[0].softmax(1)
        trusted = self.confidence_mask(wanted)
        difference = (logits[0][first:].softmax(1) - wanted).square().mean(1, keepdim=True)
        consistency = (difference * trusted).sum() / trusted.sum().clamp(min=1)
        terms |= {"consistency": consistency.detach(), "consistency_weight": torch.tensor(weight)}
        return loss + weight * consistency, terms

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Take one optimizer step and let the teacher follow: by 1 - min(1 - 1 / (t + 1), decay) of the way."""
        losses = super().train_step(batch)
        past = min(1 - 1 / (self.step + 1), settings_of(self.job.settings, MeanTeacherSettings).ema_decay)
        with torch.no_grad():
            ours: list[Tensor] = list(bare(self.teacher).parameters())
            students: list[Tensor] = list(bare(self.network).parameters())
            torch._foreach_lerp_(ours, students, 1 - past)
        self.step += 1
        return losses

    def description(self) -> dict[str, Any]:
        return {"exported_network": "teacher"}

    def state(self) -> dict[str, Any]:
        return super().state() | {"teacher": bare(self.teacher).state_dict(), "step": self.step}

    def load_state(self, state: dict[str, Any]) -> None:
        bare(self.teacher).load_state_dict(state["teacher"])
        self.step = state["step"]
        super().load_state(state)

    def _noise(self, data: Tensor) -> Tensor:
        """Return the noise of this step; it follows from the seed and the step's number alone."""
        settings = settings_of(self.job.settings, MeanTeacherSettings)
        generator = torch.Generator(self.device).manual_seed(seed_of(self.settings.seed, "noise", self.step))
        noise = torch.randn(data.shape, generator=generator, device=self.device)
        return (settings.noise * noise).clamp(-settings.noise_limit, settings.noise_limit)
