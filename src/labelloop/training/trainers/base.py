"""The training that all kinds share: nnU-Net's network, loss, augmentation and schedule in a loop of our own.

The loop is our own because nnU-Net's cannot be continued exactly, writes its checkpoints in place, and scores classes
that nobody annotated. A kind of training overrides :meth:`Trainer.why_not` (which cases it can use),
:meth:`Trainer.compute_loss` or :meth:`Trainer.training_loss`; further networks come in by :meth:`Trainer.add_networks`
and go into :meth:`Trainer.state`.
"""

import contextlib
import io
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from labelloop.base.errors import UserError
from labelloop.base.sequences import flat
from labelloop.inference.prepared import SUFFIX, open_label
from labelloop.training.distributed import ALONE
from labelloop.training.job import TrainingCase, TrainingJob
from labelloop.training.loading import (
    Draw,
    iterate,
    random_state,
    restore_random_state,
    seed_of,
    set_random_state,
)
from labelloop.training.loop import Pause, means, run_epochs, run_updates, tell_resumed
from labelloop.training.losses import PartialLabelLoss, drop_unknown
from labelloop.training.progress import Progress, dice_scores, draw_curve
from labelloop.training.sampling import Loader
from labelloop.training.setup import (
    nnunet_folders_elsewhere,
    precision_of,
    resolve_device,
    set_determinism,
    usable_cases,
)
from labelloop.training.stock import CONFIGURATION, dataset_json, plans_json
from labelloop.training.trainers.adapter import Adapter, bare
from labelloop.training.work import Work

log = logging.getLogger(__name__)

LARGEST_GRADIENT_NORM = 12
MOST_SKIPPED = 50
"""Updates in a row that may be skipped because their gradients are not numbers; half precision skips a few at first."""


@dataclass
class Candidate:
    """A network that may become the model, how it has done so far, and its weights when it did best."""

    network: torch.nn.Module
    progress: Progress = field(default_factory=Progress)
    best_weights: dict[str, Tensor] | None = None


