"""Chains of models: the ``inference:`` part of a recipe.

::

    inference:
      - {segment: coarse, step: 1}
      - {clean: [{remove_distant_islands: all, of: liver, beyond_z_mm: 130}, {keep_largest: [liver, spleen]}]}
      - {locate: coarse, margin_mm: 20}                # later steps segment the box around what was found
      - {segment: [tumor_a, tumor_b], merge: {tumor: union}, step: 0.5, mirror: false}
      - {segment: organs}
      - {compose: {organs: organs, tumor: tumor_a}}    # later entries are painted over earlier ones
      - {clean: {keep_slices: pancreas, of: liver, above_mm: 0}}    # see labels.clean

Every step but ``locate`` leaves a result, on the grid of the whole image. A ``segment`` step files it under the names
of its models (and that of ``as``), by which ``compose`` finds it: both ``tumor_a`` and ``tumor_b`` name the merged
result above. ``clean`` changes the latest result, also where it is filed.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from labelloop.base.classes import ClassInfo, ClassScheme
from labelloop.base.documents import place_of
from labelloop.base.errors import UserError
from labelloop.base.files import digest
from labelloop.base.sequences import flat
from labelloop.base.wording import named
from labelloop.images.datasets import label_counts
from labelloop.images.volume import Volume, axes_to_ras, canonical, inverse, restore, turned
from labelloop.inference.budget import Budget, Choice, Held
from labelloop.inference.engine import Predictor, softmax_
from labelloop.inference.export import Prediction, to_prediction
from labelloop.inference.labelmaps import compose, merge_union, merge_votes
from labelloop.inference.locate import Box, box_of_mask, box_of_slices, height_mm, in_whole, part_of
from labelloop.inference.out_of_memory import first_that_fits
from labelloop.inference.prepare import Prepared
from labelloop.inference.settings import Settings
from labelloop.inference.slices import SliceClassifier, is_slice_classifier
from labelloop.inference.steps import Clean, Compose, InferenceStep, Locate, Segment, Step, read_step
from labelloop.labels.clean import clean

log = logging.getLogger(__name__)


@dataclass
class State:
    """What the steps of a chain hand on for one case.

    ``volume`` is what the next ``segment`` sees, its axes as stored: the image, or the part of it that a ``locate``
    step cut out; ``box`` then says where that part lies in the canonical grid. Results lie on the grid of the image as
    stored.
    """

    volume: Volume
    modality: str
    results: dict[str, Prediction] = field(default_factory=dict)
    last: Prediction | None = None
    prepared: dict[str, Prepared] = field(default_factory=dict)
    box: Box | None = None
    whole: Volume = field(init=False)

    def __post_init__(self):
        self.whole = self.volume

    @property
    def latest(self) -> Prediction:
        """The result of the last step that left one. Raises UserError when none has."""
        if self.last is None:
            raise UserError("inference: nothing has been segmented")
        return self.last

    def bytes_beside(self, prepared: Prepared) -> int:
        """Return what is held in RAM besides an image that is prepared for a model, and the volume it is of."""
        results = {id(one.labels): one.labels for one in (self.last, *self.results.values()) if one is not None}
        others = [one.array for one in self.prepared.values() if one is not prepared]
        whole = self.whole.channels if self.box is not None else ()
        return sum(array.nbytes for array in (*results.values(), *others, *whole))

    def narrow(self, box: Box) -> None:
        """Let later steps see only what lies in ``box`` of the whole image's canonical grid."""
        part, as_stored = part_of(canonical(self.whole), box), inverse(axes_to_ras(self.whole.geometry))
        self.volume, self.box, self.prepared = turned(part, as_stored), box, {}

    def on_whole(self, prediction: Prediction) -> Prediction:
        """Return a prediction of ``volume`` on the grid of the whole image, as stored; outside it is background."""
        if self.box is None:
            return prediction
        labels = np.zeros(canonical(self.whole).array.shape, prediction.labels.dtype)
        part = canonical(Volume(prediction.labels, self.volume.geometry))
        labels[tuple(slice(*side) for side in self.box)] = part.array
        return Prediction(restore(labels, self.whole.geometry), prediction.rows)


