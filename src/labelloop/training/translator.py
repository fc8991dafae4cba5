"""Train the CT-to-MR translator: a 3-D CycleGAN (He et al., FLARE 2024, section 2.3 and Table 2).

Every batch, and what the image pools do with it, follows from the seed and its number alone; a killed training goes on
from its last checkpoint, which holds the pools too, and ends with the weights of an uninterrupted one.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from labelloop.base.errors import UserError
from labelloop.base.files import digest, write_json, write_text
from labelloop.base.paths import TRANSLATOR_OUTPUTS
from labelloop.base.precision import DTYPES, Precision, has_units
from labelloop.base.sequences import flat
from labelloop.base.tables import write_table
from labelloop.inference.prepared import open_image
from labelloop.inference.settings import Device
from labelloop.inference.translate import BLACK
from labelloop.networks.generator import Discriminator, Generator, initialize
from labelloop.networks.plans import Plan
from labelloop.networks.settings import TranslatorSettings
from labelloop.training.cpu import by_onednn
from labelloop.training.loading import Draw, ahead, isolated_random_state, seed_of
from labelloop.training.loop import Losses, Pause, means, run_epochs, run_updates, tell_resumed
from labelloop.training.settings import TRANSLATOR_VERSION, Determinism
from labelloop.training.setup import resolve_device, set_determinism
from labelloop.training.staging import Place, staged
from labelloop.training.work import Work

log = logging.getLogger(__name__)

LOOKS = ("ct", "mr")


@dataclass(frozen=True)
class GreyCase:
    """A volume to learn a look from: an image prepared by a plan with a grey scale (``.b2nd``), and its key.

    ``box``: the part that patches come from, (start, stop) per axis z, y, x; None: all of it. Patches that are longer
    than it reach beyond it.
    """

    case: str
    path: Path
    key: str
    box: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class TranslatorJob:
    """One training of a translator.

    Args:
        name: name of the model.
        folder: where the finished model goes; work in progress lives in its ``work`` folder.
        plan: by which the images of the cases were prepared.
        ct, mr: cases of either look; they need not be paired.
        workers: processes that load patches; does not change them. 0: none, in turn with the training.
        deterministic: equal jobs give equal bytes: true, also on a GPU, where it costs speed; ``auto``, on a CPU.
        stage: folder on this node's own disk to which the images are copied first (see ``staging``), or None.
        licenses: of what the model learns from, for its ``model.json``; they decide nothing.
    """

    name: str
    folder: Path
    plan: Plan
    ct: tuple[GreyCase, ...]
    mr: tuple[GreyCase, ...]
    settings: TranslatorSettings
    device: Device = "auto"
    deterministic: Determinism = "auto"
    workers: int = 0
    stage: str | None = None
    licenses: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def cases(self) -> dict[str, tuple[GreyCase, ...]]:
        """Return the cases of each look, in the order of their ids."""
        return {look: tuple(sorted(getattr(self, look), key=lambda c: c.case)) for look in LOOKS}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all that decides the weights; name, folder, device and workers are not part of it."""
        keys = {look: [(c.case, c.key, c.box) for c in cases] for look, cases in self.cases.items()}
        settings = self.settings.model_dump(mode="json", exclude={"kind"})
        return digest([TRANSLATOR_VERSION, settings, self.plan.images, keys, self.deterministic])


def train_translator(job: TranslatorJob) -> None:
    """Train, or go on where a killed training was, and publish the model in ``job.folder``.

    Raises:
        UserError: when a look has no cases, or the work folder is damaged.
    """
    for look, cases in job.cases.items():
        if not cases:
            raise UserError(f"translator {job.name}: no {look.upper()} case to learn from; at least one is needed")
    precision = precision_of(resolve_device(job.device))
    work = Work(job.folder / "work", job.fingerprint, precision, TRANSLATOR_OUTPUTS)
    if work.begin():
        log.info("%s: nothing changed, reusing the finished training", job.name)
    else:
        files = [case.path for case in flat(job.cases.values())]
        with staged(files, job.stage) as place:
            training = TranslatorTraining(replace(job, ct=_near(job.ct, place), mr=_near(job.mr, place)))
            training.fit(work)
            training.write(work)
        work.finish(job.settings.epochs)
    work.publish(job.folder, job.name, job.licenses)


def _near(cases: tuple[GreyCase, ...], place: Place) -> tuple[GreyCase, ...]:
    return tuple(replace(case, path=place(case.path.parent) / case.path.name) for case in cases)


def precision_of(device: torch.device) -> Precision:
    """Return what a translator computes in: bf16, which reaches as far as fp32, on a GPU that has units for it."""
    return "bf16" if device.type == "cuda" and has_units("bf16", device) else "fp32"


