"""Label maps in a model's own ids, told in the classes of a scheme by a data set file."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from labelloop.base.classes import BACKGROUND, IGNORED, ClassScheme
from labelloop.base.errors import UserError
from labelloop.base.files import digest
from labelloop.base.wording import named
from labelloop.images.datasets import Dataset, called_otherwise
from labelloop.images.volume import Volume
from labelloop.inference.export import Prediction
from labelloop.inference.postprocess import Chain

if TYPE_CHECKING:
    import torch

    from labelloop.inference.engine import Predictor

log = logging.getLogger(__name__)


class Relabeled:
    """Segments as another segmenter does, in the ids of a class scheme.

    What the data set file lists as no class (null) becomes background, as in label maps of that data set. What it does
    not list at all becomes :data:`~labelloop.base.classes.IGNORED`: nobody said what it is, and background would be a
    claim. Classes of the scheme that the models do not know have no row: they were not looked for.

    ``ignores`` says whether label maps may hold that.

    Args:
        segmenter: whose ids are those of ``dataset``.
        dataset: loaded for ``scheme``.

    Raises:
        UserError: when none of the ids is a class of the scheme.
    """

    def __init__(self, segmenter: "Predictor | Chain", dataset: Dataset, scheme: ClassScheme):
        self._segmenter, self._own = segmenter, dict(segmenter.class_ids)
        known = {own: dataset.class_of(own) for own in self._own.values()}
        self.classes = tuple(name for name in scheme.names if name in known.values())
        self.class_ids = {name: scheme.ids[name] for name in self.classes}
        if not self.classes:
            ids = ", ".join(f"{value} {name}" for name, value in list(self._own.items())[:10])
            raise UserError(f"data set {dataset.name}: none of the model's labels is a class of {scheme.name}: {ids}")
        self._class_of = {name: known[own] for name, own in self._own.items()}
        self._table = np.full(IGNORED + 1, IGNORED, np.uint8)
        self._table[BACKGROUND] = BACKGROUND
        for own in set(self._own.values()) & (set(dataset.labels) - dataset.ignored):
            self._table[own] = self.class_ids.get(known[own] or "", BACKGROUND)
        self.ignores = bool((self._table[list(self._own.values())] == IGNORED).any())
        self._tell(dataset, scheme)

    def _tell(self, dataset: Dataset, scheme: ClassScheme) -> None:
        unlisted = [name for name, own in self._own.items() if own not in dataset.labels]
        unknown = [name for name in scheme.names if name not in self.classes]
        otherwise = called_otherwise(self._own, dataset)
        if otherwise:
            log.warning("the model's names and the data set file contradict each other: %s", "; ".join(otherwise))
        if unlisted:
            log.warning("data set %s lists no %s: such voxels are %d, unknown", dataset.name, named(unlisted), IGNORED)
        if unknown:
            log.info("classes of %s that the model does not know: %s", scheme.name, named(unknown))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all, besides the image, that a prediction depends on."""
        return digest([self._segmenter.fingerprint, self._table.tolist(), self.class_ids])

    @property
    def upright(self) -> bool:
        """Whether volumes that are stored upside down are to be turned upright."""
        return self._segmenter.upright

    @property
    def device(self) -> "torch.device":
        """What the networks run on."""
        return self._segmenter.device

    def predict(self, volume: Volume, modality: str) -> Prediction:
        """Begin and finish at once."""
        return self.finish(self.begin(volume, modality))

    def begin(self, volume: Volume, modality: str) -> Any:
        """Return what the segmenter begins with."""
        return self._segmenter.begin(volume, modality)

    def finish(self, begun: Any) -> Prediction:
        """Return the prediction of what was begun; parts of one class count together."""
        found = self._segmenter.finish(begun)
        rows = []
        for name in self.classes:
            parts = [row for row in found.rows if self._class_of[row["class"]] == name and row["volume_ml"]]
            volume = sum(row["volume_ml"] for row in parts)
            sure = [row["volume_ml"] * row["confidence"] for row in parts if row["confidence"] is not None]
            rows.append({"class": name, "volume_ml": volume, "confidence": sum(sure) / volume if sure else None})
        return Prediction(self._table[found.labels], rows)