Model = Predictor | SliceClassifier


class Chain:
    """Models and steps that behave like one :class:`~labelloop.inference.engine.Predictor`.

    Args:
        steps: the recipe's ``inference`` list.
        models: what the steps name: predictors, and slice classifiers to locate with.
        scheme: for names of class sets; without it, only the classes of the models are known.

    Raises:
        UserError: when a step, a model or a class is unknown, or no ``segment`` step comes first.
    """

    def __init__(
        self,
        steps: Sequence[Mapping | InferenceStep],
        models: Mapping[str, Model],
        scheme: ClassScheme | None = None,
    ):
        self.steps = [_parsed(number, step) for number, step in enumerate(steps, start=1)]
        self.models = dict(models)
        self.class_ids = _ids_of_all(self.models)
        self.scheme = scheme or _scheme_of(self.class_ids)
        self._check()

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes that the models know."""
        return tuple(self.class_ids)

    @property
    def upright(self) -> bool:
        """Whether a model knows upright patients only."""
        return any(model.plan.upright for model in self.models.values())

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all, besides the image, that a prediction depends on."""
        sets = {k: list(v) for k, v in self.scheme.sets.items()}
        given = [step.model_dump(mode="json", exclude_defaults=True, by_alias=True) for step in self.steps]
        # A list of pairs, because the order of a compose mapping decides and digest() ignores mapping order.
        steps = [[(k, list(v.items()) if isinstance(v, Mapping) else v) for k, v in s.items()] for s in given]
        return digest([steps, {name: m.fingerprint for name, m in self.models.items()}, sets])

    def predict(self, volume: Volume, modality: str) -> Prediction:
        """Run the steps on one volume; return the result of the last on the volume's grid."""
        return self.finish(self.begin(volume, modality))

    def begin(self, volume: Volume, modality: str) -> State:
        """Return what the steps start from, the image prepared for the first model; needs the CPU alone."""
        state, first = State(volume, modality), self.steps[0]
        lowest = first.min_height_mm if isinstance(first, Locate) else 0.0
        if first.models and height_mm(volume) >= lowest:
            _prepared(state, self.models[first.models[0]])
        return state

    def finish(self, begun: State) -> Prediction:
        """Return the result of the steps on what was begun."""
        for step in self.steps:
            STEPS[step.verb](self, begun, step)
        return begun.latest

    @property
    def device(self) -> torch.device:
        """What the models run on."""
        return next(iter(self.models.values())).device

    def predictor(self, name: str) -> Predictor:
        """Return a model that segments. Raises UserError for one that can only locate."""
        model = self.models[name]
        if isinstance(model, SliceClassifier):
            raise UserError(f"inference: {name} is a slice classifier; it can only locate")
        return model

    def ids(self, names: str | Sequence[str]) -> list[int]:
        """Return the ids of classes or class sets that the models of this chain know."""
        wanted = [names] if isinstance(names, str) else list(names)
        return [self.class_ids[n] for n in self.scheme.select(wanted) if n in self.class_ids]

    def _check(self) -> None:
        filed: set[str] = set()
        for number, step in enumerate(self.steps, start=1):
            if unknown := [n for n in step.models if n not in self.models]:
                known = ", ".join(self.models)
                raise UserError(f"inference step {number}: no model named {', '.join(unknown)}; known: {known}")
            if isinstance(step, Compose | Clean) and not filed:
                raise UserError(f"inference step {number} ({step.verb}): nothing has been segmented before")
            self._check_classes(number, step)
            self._check_ids(number, step)
            self._check_results(number, step, filed)
            filed |= {n for n in step.models if isinstance(self.models[n], Predictor)}
            filed |= {step.result} if isinstance(step, Segment) and step.result else set()
        if not any(step.verb == "segment" for step in self.steps):
            raise UserError("inference: a chain needs at least one segment step")

    def _check_classes(self, number: int, step: InferenceStep) -> None:
        for names in _classes_of(step):
            if names and not self.ids(names):
                raise UserError(f"inference step {number}: no model knows anything of {', '.join(names)}")

    def _check_ids(self, number: int, step: InferenceStep) -> None:
        """Refuse to clean by the ids of a scheme where label maps carry others."""
        ids, own = self.scheme.ids, self.class_ids
        meant = {value: name for name, value in ids.items()}
        other = [f"{n} is {own[n]}" for n in own if ids.get(n, own[n]) != own[n] or meant.get(own[n], n) != n]
        if other and isinstance(step, Clean):
            raise UserError(
                f"inference step {number} (clean): these ids of the models mean something else in {self.scheme.name}: "
                f"{named(other)}. Take a class scheme with the models' ids, or leave the step out"
            )

    def _check_results(self, number: int, step: InferenceStep, filed: set[str]) -> None:
        parts = step.compose if isinstance(step, Compose) else {}
        if missing := [n for n in parts.values() if n not in filed]:
            raise UserError(f"inference step {number}: compose from {missing}; results so far: {sorted(filed)}")
        for classes, name in parts.items():
            knows = self.models[name].class_ids.values() if name in self.models else self.class_ids.values()
            if not set(self.ids(classes)) & set(knows):
                raise UserError(f"inference step {number}: model {name} knows nothing of {classes}")
        for name in step.segment if isinstance(step, Segment) else ():
            if isinstance(self.models[name], SliceClassifier):
                raise UserError(f"inference step {number}: {name} is a slice classifier; it can only locate")