class Patches(torch.utils.data.Dataset):
    """The patches of each update, and the generator that drew them, which its pools draw on next.

    Args:
        job: the training; an image is open only while a patch is read from it.
    """

    def __init__(self, job: TranslatorJob):
        self._cases, self._settings = job.cases, job.settings

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        rng = np.random.default_rng(seed_of(self._settings.seed, *draw))
        return {look: self.patch(look, rng) for look in LOOKS} | {"rng": rng}

    def patch(self, look: str, rng: np.random.Generator) -> torch.Tensor:
        """Return a random patch [1, 1, z, y, x] of a random case, as the network sees it; black beyond the volume.

        It lies in the box of the case, or reaches as far beyond it as the patch is longer than the box.
        """
        cases, size = self._cases[look], self._settings.patch
        case = cases[int(rng.integers(len(cases)))]
        array = open_image(case.path).array
        sides = array.shape[1:]
        box = case.box or tuple((0, n) for n in sides)
        starts = [low + int(rng.integers(max(1, high - low - p + 1))) for (low, high), p in zip(box, size, strict=True)]
        starts = [max(0, min(start, n - p)) for start, n, p in zip(starts, sides, size, strict=True)]
        stops = [min(start + p, n) for start, n, p in zip(starts, sides, size, strict=True)]
        part = array[0, *(slice(*ends) for ends in zip(starts, stops, strict=True))]
        missing = [(0, p - n) for n, p in zip(part.shape, size, strict=True)]
        return torch.from_numpy(np.pad(part, missing, constant_values=BLACK))[None, None]


