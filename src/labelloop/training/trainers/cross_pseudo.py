"""Cross pseudo supervision (Chen et al. 2021) as Jia uses it in FLARE 2023 (section 2.3)."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from labelloop.training.job import TrainingCase
from labelloop.training.loading import seed_of, set_random_state
from labelloop.training.progress import Progress
from labelloop.training.settings import CrossPseudoSettings, settings_of
from labelloop.training.trainers.adapter import bare
from labelloop.training.trainers.base import Candidate
from labelloop.training.trainers.semi import SemiSupervisedTrainer
from labelloop.training.unlabeled import unknown_but


class CrossPseudoTrainer(SemiSupervisedTrainer):
    """Two networks of one build and two initializations; each learns from the labels and from the other's prediction.

    The loss is C_s + C_u^u + C_u^l: supervised on the labeled half of a batch, crossed on both halves, or on the
    unlabeled one alone. A prediction serves as label at each deep-supervision output's own resolution. Both networks
    are validated, the better one is exported. With ``init_from`` the first starts from that model; the second does not,
    for equal networks stay equal.
    """

    def is_labeled(self, case: TrainingCase) -> bool:
        return not case.unknown(self.job.classes) if self._whole_only else super().is_labeled(case)

    @property
    def must_be_known(self) -> str:
        return "every class of the model" if self._whole_only else super().must_be_known

    @property
    def _whole_only(self) -> bool:
        return settings_of(self.job.settings, CrossPseudoSettings).partly_labeled == "unlabeled"

    def add_networks(self) -> None:
        set_random_state(seed_of(self.settings.seed, "second network"))
        self.second = self.new_network()
        self.trained = [self.network, self.second]
        self.candidates = [Candidate(network) for network in self.trained]

    def training_loss(
        self, data: Tensor, targets: list[Tensor], unknown: list[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings = settings_of(self.job.settings, CrossPseudoSettings)
        weight = self.weight_now(settings.cross_weight, settings.cross_ramp)
        seen = self.learned_from(data, self.labeled, self.update)
        logits = [self.logits_of(network, seen) for network in self.trained]
        told = [[output.detach() for output in outputs] for outputs in logits]
        if self.unlabeled.strong_augmentation:
            with torch.no_grad():
                told = [self.logits_of(network, data) for network in self.trained]
        total, terms = torch.zeros((), device=self.device), {"cross_weight": torch.tensor(weight)}
        for number, (own, other) in enumerate(zip(logits, told[::-1], strict=True)):
            suffix = "_second" if number else ""
            supervised, parts = self.supervised_loss(own, targets, unknown)
            crossed = self._crossed(own, other)
            total = total + supervised + weight * crossed
            terms |= {f"{name}{suffix}": value for name, value in parts.items()} | {f"cross{suffix}": crossed.detach()}
        return total, terms

    def _crossed(self, own: list[Tensor], other: list[Tensor]) -> Tensor:
        """Return the loss of a network's logits against what the other one predicts, where that is sure enough."""
        first = 0 if settings_of(self.job.settings, CrossPseudoSettings).cross_on == "all" else self.labeled
        if first >= len(own[0]):
            return torch.zeros((), device=self.device)
        told = [output[first:] for output in other]
        unsure = [output.new_zeros(output.shape[:2], dtype=torch.bool) for output in told]
        if self.unlabeled.confidence_threshold:
            unsure = [unknown_but(self.confidence_mask(output.softmax(1)), output.shape[1]) for output in told]
        loss = self.compute_loss([o[first:] for o in own], [o.argmax(1, keepdim=True) for o in told], unsure)
        self._terms.take()
        return loss

    def description(self) -> dict[str, Any]:
        names = ("first", "second")
        averages = [c.progress.epochs[-1]["dice_average"] if c.progress.epochs else None for c in self.candidates]
        return {
            "exported_network": names[self.candidates.index(self.winner)],
            "validation_dice_average": dict(zip(names, averages, strict=True)),
        }

    def state(self) -> dict[str, Any]:
        candidate = self.candidates[1]
        return super().state() | {
            "second": {
                "network": bare(self.second).state_dict(),
                "progress": asdict(candidate.progress),
                "best_weights": candidate.best_weights,
            }
        }

    def load_state(self, state: dict[str, Any]) -> None:
        second, candidate = state["second"], self.candidates[1]
        bare(self.second).load_state_dict(second["network"])
        candidate.progress, candidate.best_weights = Progress(**second["progress"]), second["best_weights"]
        super().load_state(state)