def load_chain(
    steps: Sequence[Mapping | InferenceStep],
    models: str | Path,
    scheme: ClassScheme | None = None,
    device: str = "auto",
    settings: Settings | None = None,
    deterministic: bool = False,
) -> Chain:
    """Return the chain of ``steps`` with the models that they name, from the folders ``<models>/<name>``."""
    parsed = [_parsed(number, step) for number, step in enumerate(steps, start=1)]
    names = dict.fromkeys(flat(step.models for step in parsed))
    loaded = {name: load_model(Path(models) / name, device, settings, None, deterministic) for name in names}
    return Chain(parsed, loaded, scheme)


def load_model(
    folder: str | Path,
    device: str = "auto",
    settings: Settings | None = None,
    budget: Budget | None = None,
    deterministic: bool = False,
) -> Model:
    """Return the model in a folder: a predictor, or a slice classifier. Raises UserError when it cannot be used."""
    if is_slice_classifier(folder):
        return SliceClassifier(folder, device)
    return Predictor(folder, device, settings, budget, deterministic)


def segment(predictors: Sequence[Predictor], state: State, union_ids: Sequence[int] = ()) -> Prediction:
    """Segment with one or several models.

    Models that share plan and classes: mean of their probabilities on the network grid. Others: votes on label maps
    (:func:`merge_votes`). ``union_ids`` are then painted wherever any of the models has them.
    """
    first = predictors[0]
    if len(predictors) == 1:
        prepared = _prepared(state, first)
        return first.finish(prepared, Held(ram_bytes=state.bytes_beside(prepared)))
    alike = all(p.plan == first.plan and p.class_ids == first.class_ids for p in predictors)
    singles: list[Prediction] = []
    total: torch.Tensor | None = None
    for predictor in predictors:
        prepared = _prepared(state, predictor)
        ram = state.bytes_beside(prepared) + sum(single.labels.nbytes for single in singles)
        there = total.nbytes if total is not None and total.device.type != "cpu" else 0
        scores, choice = predictor.logits(prepared, Held(2 if alike else 1, ram, there))
        if union_ids or not alike:  # what this model says alone
            singles.append(_finish(scores, state, predictor, choice))
        if alike:
            total = _sum(total, softmax_(scores))
        del scores  # before those of the next model
    if total is not None:
        result = _finish(total.div_(len(predictors)), state, first, choice, probabilities=True)
        del total
    else:
        known = [list(p.class_ids.values()) for p in predictors]
        result = Prediction(merge_votes([s.labels for s in singles], known), [])
    labels = result.labels
    for value in union_ids:
        labels = merge_union(labels, [s.labels for s in singles], value)
    ids = _ids_of_all(dict(enumerate(predictors)))
    return recount(labels, ids, state.volume, [result] if alike and not union_ids else [result, *singles])


