"""Train a slice classifier (Mao et al., FLARE 2023, section 2.2): which axial slices show a class of the model?

Like every training here it is reproducible (each batch follows from the seed and its number), goes on after a kill
with the weights it would have had, and publishes finished files only. What it sees and how it is asked is shared with
:mod:`labelloop.inference.slices`.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch.nn import functional

from labelloop.base.classes import IGNORED
from labelloop.base.files import write_json
from labelloop.base.paths import SLICE_OUTPUTS
from labelloop.base.tables import write_table
from labelloop.cases.annotation import PRESENT
from labelloop.inference.prepared import SUFFIX, open_image, open_label
from labelloop.inference.settings import SliceInput
from labelloop.inference.slices import KIND, THRESHOLD, build_classifier, classify, slice_inputs
from labelloop.training.job import TrainingCase, TrainingJob
from labelloop.training.loading import Draw, isolated_random_state, iterate, seed_of
from labelloop.training.loop import Losses, Pause, means, run_epochs, run_updates, tell_resumed
from labelloop.training.progress import Progress
from labelloop.training.settings import SLICE_VERSION, SliceClassifierSettings, settings_of
from labelloop.training.setup import resolve_device, set_determinism, usable_cases
from labelloop.training.staging import staged_job
from labelloop.training.trainers.supervised import SupervisedTrainer
from labelloop.training.work import Work

log = logging.getLogger(__name__)


def train(job: TrainingJob) -> None:
    """Train the slice classifier of ``job`` and write the files of :data:`~labelloop.base.paths.SLICE_OUTPUTS`.

    ``scores.csv`` says how well it tells all slices of the held-out cases.

    Raises:
        UserError: when no case can be trained on, or the work folder claims progress that it does not have.
    """
    work = Work(job.folder / "work", job.fingerprint, "fp32", SLICE_OUTPUTS)
    if work.begin():
        log.info("%s: nothing changed, reusing the finished training", job.name)
    else:
        if job.cards > 1:
            log.warning("%s: a slice classifier is trained on one card, not on %d", job.name, job.cards)
        with staged_job(job) as near:
            training = SliceTraining(near)
            training.fit(work)
            training.write(work)
        work.finish(len(training.progress.epochs))
    work.publish(job.folder, job.name, job.licenses)


@dataclass(frozen=True)
class SlicedCase:
    """A case and, for each of its planes, whether it shows a class of the model, and whether that is known.

    Voxels of a class that is absent from the case show none: their label was refused. What shows none beside ignored
    voxels may show one.
    """

    case: TrainingCase
    positive: np.ndarray
    known: np.ndarray


class SliceTraining:
    """The training of a slice classifier in progress."""

    def __init__(self, job: TrainingJob):
        self.job, self.settings = job, settings_of(job.settings, SliceClassifierSettings)
        self.device = resolve_device(job.device)
        kept = usable_cases(job, SupervisedTrainer.why_not, SupervisedTrainer.SPLITS)
        self.cases = {split: [self._sliced(c) for c in cases] for split, cases in kept.items()}
        for split, cases in self.cases.items():
            positive = sum(int(c.positive.sum()) for c in cases)
            known = sum(int(c.known.sum()) for c in cases)
            log.info("%s: %s: %d of %d slices positive", job.name, split, positive, known)
        self.deterministic = set_determinism(job.deterministic, self.device)
        with isolated_random_state(seed_of(self.settings.seed, "network")):
            self.network = build_classifier().to(self.device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        self.progress = Progress()
        self.losses: list[Losses] = []  # of the updates of the epoch under way

    def fit(self, work: Work) -> None:
        """Train to the last epoch, from the last checkpoint of ``work`` if it has one.

        Ctrl-C and SIGTERM end the process after the update at hand, at a checkpoint.
        """
        if work.checkpoint.is_file():
            self._load(work.load())
        s = self.settings
        loaders = {"train": self._loader("train", augment=True)}
        if self.cases["validation"] and s.validation_iterations:
            loaders["validation"] = self._loader("validation", augment=False)
        epochs = [self._draws(epoch, loaders) for epoch in self._epochs]
        draws = list(itertools.chain.from_iterable(epochs))[len(self.losses) :]
        batches = iterate(loaders, draws, s.seed, self.job.workers, self.device.type == "cuda")
        run = partial(self._run_epoch, validate="validation" in loaders)
        run_epochs(self._epochs, s.save_every, batches, run, lambda: self._save(work))

    def write(self, work: Work) -> None:
        """Score the held-out slices and write all finished files."""
        folder, job = work.finished, self.job
        weights_sha256 = work.write_weights(self.network.state_dict())
        self.progress.write(folder / "training.jsonl")
        rows = []
        for split, cases in self.cases.items():
            rows += [{"case": c.case.case, "split": split, "key": c.case.key} for c in cases]
        write_table(folder / "cases.csv", rows, "training_cases")
        scores = self.held_out_scores()
        write_table(folder / "scores.csv", scores, "slice_scores")
        description = {
            "name": job.name,
            "kind": KIND,
            "looks_for": list(job.classes),
            "plan": job.plan.model_dump(mode="json"),
            "input": SliceInput(**self.settings.model_dump(include=set(SliceInput.model_fields))).model_dump(
                mode="json"
            ),
            "settings": job.settings.model_dump(mode="json", exclude_none=True),
            "fingerprint": job.fingerprint,
            "deterministic": self.deterministic,
            "training_version": SLICE_VERSION,
            "versions": {name: version(name) for name in ("labelloop", "torch", "torchvision")},
            "cases": {split: len(cases) for split, cases in self.cases.items()},
            "epoch": len(self.progress.epochs),
            "scores": scores,
            "weights_sha256": weights_sha256,
        }
        write_json(folder / "model.json", description)

    def held_out_scores(self) -> list[dict[str, Any]]:
        """Return the row of ``slice_scores``: all slices of all held-out cases together; none without such cases."""
        cases = self.cases["validation"]
        if not cases:
            return []
        self.network.eval()
        found = [
            classify(self.network, self._image(c.case).array[0], self.job.plan.ct_of(), self.settings, self.device)[
                c.known
            ]
            for c in cases
        ]
        row = slice_scores(np.concatenate([c.positive[c.known] for c in cases]), np.concatenate(found))
        log.info(
            "%s: %d slices of %d held-out cases: AUC %s, accuracy %s, sensitivity %s, specificity %s",
            self.job.name, row["slices"], len(cases),
            *("undefined" if row[k] is None else f"{row[k]:.3f}" for k in ("auc", *RATES)),
        )  # fmt: skip
        return [{"split": "validation", "cases": len(cases), **row}]

    def _run_epoch(self, epoch: int, batches: Iterator[dict[str, Any]], pause: Pause, validate: bool) -> None:
        s = self.settings
        rate = s.learning_rate * (1 - epoch / s.epochs) ** s.poly_exponent
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        train = means(
            run_updates(self.losses, s.iterations_per_epoch, lambda _: self._train_step(next(batches)), pause)
        )
        self.losses = []
        self.network.eval()
        rest = [self._validate(next(batches)) for _ in range(s.validation_iterations)] if validate else []
        validation = {key: float(np.mean([row[key] for row in rest])) for key in (rest[0] if rest else ())}
        self.progress.add(rate, train, validation, {})
        log.info(
            "%s: epoch %d/%d: loss %.4f, held-out accuracy %s",
            self.job.name, epoch + 1, s.epochs, self.progress.epochs[-1]["train"]["loss"],
            f"{validation['accuracy']:.3f}" if rest else "unknown",
        )  # fmt: skip

    def _train_step(self, batch: dict[str, Any]) -> Losses:
        self.optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(self.network(batch["data"].to(self.device)), batch["target"].to(self.device))
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    @torch.no_grad()
    def _validate(self, batch: dict[str, Any]) -> dict[str, float]:
        logits, target = self.network(batch["data"].to(self.device)), batch["target"].to(self.device)
        right = (logits.argmax(1) == target).float().mean()
        return {"loss": float(functional.cross_entropy(logits, target)), "accuracy": float(right)}

    def _draws(self, epoch: int, loaders: dict[str, "SliceLoader"]) -> Iterator[Draw]:
        yield from (Draw("train", epoch, i) for i in range(self.settings.iterations_per_epoch))
        if "validation" in loaders:  # the same slices in every epoch, so that the numbers can be compared
            yield from (Draw("validation", 0, i) for i in range(self.settings.validation_iterations))

    def _loader(self, split: str, augment: bool) -> "SliceLoader":
        return SliceLoader(self.job, self.cases[split], self.settings, augment)

    def _sliced(self, case: TrainingCase) -> SlicedCase:
        label = open_label(self.job.labels / f"{case.case}{SUFFIX}").array[0]
        present = [self.job.class_ids[name] for name in self.job.classes if case.states.get(name) == PRESENT]
        positive = np.any(np.isin(label, present), (1, 2))
        return SlicedCase(case, positive, positive | ~np.any(label == IGNORED, (1, 2)))

    def _image(self, case: TrainingCase):
        return open_image(self.job.images / f"{case.case}{SUFFIX}")

    @property
    def _epochs(self) -> range:
        """The epochs to come, from 0."""
        return range(len(self.progress.epochs), self.settings.epochs)

    def _save(self, work: Work) -> None:
        work.save(len(self.progress.epochs), self._state())

    def _state(self) -> dict[str, Any]:
        networks = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return networks | {
            "epochs": self.progress.epochs,
            "losses": self.losses,
            "deterministic": self.deterministic,
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress.epochs, self.losses = state["epochs"], state["losses"]
        self.deterministic &= state.get("deterministic", True)
        tell_resumed(self.job.name, self._epochs, self.losses)


class SliceLoader:
    """Makes batches of slices drawn from all slices alike, by numpy's global generator."""

    def __init__(self, job: TrainingJob, cases: Sequence[SlicedCase], view: SliceClassifierSettings, augment: bool):
        self._folder, self._ct, self._view, self._augment = job.images, job.plan.ct_of(), view, augment
        self._slices: list[tuple[str, int, bool]] = []
        for c in cases:
            self._slices += [(c.case.case, int(z), bool(c.positive[z])) for z in np.flatnonzero(c.known)]

    def generate_train_batch(self) -> dict[str, Any]:
        """Return what the network sees [batch, 3, size, size], whether each shows a class, and their cases."""
        chosen = [self._slices[i] for i in np.random.randint(len(self._slices), size=self._view.batch_size)]
        data = []
        for case, z, _ in chosen:
            plane = torch.from_numpy(open_image(self._folder / f"{case}{SUFFIX}").array[0, z : z + 1])
            placement = _placement(self._view, plane.shape[1:]) if self._augment else None
            data.append(slice_inputs(plane, self._ct, self._view, placement))
        target = torch.tensor([int(positive) for _, _, positive in chosen])
        return {"data": torch.cat(data), "target": target, "keys": [case for case, _, _ in chosen]}