class Pool:
    """The last fakes: half of the time a discriminator is shown one of them for the newest (CycleGAN)."""

    def __init__(self, size: int):
        self._size = size
        self.fakes: list[torch.Tensor] = []

    def swap(self, fake: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return ``fake``, or an older one whose place it takes."""
        if len(self.fakes) < self._size:
            self.fakes.append(fake)
            return fake
        if not self._size or rng.random() < 0.5:
            return fake
        place = int(rng.integers(self._size))
        older, self.fakes[place] = self.fakes[place], fake
        return older


class TranslatorTraining:
    """The training of a translator in progress."""

    def __init__(self, job: TranslatorJob):
        self.job, self.settings = job, job.settings
        self.device = resolve_device(job.device)
        self.precision = precision_of(self.device)
        self.deterministic = set_determinism(job.deterministic, self.device)
        s = self.settings
        with isolated_random_state(seed_of(s.seed, "networks")):
            self.networks = nn.ModuleDict(
                {f"to_{look}": initialize(Generator(s.features, s.blocks)) for look in LOOKS}
                | {f"is_{look}": initialize(Discriminator(s.features, s.layers)) for look in LOOKS}
            ).to(self.device)
        by_onednn(self.networks)
        self.optimizers = {
            kind: torch.optim.Adam(
                flat(self.networks[f"{kind}_{look}"].parameters() for look in LOOKS), s.learning_rate, s.betas
            )
            for kind in ("to", "is")
        }
        self.pools = {look: Pool(s.pool) for look in LOOKS}
        self.epochs: list[dict[str, float]] = []
        self.losses: list[Losses] = []  # of the updates of the epoch under way

    def fit(self, work: Work) -> None:
        """Train to the last epoch, from the last checkpoint of ``work`` if it has one.

        Ctrl-C and SIGTERM end the process after the update at hand, at a checkpoint.
        """
        if work.checkpoint.is_file():
            self._load(work.load())
        s = self.settings
        updates = product(self._epochs, range(s.iterations_per_epoch))
        draws = [Draw("translator", epoch, number) for epoch, number in updates]
        stream = ahead(Patches(self.job), draws[len(self.losses) :], self.job.workers, self.device.type == "cuda")
        run_epochs(self._epochs, s.save_every, stream, self._run_epoch, lambda: self._save(work))

    def write(self, work: Work) -> None:
        """Write all finished files; ``weights.pt`` holds the generator from CT to MR alone."""
        folder, job = work.finished, self.job
        weights_sha256 = work.write_weights(self.networks["to_mr"].state_dict())
        write_text(folder / "training.jsonl", "".join(json.dumps(e, sort_keys=True) + "\n" for e in self.epochs))
        cases = flat(job.cases[look] for look in LOOKS)
        rows = [{"case": case.case, "split": "train", "key": case.key} for case in cases]
        write_table(folder / "cases.csv", rows, "training_cases")
        description = {
            "name": job.name,
            "kind": "translator",
            "plan": job.plan.model_dump(mode="json"),
            "settings": job.settings.model_dump(mode="json"),
            "fingerprint": job.fingerprint,
            "precision": self.precision,
            "deterministic": self.deterministic,
            "training_version": TRANSLATOR_VERSION,
            "versions": {name: version(name) for name in ("labelloop", "torch")},
            "cases": {look: len(cases) for look, cases in job.cases.items()},
            "epoch": len(self.epochs),
            "weights_sha256": weights_sha256,
        }
        write_json(folder / "model.json", description)

    def _run_epoch(self, epoch: int, batches: Iterator[dict[str, Any]], pause: Pause) -> None:
        s = self.settings
        rate = s.learning_rate * rate_factor(epoch, s)
        for group in flat(optimizer.param_groups for optimizer in self.optimizers.values()):
            group["lr"] = rate
        self.networks.train()
        losses = means(run_updates(self.losses, s.iterations_per_epoch, lambda _: self._learn(next(batches)), pause))
        self.losses = []
        self.epochs.append({"epoch": epoch + 1, "learning_rate": rate} | losses)
        told = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
        log.info("%s: epoch %d/%d: %s", self.job.name, epoch + 1, s.epochs, told)

    def _learn(self, batch: Mapping[str, Any]) -> Losses:
        return self._step({look: batch[look].to(self.device, non_blocking=True) for look in LOOKS}, batch["rng"])

    def _step(self, real: Mapping[str, torch.Tensor], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Learn from one patch of either look; return the losses."""
        s = self.settings
        self._discriminators_learn(False)
        losses, fakes = self._generator_losses(real)
        total = losses["adversarial"] + s.cycle * losses["cycle"] + s.identity * losses["identity"]
        self._update("to", total)
        self._discriminators_learn(True)
        shown = {look: self.pools[look].swap(fake.detach(), rng) for look, fake in fakes.items()}
        losses["discriminator"] = sum(
            (self._verdict(look, real[look], True) + self._verdict(look, shown[look], False)) / 2 for look in LOOKS
        )
        self._update("is", losses["discriminator"])
        return {name: loss.detach() for name, loss in losses.items()}

    def _generator_losses(self, real: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return the generators' losses and the fakes: He's equations 4 and 5, both ways, and CycleGAN's others."""
        losses: dict[str, Any] = dict.fromkeys(("adversarial", "cycle", "identity"), 0.0)
        fakes = {}
        for look, other in (LOOKS, LOOKS[::-1]):
            back = partial(self._run, f"to_{look}")
            fake = fakes[other] = self._run(f"to_{other}", real[look])
            losses["adversarial"] = losses["adversarial"] + self._verdict(other, fake, True)
            losses["cycle"] = losses["cycle"] + functional.l1_loss(back(fake), real[look])
            if self.settings.identity:
                losses["identity"] = losses["identity"] + functional.l1_loss(back(real[look]), real[look])
        losses["identity"] = torch.as_tensor(losses["identity"], device=self.device)
        return losses, fakes

    def _run(self, name: str, image: torch.Tensor) -> torch.Tensor:
        """Return what a network makes of an image, in full precision."""
        with torch.autocast(self.device.type, DTYPES.get(self.precision), enabled=self.precision in DTYPES):
            return self.networks[name](image).float()

    def _verdict(self, look: str, image: torch.Tensor, real: bool) -> torch.Tensor:
        """Return the loss of the discriminator of a look for calling ``image`` the contrary of ``real``."""
        logits = self._run(f"is_{look}", image)
        target = torch.full_like(logits, float(real))
        if self.settings.adversarial == "vanilla":
            return functional.binary_cross_entropy_with_logits(logits, target)
        return functional.mse_loss(logits, target)

    def _update(self, kind: str, loss: torch.Tensor) -> None:
        self.optimizers[kind].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[kind].step()

    def _discriminators_learn(self, learn: bool) -> None:
        for look in LOOKS:
            self.networks[f"is_{look}"].requires_grad_(learn)

    @property
    def _epochs(self) -> range:
        """The epochs to come, from 0."""
        return range(len(self.epochs), self.settings.epochs)

    def _save(self, work: Work) -> None:
        work.save(len(self.epochs), self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "networks": self.networks.state_dict(),
            "optimizers": {kind: optimizer.state_dict() for kind, optimizer in self.optimizers.items()},
            "pools": {look: pool.fakes for look, pool in self.pools.items()},
            "epochs": self.epochs,
            "losses": self.losses,
            "deterministic": self.deterministic,
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
        for kind, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][kind])
        for look, pool in self.pools.items():
            pool.fakes = [fake.to(self.device) for fake in state["pools"][look]]
        self.epochs, self.losses = state["epochs"], state["losses"]
        self.deterministic &= state.get("deterministic", True)
        tell_resumed(self.job.name, self._epochs, self.losses)


def rate_factor(epoch: int, settings: TranslatorSettings) -> float:
    """Return the learning rate of an epoch (from 0) as a share of the first: 1 - max(0, epoch + 2 - 200) / 201.

    200 is ``decay_from`` and 201 one more than the epochs after it (He, Table 2): the last epoch has none.
    """
    return 1 - max(0, epoch + 2 - settings.decay_from) / (max(0, settings.epochs - settings.decay_from) + 1)