def recount(labels: np.ndarray, ids: Mapping[str, int], volume: Volume, sources: Sequence[Prediction]) -> Prediction:
    """Return a prediction of ``labels``: volumes counted anew, confidence the mean over ``sources`` that have one."""
    counts, voxel_ml = label_counts(labels), volume.geometry.voxel_ml
    rows, told = [], flat(source.rows for source in sources)
    for name, value in ids.items():
        said = [row["confidence"] for row in told if row["class"] == name]
        sure = [confidence for confidence in said if confidence is not None]
        confidence = float(np.mean(sure)) if sure and value in counts else None
        rows.append({"class": name, "volume_ml": float(counts.get(value, 0) * voxel_ml), "confidence": confidence})
    return Prediction(labels, rows)


def _segment_step(chain: Chain, state: State, step: Segment) -> None:
    union_ids = flat(chain.ids(name) for name in step.merge)
    found = segment([_with_options(chain.predictor(n), step) for n in step.models], state, union_ids)
    state.last = state.on_whole(found)
    state.results |= dict.fromkeys(step.results, state.last)


def _with_options(predictor: Predictor, step: Segment) -> Predictor:
    changes: dict[str, Any] = {} if step.step is None else {"step": step.step}
    if step.mirror is not None:
        changes["mirror_axes"] = predictor.model.mirror_axes if step.mirror else ()
    return predictor.with_settings(**changes) if changes else predictor


def _locate_step(chain: Chain, state: State, step: Locate) -> None:
    """Narrow what later steps see. Where nothing is found, they see what they would have seen without this step."""
    name, height = step.locate, height_mm(state.whole)
    if height < step.min_height_mm:
        log.info("locate by %s: not needed, the image is only %.0f mm high", name, height)
        return
    model = chain.models[name]
    box = (
        _box_by_slices(model, state, step) if isinstance(model, SliceClassifier) else _box_by_labels(chain, state, step)
    )
    if box is None:
        log.warning("locate by %s: nothing found; the image is segmented as a whole", name)
        return
    state.narrow(box)
    log.info("locate by %s: %.0f of %.0f mm along z", name, height_mm(state.volume), height)


def _box_by_slices(model: SliceClassifier, state: State, step: Locate) -> Box | None:
    prepared = _prepared(state, model)
    box = box_of_slices(model.find(prepared), prepared.frame, step)
    return in_whole(box, state.box) if box and state.box else box


def _box_by_labels(chain: Chain, state: State, step: Locate) -> Box | None:
    """Return the box of what a segmenter found, which is run now unless an earlier step did."""
    name = step.locate
    if name not in state.results:
        state.results[name] = state.last = state.on_whole(segment([chain.predictor(name)], state))
    known = chain.models[name].class_ids.values()
    wanted = [i for i in (chain.ids(step.classes) if step.classes else known) if i in known]
    labels = canonical(Volume(state.results[name].labels, state.whole.geometry))
    return box_of_mask(np.isin(labels.array, wanted), labels.geometry.spacing_zyx, step)


def _compose_step(chain: Chain, state: State, step: Compose) -> None:
    parts = [(state.results[result], chain.ids(classes)) for classes, result in step.compose.items()]
    labels = compose([(prediction.labels, ids) for prediction, ids in parts])
    by_class: list[Prediction] = []  # per part, only the rows of the classes it contributes
    for prediction, ids in parts:
        rows = [r for r in prediction.rows if chain.class_ids[r["class"]] in ids]
        by_class.append(Prediction(prediction.labels, rows))
    used = {name: i for name, i in chain.class_ids.items() if any(i in ids for _, ids in parts)}
    state.last = recount(labels, used, state.whole, by_class)