def _placement(view: SliceClassifierSettings, shape: Sequence[int]) -> torch.Tensor:
    """Draw a rotation, a shift and a zoom [1, 2, 3]; the rotation is one in the patient, whatever the slice's sides."""
    angle = np.deg2rad(np.random.uniform(-view.rotate_degrees, view.rotate_degrees))
    zoom = 1 + np.random.uniform(-view.zoom, view.zoom)
    x, y = np.random.uniform(-2 * view.shift, 2 * view.shift, 2)  # sides reach from -1 to 1
    cosine, sine, aspect = np.cos(angle) * zoom, np.sin(angle) * zoom, shape[0] / shape[1]
    return torch.tensor([[[cosine, -sine * aspect, x], [sine / aspect, cosine, y]]], dtype=torch.float32)


RATES = ("accuracy", "sensitivity", "specificity")


def slice_scores(positive: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    """Return how well probabilities tell slices, as the columns of ``slice_scores`` have it; None for 0/0.

    Args:
        positive: whether each slice shows a class. probability: what the classifier says of it.
    """
    right = (probability >= THRESHOLD) == positive
    both = positive.any() and not positive.all()
    return {
        "slices": len(positive),
        "positive": int(positive.sum()),
        "auc": _auc(positive, probability) if both else None,
        "accuracy": float(right.mean()),
        "sensitivity": float(right[positive].mean()) if positive.any() else None,
        "specificity": float(right[~positive].mean()) if not positive.all() else None,
    }


def _auc(positive: np.ndarray, probability: np.ndarray) -> float:
    """Return the share of pairs of a positive and a negative slice that the probability puts in order (ties: half)."""
    positives, negatives = positive.sum(), (~positive).sum()
    above = rankdata(probability)[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