class Trainer(Adapter):
    """A training in progress; make one with :meth:`of`. (nnU-Net forbids a constructor of our own.)

    ``trained`` are the networks that the optimizer changes, ``candidates`` are validated and may be exported.
    """

    trained: list[torch.nn.Module]
    candidates: list[Candidate]
    losses: list[dict[str, Tensor]]
    """Of the updates of the epoch under way."""
    seconds: float | None = None
    """Of an epoch of late."""
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "validation")

    @classmethod
    def why_not(cls, case: TrainingCase, job: TrainingJob) -> str | None:
        """Say why this kind of training cannot use ``case``; None if it can."""
        raise NotImplementedError

    def compute_loss(self, logits: list[Tensor], targets: list[Tensor], unknown: list[Tensor]) -> Tensor:
        """Return the loss of a prediction.

        Args:
            logits, targets: per deep-supervision output, finest first: [batch, channels, ...] and [batch, 1, ...].
            unknown: likewise, bool [batch, channels] or [batch, channels, ...]: classes that nobody looked for.
        """
        if self.ignored is None:
            return self.loss(logits, targets)
        return self.loss(logits, targets, [torch.zeros_like(rows) for rows in unknown])

    def loss_of(self, loss: torch.nn.Module) -> torch.nn.Module:
        return loss if self.ignored is None else PartialLabelLoss(loss, compiled=self.compiled, ignored=self.ignored)

    def training_loss(
        self, data: Tensor, targets: list[Tensor], unknown: list[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a training batch, images [batch, channel, ...], and its terms by name."""
        loss = self.compute_loss(self.logits_of(self.network, data), targets, unknown)
        return loss, self._terms.take()

    def add_networks(self) -> None:
        """Add what a kind of training needs beside ``network``, and say which networks are trained and validated."""
        self.trained, self.candidates = [self.network], [Candidate(self.network)]

    def stream_of(self, epoch: int, iteration: int) -> str:
        """Return the stream that a training batch comes from."""
        sampling = self.settings.sampling
        alone = 0.0 if sampling == "uniform" else sampling.truth_alone * self.num_epochs
        return "truth" if epoch < alone and "truth" in self.streams else "train"

    def description(self) -> dict[str, Any]:
        """Return what ``model.json`` is to say of the exported weights besides the rest."""
        return {}

    @classmethod
    def of(cls, job: TrainingJob) -> "Trainer":
        """Return the trainer of ``job``, ready to :meth:`fit`.

        Raises:
            UserError: when no case can be trained on, or the device cannot do what is asked.
        """
        device = resolve_device(job.device)
        cases = usable_cases(job, cls.why_not, cls.SPLITS)
        plans = plans_json(job.name, job.plan) | {"continue_training": False}
        with nnunet_folders_elsewhere(), contextlib.redirect_stdout(io.StringIO()):
            trainer = cls(
                plans,
                CONFIGURATION,
                0,
                dataset_json(job.classes, len(cases["train"]), channels=job.plan.channels),
                device,
            )
        trainer.job, trainer.cases, trainer.team = job, cases, ALONE
        trainer.ignored = len(job.classes) + 1 if _some_are_ignored(job, cases) else None
        trainer.precision = precision_of(job)
        trainer.losses = []
        settings = trainer.settings
        trainer.initial_lr, trainer.weight_decay = settings.learning_rate, settings.weight_decay
        trainer.num_epochs = settings.epochs
        trainer.oversample_foreground_percent = settings.foreground_fraction
        trainer.enable_deep_supervision = bool(settings.deep_supervision) and len(job.plan.features) > 2
        if trainer.precision != "fp16":
            trainer.grad_scaler = None
        trainer.deterministic = set_determinism(job.deterministic, device)
        set_random_state(seed_of(settings.seed, "network"))
        trainer.initialize()
        trainer.streams = trainer.choosers()
        return trainer

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Take one optimizer step; return the loss and its terms, still on the device, and whether it was ``skipped``.

        A step whose gradients are not finite changes no weight: with fp16 the gradients' scale was too large, and is
        made smaller; in other precisions one bad batch would spoil the weights for good.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = self.training_loss(*self.on_device(batch))
        scaled = self.grad_scaler.scale(loss) if self.grad_scaler else loss
        scaled.backward()
        self.team.add_gradients(self.trained)
        if self.grad_scaler:
            self.grad_scaler.unscale_(self.optimizer)
        norms = [
            torch.nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT_NORM) for network in self.trained
        ]
        skipped = not bool(torch.stack(norms).isfinite().all())
        if self.grad_scaler:
            self.grad_scaler.step(self.optimizer)  # looks for itself
            self.grad_scaler.update()
        elif not skipped:
            self.optimizer.step()
        return {"loss": loss.detach(), **terms, "skipped": torch.tensor(float(skipped))}

    @torch.no_grad()
    def validation_step(
        self, batch: dict[str, Any], network: torch.nn.Module | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the loss and its terms, and voxels [channels, 3]: true and false positive, false negative.

        Classes that are unknown in a sample do not count there, neither in its label nor in its prediction; nor do
        ignored voxels.
        """
        data, targets, unknown = self.on_device(batch)
        # A compiled network has no truth value.
        logits = self.logits_of(self.network if network is None else network, data)
        loss = self.compute_loss(logits, targets, unknown)
        channels = logits[0].shape[1]
        target, prediction = targets[0], logits[0].argmax(1, keepdim=True)
        if self.ignored is not None:
            ignored = target == self.ignored
            target, prediction = (labels.masked_fill(ignored, 0) for labels in (target, prediction))
        pairs = drop_unknown(target, unknown[0]).long() * channels + drop_unknown(prediction, unknown[0])
        table = torch.bincount(pairs.flatten(), minlength=channels**2).view(channels, channels).double()
        hits = table.diagonal()
        counts = torch.stack([hits, table.sum(0) - hits, table.sum(1) - hits], 1)
        return {"loss": loss.detach(), **self._terms.take()}, counts

    # --- the loop

    def fit(self, work: Work) -> Progress:
        """Train to the last epoch, from the last checkpoint of ``work`` if it has one; return the model's progress.

        Ctrl-C and SIGTERM end the process after the update at hand, at a checkpoint. Several processes (``team``) do
        all this together, and the first of them alone writes.
        """
        if work.checkpoint.is_file():
            self.load_state(work.load())
            tell_resumed(self.job.name, self._epochs, self.losses)
        loaders = self.get_dataloaders()
        draws = list(self._draws(loaders))
        pinned = self.device.type == "cuda"
        stream = iterate(loaders, draws, self.settings.seed, self.job.workers, pinned)
        run = partial(self._run_epoch, validate="validation" in loaders)
        run_epochs(self._epochs, self.settings.save_every, stream, run, lambda: self._save(work), self.team.largest)
        return self.winner.progress

    @property
    def progress(self) -> Progress:
        """The epochs so far (of the first candidate)."""
        return self.candidates[0].progress

    @property
    def _epochs(self) -> range:
        """The epochs to come, from 0."""
        return range(len(self.progress.epochs), self.num_epochs)

    @property
    def winner(self) -> Candidate:
        """The candidate to export: the better by the moving average of its validation Dice, now or at its best."""

        def dice(candidate: Candidate) -> float:
            progress = candidate.progress
            last = progress.epochs[-1]["dice_average"] if progress.epochs else None
            value = progress.best_average if self.settings.export == "best" else last
            return -1.0 if value is None else value

        return max(self.candidates, key=dice)

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on."""
        return {
            "network": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.grad_scaler.state_dict() if self.grad_scaler else None,
            "progress": asdict(self.progress),
            "best_weights": self.candidates[0].best_weights,
            "losses": self.losses,
            "random": random_state(),
            "deterministic": self.deterministic,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state from :meth:`state`."""
        bare(self.network).load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.grad_scaler and state["scaler"]:
            self.grad_scaler.load_state_dict(state["scaler"])
        self.candidates[0].progress = Progress(**state["progress"])
        self.candidates[0].best_weights = state["best_weights"]
        self.losses = state["losses"]
        self.deterministic &= state.get("deterministic", True)  # the part before may be another machine's
        restore_random_state(state["random"])

    def weights(self) -> dict[str, Tensor]:
        """Return the network's weights as they are."""
        return bare(self.network).state_dict()

    def exported_weights(self) -> dict[str, Tensor]:
        """Return the weights that the settings ask to export, on the CPU."""
        best = self.winner.best_weights if self.settings.export == "best" else None
        weights = best or bare(self.winner.network).state_dict()
        return {name: value.detach().cpu() for name, value in weights.items()}

    def _run_epoch(self, epoch: int, batches: Iterator[dict[str, Any]], pause: Pause, validate: bool) -> None:
        began = time.perf_counter()
        for network in self.trained:
            network.train()
        self.lr_scheduler.step(epoch)
        updates = self._iterations("train")
        train = means(run_updates(self.losses, updates, lambda _: self._update(next(batches)), pause))
        if train["loss"] != train["loss"]:
            self._give_up(f"no loss of epoch {epoch + 1} is a number")
        if train["skipped"]:
            log.warning(
                "%s: epoch %d: %d of %d updates skipped: their gradients are not finite",
                self.job.name, epoch + 1, round(train["skipped"] * updates), updates,
            )  # fmt: skip
        results = self._validate(batches, pause) if validate else [({}, {})] * len(self.candidates)
        rate = self.optimizer.param_groups[0]["lr"]
        for candidate, (losses, scores) in zip(self.candidates, results, strict=True):
            better = candidate.progress.add(rate, train, losses, scores)
            if better and self.settings.export == "best":
                weights = bare(candidate.network).state_dict()
                candidate.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        self.losses = []
        self.team.check_weights(self.trained)
        now = time.perf_counter() - began
        self.seconds = now if self.seconds is None else 0.7 * self.seconds + 0.3 * now
        log.info("%s: %s", self.job.name, self.winner.progress.line(self.num_epochs, self.seconds))

    def _update(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Take a step; stop the training when none has changed the weights for long."""
        losses = self.train_step(batch)
        last = [*self.losses[1 - MOST_SKIPPED :], losses]
        if len(last) == MOST_SKIPPED and all(row["skipped"] for row in last):
            self._give_up(f"{MOST_SKIPPED} updates in a row were skipped, as their gradients are not finite")
        return losses

    def _give_up(self, found: str) -> NoReturn:
        raise UserError(
            f"{self.job.name}: {found}. "
            "Lower learning_rate or set precision: fp32, and check the prepared images for extreme values."
        )

    def _validate(
        self, batches: Iterator[dict[str, Any]], pause: Pause
    ) -> list[tuple[dict[str, float], dict[str, float | None]]]:
        """Return the mean loss terms and the Dice of each class, of every candidate on the same batches."""
        networks = [candidate.network.eval() for candidate in self.candidates]
        steps = []
        for _ in range(self._iterations("validation")):
            pause()
            batch = next(batches)
            steps.append([self.validation_step(batch, network) for network in networks])
        results = []
        for ours in zip(*steps, strict=True):
            counts = torch.stack([count for _, count in ours]).sum(0).cpu().tolist()[1:]
            scores = dice_scores(dict(zip(self.job.classes, counts, strict=True)))
            results.append((means([losses for losses, _ in ours]), scores))
        return results

    def _save(self, work: Work) -> None:
        if self.team.rank:
            return  # the first process does it
        work.save(len(self.progress.epochs), self.state())
        if not self.progress.epochs:
            return
        self.winner.progress.write(work.folder / "training.jsonl")
        draw_curve(work.folder / "curve.png", self.winner.progress.epochs)

    def _draws(self, loaders: dict[str, Loader]) -> Iterator[Draw]:
        done = len(self.losses)
        for epoch in self._epochs:
            yield from (Draw(self.stream_of(epoch, i), epoch, i) for i in range(done, self._iterations("train")))
            done = 0
            if "validation" in loaders:
                # the same validation patches in every epoch, so that their scores can be compared
                yield from (Draw("validation", 0, i) for i in range(self._iterations("validation")))

    def _iterations(self, split: str) -> int:
        settings = self.settings
        return settings.iterations_per_epoch if split == "train" else settings.validation_iterations


def _some_are_ignored(job: TrainingJob, cases: Mapping[str, Sequence[TrainingCase]]) -> bool:
    """Say whether a label map that is learned from has voxels of which nobody knows the class."""
    labeled = (case for case in flat(cases.values()) if case.known(job.classes))
    files = (job.labels / f"{case.case}{SUFFIX}" for case in labeled)
    return any(open_label(file).ignores for file in files if file.is_file())
