"""What one training is made from, and the fingerprint that tells two trainings apart. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from labelloop.base.documents import read_json
from labelloop.base.errors import UserError
from labelloop.base.files import digest
from labelloop.cases.annotation import UNKNOWN
from labelloop.inference.settings import Device
from labelloop.networks.plans import Plan
from labelloop.training.settings import (
    AXES,
    Determinism,
    PartialSettings,
    SegmenterSettings,
    TrainingSettings,
    cutmix_of,
    settings_of,
    version_of,
)


@dataclass(frozen=True)
class TrainingCase:
    """A case to train or validate on.

    Args:
        states: class name to present, absent or unknown; a class not named is unknown.
        key: fingerprint of the prepared image and label.
        full: the case belongs to the groups that ``settings.batches.full`` names.
        truth: the classes that annotators looked for; None: all that are known.
    """

    case: str
    split: Literal["train", "validation"]
    states: dict[str, str]
    key: str
    full: bool = False
    truth: tuple[str, ...] | None = None

    def is_truth(self, name: str) -> bool:
        """Say whether annotators, not models, said what is known of a class here."""
        known = self.states.get(name, UNKNOWN) != UNKNOWN
        return known and (self.truth is None or name in self.truth)

    def unknown(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of ``classes`` that nobody looked for in this case."""
        return tuple(name for name in classes if self.states.get(name, UNKNOWN) == UNKNOWN)

    def known(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of ``classes`` that somebody looked for in this case: its annotation type."""
        unknown = self.unknown(classes)
        return tuple(name for name in classes if name not in unknown)


@dataclass(frozen=True)
class TumorBank:
    """Tumor objects to paste (see ``labels.tumors``).

    Args:
        folder: folder of ``<case>.npz``.
        keys: fingerprint of each of these files, by case.
    """

    folder: Path
    keys: Mapping[str, str]


@dataclass(frozen=True)
class TrainingJob:
    """One training: data, plan, settings, and where the model goes.

    Args:
        name: name of the model.
        folder: where the finished model goes (``models/<model>``); work in progress lives in its ``work`` folder.
        images: folder of prepared images, ``<case>.b2nd`` (see ``prepared``).
        labels: folder of prepared labels, ``<case>.b2nd``, holding class ids.
        classes: classes in the order of the output channels; class ``i`` is channel ``i + 1``, background channel 0.
        class_ids: id of each class in the prepared labels; may name more classes than the model has.
        licenses: of what the model learns from, for its ``model.json``; they decide nothing.
        deterministic: equal jobs give equal bytes: true, also on a GPU, where it costs speed; ``auto``, on a CPU.
        workers: processes that load and augment, for each card; does not change the batches. 0: none, in turn with the
            training.
        cards: cards that share each batch, at most; on ``cpu``, processes (see ``distributed``).
        init_from: folder of a finished model whose weights the training starts from (see ``initial``).
        start_names: the class of ours that each class of that model is; those not named are none. None: they have our
            names.
        stage: folder on this node's own disk to which the arrays are copied first (see ``staging``); None: they are
            read in place.
        tumors: objects that ``settings.cutmix`` pastes.
    """

    name: str
    folder: Path
    plan: Plan
    images: Path
    labels: Path
    cases: tuple[TrainingCase, ...]
    classes: tuple[str, ...]
    class_ids: dict[str, int]
    settings: TrainingSettings
    device: Device = "auto"
    deterministic: Determinism = "auto"
    workers: int = 1
    cards: int = 1
    init_from: Path | None = None
    start_names: Mapping[str, str] | None = None
    tumors: TumorBank | None = None
    stage: str | None = None
    licenses: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def segmenter(self) -> SegmenterSettings:
        """The settings of a network that segments. Raises TypeError for another kind of training."""
        return settings_of(self.settings, SegmenterSettings)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all that decides the weights; name, folders, device, workers and cards are not part of it."""
        return digest(self._content())

    def _content(self) -> dict[str, Any]:
        content = {
            "version": version_of(self.settings),
            "plan": self.plan.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json", exclude_none=True),
            "classes": [(name, self.class_ids[name]) for name in self.classes],
            "cases": sorted((c.case, c.split, c.key, sorted(c.states.items())) for c in self.cases),
            "deterministic": self.deterministic,
        }
        if self.init_from:
            content["init_from"] = described(self.init_from)["weights_sha256"]
        if self.start_names is not None:
            content["start_names"] = sorted(self.start_names.items())
        settings = self.settings
        if not isinstance(settings, SegmenterSettings) or settings.sampling != "uniform":
            content["truth"] = sorted((c.case, sorted(c.truth)) for c in self.cases if c.truth is not None)
        if isinstance(settings, PartialSettings) and settings.batches:
            content["full"] = sorted(c.case for c in self.cases if c.full)
        if cutmix_of(settings) and self.tumors:
            content["tumors"] = sorted(self.tumors.keys.items())
        return content


def mirror_axes_of(job: TrainingJob) -> tuple[int, ...]:
    """Return the axes of the network's grid along which patches are mirrored.

    Of a plan that takes images as they are stored they mean something together only: a recipe names all, or none.
    """
    return tuple(job.plan.axis(AXES.index(axis)) for axis in job.segmenter.mirror_axes)


def described(model: Path) -> dict[str, Any]:
    """Return the ``model.json`` of a finished model. Raises UserError when there is none."""
    path = model / "model.json"
    if not path.is_file():
        raise UserError(f"init_from: {model} holds no model.json; it is not the folder of a finished model")
    return read_json(path)