def _clean_step(chain: Chain, state: State, step: Clean) -> None:
    oriented = canonical(Volume(state.latest.labels, state.whole.geometry))
    cleaned, rows = clean(oriented.array, oriented.geometry, step.clean, chain.scheme)
    for row in rows:
        if row["voxels_changed"]:
            log.info("%s: %d voxels of %s removed", row["step"], row["voxels_changed"], row["class"])
    _replace_latest(chain, state, restore(cleaned, state.whole.geometry))


def _replace_latest(chain: Chain, state: State, labels: np.ndarray) -> None:
    """Put ``labels`` in the place of the latest result, also where it is filed."""
    before = state.latest
    ids = {r["class"]: chain.class_ids[r["class"]] for r in before.rows}
    after = state.last = recount(labels, ids, state.whole, [before])
    state.results = {name: after if old is before else old for name, old in state.results.items()}


STEPS: dict[str, Callable[[Chain, State, Any], None]] = {
    "locate": _locate_step,
    "segment": _segment_step,
    "compose": _compose_step,
    "clean": _clean_step,
}
"""What each verb of a chain does."""


def _classes_of(step: InferenceStep) -> list[tuple[str, ...]]:
    """Return the classes of which some model must know something, as the step names them."""
    if isinstance(step, Locate):
        return [step.classes]
    if isinstance(step, Segment):
        return [tuple(step.merge)]
    return [cleaning.classes for cleaning in step.clean] if isinstance(step, Clean) else []


def _parsed(number: int, step: Mapping | InferenceStep) -> InferenceStep:
    if isinstance(step, Step):
        return step
    try:
        return read_step(step)
    except ValidationError as error:
        lines = [f"{place_of(item['loc'])}: {item['msg']}".lstrip(": ") for item in error.errors()]
        raise UserError(f"inference step {number}: {'; '.join(lines)}") from None


def _scheme_of(ids: Mapping[str, int]) -> ClassScheme:
    """Return a scheme of the classes that models know."""
    known = tuple(ClassInfo(name=name, id=value, tolerance_mm=0, color="") for name, value in ids.items())
    return ClassScheme(name="of the models", classes=known)


def _ids_of_all(models: Mapping) -> dict[str, int]:
    ids: dict[str, int] = {}
    for model in models.values():
        for name, value in model.class_ids.items():
            if ids.setdefault(name, value) != value:
                raise UserError(f"models disagree on the id of {name}: {ids[name]} and {value}")
    return ids


def _prepared(state: State, model: Model) -> Prepared:
    """Return the image on the model's network grid, prepared once per way of preparing."""
    key = digest(model.plan.images)
    if key not in state.prepared:
        state.prepared[key] = model.prepare(state.volume, state.modality)
    return state.prepared[key]


def _sum(total: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
    """Return ``total`` plus ``scores``: in RAM, once scores of a model did not fit the GPU."""
    if total is None:
        return scores
    return total.to(scores.device).add_(scores) if scores.device.type == "cpu" else total.add_(scores.to(total.device))


def _finish(
    scores: torch.Tensor, state: State, predictor: Predictor, choice: Choice, probabilities: bool = False
) -> Prediction:
    """Return the prediction of scores that are all there; in RAM, where the GPU has no room for it."""
    frame, mode = _prepared(state, predictor).frame, predictor.settings.mode
    classes, ids = predictor.classes, predictor.class_ids

    def export(device: torch.device) -> Prediction:
        return to_prediction(scores.to(device), frame, classes, ids, mode, probabilities, choice.slab_voxels)

    return first_that_fits(list(dict.fromkeys([scores.device, torch.device("cpu")])), export)
