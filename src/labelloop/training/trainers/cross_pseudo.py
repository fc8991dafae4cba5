"""Cross pseudo supervision (Chen et al. 2021) as Jia uses it in FLARE 2023 (section 2.3)."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from labelloop.training.job import TrainingCase
from labelloop.training.loading import seed_of, set_random_state
from labelloop.training.losses import ramp_up
from labelloop.training.progress import Progress
from labelloop.training.settings import CrossPseudo
from labelloop.training.trainers.adapter import bare
from labelloop.training.trainers.base import Contender
from labelloop.training.trainers.semi import SemiSupervisedTrainer


class CrossPseudoTrainer(SemiSupervisedTrainer):
    """Two networks of one build and two initializations; each learns from the labels and from the other's prediction.

    The loss is C_s + C_u^u + C_u^l: supervised on the labeled half of a batch, crossed on both halves. A prediction
    serves as label at each deep-supervision output's own resolution. Both networks are validated, the better one is
    exported. With ``init_from`` the first starts from that model; the second does not, for equal networks stay equal.
    """

    def is_labeled(self, case: TrainingCase) -> bool:
        if self.job.settings.own(CrossPseudo).partly_labeled == "unlabeled":
            return not case.unknown(self.job.classes)
        return super().is_labeled(case)

    def add_networks(self) -> None:
        set_random_state(seed_of(self.job.settings.seed, "second network"))
        self.second = self.new_network()
        self.trained = [self.network, self.second]
        self.contenders = [Contender(network) for network in self.trained]

    def training_loss(
        self, data: Tensor, targets: list[Tensor], unknown: list[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.job.settings.own(CrossPseudo)
        weight = settings.weight * ramp_up(self.epoch, self.num_epochs, settings.ramp)
        logits = [self.logits_of(network, data) for network in self.trained]
        nothing = [torch.zeros_like(rows) for rows in unknown]
        total, terms = torch.zeros((), device=self.device), {"cross_weight": torch.tensor(weight)}
        for number, (own, other) in enumerate([logits, logits[::-1]]):
            suffix = "_second" if number else ""
            supervised, parts = self.supervised_loss(own, targets, unknown)
            predicted = [output.detach().argmax(1, keepdim=True) for output in other]
            crossed = self.compute_loss(own, predicted, nothing)
            self._terms.take()
            total = total + supervised + weight * crossed
            terms |= {f"{name}{suffix}": value for name, value in parts.items()} | {f"cross{suffix}": crossed.detach()}
        return total, terms

    def description(self) -> dict[str, Any]:
        names = ("first", "second")
        averages = [c.progress.epochs[-1]["dice_average"] if c.progress.epochs else None for c in self.contenders]
        return {
            "exported_network": names[self.contenders.index(self.winner)],
            "validation_dice_average": dict(zip(names, averages, strict=True)),
        }

    def state(self) -> dict[str, Any]:
        contender = self.contenders[1]
        return super().state() | {
            "second": {
                "network": bare(self.second).state_dict(),
                "progress": asdict(contender.progress),
                "best_weights": contender.best_weights,
            }
        }

    def load_state(self, state: dict[str, Any]) -> None:
        second, contender = state["second"], self.contenders[1]
        bare(self.second).load_state_dict(second["network"])
        contender.progress, contender.best_weights = Progress(**second["progress"]), second["best_weights"]
        super().load_state(state)
