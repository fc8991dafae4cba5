"""Training on cases in which some classes are unknown: each case is asked only what is known of it."""

import logging
from typing import Any

import torch
from torch import Tensor

from labelloop.base.errors import UserError
from labelloop.cases.annotation import PRESENT
from labelloop.labels.tumors import read_contents
from labelloop.training.cutmix import Paster, Stored, split_regions
from labelloop.training.job import TrainingCase, TrainingJob
from labelloop.training.losses import PartialLabelLoss
from labelloop.training.sampling import Chooser, one_type
from labelloop.training.settings import BatchTypes, CutMix, MergingSettings, PartialSettings, cutmix_of, settings_of
from labelloop.training.trainers.base import Trainer

log = logging.getLogger(__name__)


class PartialTrainer(Trainer):
    """Merges the unknown classes of each sample into its background, in the prediction and in the label.

    Batches of one annotation type and tumor CutMix are settings of it (Zhou, sections 2.2 and 3.2).
    """

    @classmethod
    def why_not(cls, case: TrainingCase, job: TrainingJob) -> str | None:
        return None if case.known(job.classes) else "no class of the model is annotated"

    def initialize(self) -> None:
        """Build network, optimizer and loss, and find the objects to paste."""
        cutmix = cutmix_of(self.job.settings)
        self._paster = self._new_paster(cutmix) if cutmix else None
        super().initialize()

    def loss_of(self, loss: torch.nn.Module) -> torch.nn.Module:
        return PartialLabelLoss(
            loss, settings_of(self.job.settings, MergingSettings).merge, self.compiled, self.ignored
        )

    def compute_loss(self, logits: list[Tensor], targets: list[Tensor], unknown: list[Tensor]) -> Tensor:
        return self.loss(logits, targets, unknown)

    # --- batches of one type

    @property
    def _batches(self) -> BatchTypes | None:
        return self.job.settings.batches if isinstance(self.job.settings, PartialSettings) else None

    def choosers(self) -> dict[str, Chooser | None]:
        settings = self._batches
        if not settings:
            return super().choosers()
        types: dict[tuple[str, ...], list[str]] = {}
        for case in self.cases["train"]:
            types.setdefault(case.known(self.job.classes), []).append(case.case)
        used = [cases for cases in types.values() if len(cases) >= settings.min_cases]
        full = [case.case for case in self.cases["train"] if case.full]
        log.info("%s: %d annotation types, %d used; %d full cases", self.job.name, len(types), len(used), len(full))
        if not used:
            raise UserError(f"model {self.job.name}: batches.min_cases {settings.min_cases}: no type has so many")
        if settings.full and not full:
            raise UserError(f"model {self.job.name}: batches.full: no training case is in {' or '.join(settings.full)}")
        streams: dict[str, Chooser | None] = {"train": one_type(used, self.batch_size)}
        return streams | ({"full": one_type([full], self.batch_size)} if full else {})

    def stream_of(self, epoch: int, iteration: int) -> str:
        settings = self._batches
        if not settings or not settings.full:
            return "train" if settings else super().stream_of(epoch, iteration)
        turn = settings.alternate and iteration % 2 == 0
        return "full" if turn or epoch < settings.full_first_epochs else "train"

    # --- CutMix

    def loader_options(self) -> dict[str, Any]:
        return super().loader_options() | {"paste": self._paster}

    def on_device(self, batch: dict[str, Any]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        data, targets, unknown = super().on_device(batch)
        pasted = self.team.join_lists(batch["pasted"]) if "pasted" in batch else []
        if not any(pasted):
            return data, targets, unknown
        regions = self._unknown_regions(batch["keys"], pasted).to(self.device)
        pairs = [split_regions(target, regions) for target in targets]
        return data, [target for target, _ in pairs], [rows for _, rows in pairs]

    def _unknown_regions(self, cases: list[str], pasted: list[list[str]]) -> Tensor:
        """Return the unknown channels [batch, regions, channels] of each sample and of what was pasted into it."""
        most = max(map(len, pasted))
        rows = []
        for case, sources in zip(cases, pasted, strict=True):
            own = [self._unknown[case], *(self._unknown_objects[source] for source in sources)]
            rows.append(torch.stack(own + own[:1] * (most - len(sources))))
        return torch.stack(rows)

    def _new_paster(self, settings: CutMix) -> Paster:
        job = self.job
        if settings.name not in job.classes or not job.tumors:
            what = "class" if job.tumors else "bank of objects for its class"
            raise UserError(f"model {job.name}: cutmix: the model has no {what} {settings.name!r}")
        own = {case.case for case in self.cases["train"]}  # a bank holds objects of all cases, of validation cases too
        objects, states = [], {}
        for case in sorted(own.intersection(job.tumors.keys)):
            file = job.tumors.folder / f"{case}.npz"
            number, states[case] = read_contents(file)
            objects += [Stored(case, file, n) for n in range(number)]
        into = frozenset(c.case for c in self.cases["train"] if c.states.get(settings.name) != PRESENT)
        log.info("%s: %d objects of %s to paste into %d cases", job.name, len(objects), settings.name, len(into))
        if not objects:
            raise UserError(
                f"model {job.name}: cutmix: no object of {settings.name!r} of a training case in {job.tumors.folder}"
            )
        self._unknown_objects = {case: self._unknown_channels(known) for case, known in states.items()}
        channels = {case: self.channels_of(known) for case, known in states.items()}
        return Paster(settings, objects, channels, len(job.classes) + 2, into, job.plan.patch)
