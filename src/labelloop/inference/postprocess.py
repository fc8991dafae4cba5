"""Chains of models: the ``inference:`` part of a recipe, and the operations on label maps that it is made of.

::

    inference:
      - {segment: [tumor_a, tumor_b], merge: {tumor: union}, step: 0.5, mirror: false}
      - {segment: organs}
      - {compose: {organs: organs, tumor: tumor_a}}    # later entries are painted over earlier ones
      - {keep_largest: [liver, spleen]}

Every step leaves a result. A ``segment`` step files it under the names of its models, by which ``compose`` finds it
(both ``tumor_a`` and ``tumor_b`` name the merged result above); ``keep_largest`` changes the latest result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from labelloop.classes import ClassScheme
from labelloop.errors import UserError
from labelloop.files import digest
from labelloop.inference.budget import Budget
from labelloop.inference.engine import Predictor, softmax_
from labelloop.inference.export import Prediction, to_prediction
from labelloop.inference.prepare import Prepared
from labelloop.inference.settings import Settings
from labelloop.volume import Volume

# ---------------------------------------------------------------------------------------------- on label maps


def keep_largest(labels: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Return ``labels`` with only the largest 26-connected component of each id; the rest becomes background.

    Components are compared by voxel count, which on one grid is volume.
    """
    import cc3d
    from scipy.ndimage import find_objects

    result = labels.copy()
    boxes = find_objects(labels)
    for value in ids:
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        mask = np.ascontiguousarray(labels[box] == value)
        components = cc3d.connected_components(mask, connectivity=26)
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        result[box][mask & (components != sizes.argmax())] = 0
    return result


def merge_union(base: np.ndarray, maps: Sequence[np.ndarray], value: int) -> np.ndarray:
    """Return ``base`` with ``value`` painted wherever any of ``maps`` has it."""
    result = base.copy()
    for labels in maps:
        result[labels == value] = value
    return result


def merge_votes(maps: Sequence[np.ndarray], known: Sequence[Sequence[int]]) -> np.ndarray:
    """Merge label maps voxel by voxel: a class wins where at least half of the maps that know it have it.

    Args:
        maps: label maps of one shape.
        known: per map, the ids it can contain; it has no vote on others.

    Among several such classes the one with the larger share wins; then the one of the earlier map.
    """
    best = np.zeros(maps[0].shape, np.float32)
    result = np.zeros_like(maps[0])
    for value in dict.fromkeys(v for ids in known for v in ids):
        voters = [labels for labels, ids in zip(maps, known, strict=True) if value in ids]
        votes = np.zeros(best.shape, np.uint8)
        for labels in voters:
            votes += labels == value
        share = votes / np.float32(len(voters))
        wins = (share >= 0.5) & (share > best)
        result[wins], best[wins] = value, share[wins]
    return result


def compose(parts: Sequence[tuple[np.ndarray, Sequence[int]]]) -> np.ndarray:
    """Paint the given ids of each label map onto background, later parts over earlier ones."""
    result = np.zeros_like(parts[0][0])
    for labels, ids in parts:
        chosen = np.isin(labels, list(ids))
        result[chosen] = labels[chosen]
    return result


# ------------------------------------------------------------------------------------------------- the chain


@dataclass
class State:
    """What the steps of a chain hand on for one case.

    ``volume`` is what the next ``segment`` sees. A ``locate`` step will replace it by a part of the whole volume and
    keep where that part lies; everything else works on whatever ``volume`` is.
    """

    volume: Volume
    modality: str
    results: dict[str, Prediction] = field(default_factory=dict)
    latest: Prediction | None = None
    prepared: dict[str, Prepared] = field(default_factory=dict)


class Chain:
    """Models and steps that behave like one :class:`~labelloop.inference.engine.Predictor`.

    Args:
        steps: the recipe's ``inference`` list.
        models: the predictors that the steps name.
        scheme: for names of class sets in ``compose`` and ``keep_largest``; without it only class names are known.

    Raises:
        UserError: when a step, a model or a class is unknown, or no ``segment`` step comes first.
    """

    def __init__(self, steps: Sequence[Mapping], models: Mapping[str, Predictor], scheme: ClassScheme | None = None):
        # The recipe dumps every key of every step; those left open do not count.
        self.steps = [{k: v for k, v in s.items() if v is not None and v != {}} for s in steps]
        self.models, self.scheme = dict(models), scheme
        self.class_ids = _ids_of_all(self.models)
        self._check()

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes that the models know."""
        return tuple(self.class_ids)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all, besides the image, that a prediction depends on."""
        sets = {k: list(v) for k, v in self.scheme.sets.items()} if self.scheme else {}
        # A list of pairs, because the order of a compose mapping decides and digest() ignores mapping order.
        steps = [[(k, list(v.items()) if isinstance(v, Mapping) else v) for k, v in s.items()] for s in self.steps]
        return digest([steps, {name: m.fingerprint for name, m in self.models.items()}, sets])

    def predict(self, volume: Volume, modality: str) -> Prediction:
        """Run the steps on one volume and return the result of the last."""
        state = State(volume, modality)
        for step in self.steps:
            STEPS[_verb(step)](self, state, step)
        return state.latest

    def ids(self, names: str | Sequence[str]) -> list[int]:
        """Return the ids of classes or class sets that the models of this chain know."""
        wanted = [names] if isinstance(names, str) else list(names)
        if self.scheme is not None:
            wanted = self.scheme.select(wanted)
        elif unknown := [n for n in wanted if n not in self.class_ids]:
            raise UserError(f"inference: no class named {', '.join(unknown)}; known: {', '.join(self.class_ids)}")
        return [self.class_ids[n] for n in wanted if n in self.class_ids]

    def _check(self) -> None:
        filed: set[str] = set()
        for number, step in enumerate(self.steps, start=1):
            verb = _verb(step)
            if extra := set(step) - {verb, "merge", "step", "mirror"}:
                raise UserError(f"inference step {number} ({verb}): unknown keys {sorted(extra)}")
            if verb == "segment":
                names = _names(step["segment"])
                if unknown := [n for n in names if n not in self.models]:
                    known = ", ".join(self.models)
                    raise UserError(f"inference step {number}: no model named {', '.join(unknown)}; known: {known}")
                for name, how in step.get("merge", {}).items():
                    if how != "union" or not self.ids(name):
                        raise UserError(f"inference step {number}: merge {name}: {how}; only union, of a known class")
                filed |= set(names)
            elif not filed:
                raise UserError(f"inference step {number} ({verb}): nothing has been segmented before")
            elif verb == "compose":
                if unknown := [n for n in step["compose"].values() if n not in filed]:
                    raise UserError(f"inference step {number}: compose from {unknown}; results so far: {sorted(filed)}")
                for classes, model in step["compose"].items():
                    if not set(self.ids(classes)) & set(self.models[model].class_ids.values()):
                        raise UserError(f"inference step {number}: model {model} knows nothing of {classes}")
            else:
                self.ids(step["keep_largest"])
        if not filed:
            raise UserError("inference: a chain needs at least one segment step")


def load_chain(
    steps: Sequence[Mapping],
    models: str | Path,
    scheme: ClassScheme | None = None,
    device: str = "auto",
    settings: Settings | None = None,
    budget: Budget | None = None,
) -> Chain:
    """Return the chain of ``steps`` with the models they segment with, from the folders ``<models>/<name>``."""
    names = dict.fromkeys(name for step in steps for name in _names(step.get("segment") or []))
    return Chain(steps, {name: Predictor(Path(models) / name, device, settings, budget) for name in names}, scheme)


def segment(predictors: Sequence[Predictor], state: State, union_ids: Sequence[int] = ()) -> Prediction:
    """Segment with one or several models.

    Models that share plan and classes: mean of their probabilities on the network grid. Others: votes on label maps
    (:func:`merge_votes`). ``union_ids`` are then painted wherever any of the models has them.
    """
    first = predictors[0]
    if len(predictors) == 1:
        scores = first.logits(_prepared(state, first))
        return _finish(scores, state, first)
    alike = all(p.plan == first.plan and p.class_ids == first.class_ids for p in predictors)
    singles: list[Prediction] = []
    total = None
    for predictor in predictors:
        scores = predictor.logits(_prepared(state, predictor))
        if union_ids or not alike:  # what this model says alone
            singles.append(_finish(scores, state, predictor))
        if alike:
            scores = softmax_(scores).to(first.device)
            total = scores if total is None else total.add_(scores)
    if alike:
        result = _finish(total.div_(len(predictors)), state, first, probabilities=True)
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
    counts = np.bincount(labels.ravel(), minlength=256) * volume.geometry.voxel_ml
    rows = []
    for name, value in ids.items():
        sure = [r["confidence"] for s in sources for r in s.rows if r["class"] == name and r["confidence"] is not None]
        confidence = float(np.mean(sure)) if sure and counts[value] else None
        rows.append({"class": name, "volume_ml": float(counts[value]), "confidence": confidence})
    return Prediction(labels, rows)


def _segment_step(chain: Chain, state: State, step: Mapping) -> None:
    names = _names(step["segment"])
    union_ids = [value for name in step.get("merge", {}) for value in chain.ids(name)]
    state.latest = segment([_with_options(chain.models[n], step) for n in names], state, union_ids)
    state.results |= dict.fromkeys(names, state.latest)


def _with_options(predictor: Predictor, step: Mapping) -> Predictor:
    changes = {"step": step["step"]} if "step" in step else {}
    if "mirror" in step:
        changes["mirror_axes"] = predictor.model.mirror_axes if step["mirror"] else ()
    return predictor.with_settings(**changes) if changes else predictor


def _compose_step(chain: Chain, state: State, step: Mapping) -> None:
    named = [(state.results[result], chain.ids(classes)) for classes, result in step["compose"].items()]
    labels = compose([(prediction.labels, ids) for prediction, ids in named])
    by_class: list[Prediction] = []  # per part, only the rows of the classes it contributes
    for prediction, ids in named:
        rows = [r for r in prediction.rows if chain.class_ids[r["class"]] in ids]
        by_class.append(Prediction(prediction.labels, rows))
    used = {name: i for name, i in chain.class_ids.items() if any(i in ids for _, ids in named)}
    state.latest = recount(labels, used, state.volume, by_class)


def _keep_largest_step(chain: Chain, state: State, step: Mapping) -> None:
    labels = keep_largest(state.latest.labels, chain.ids(step["keep_largest"]))
    ids = {r["class"]: chain.class_ids[r["class"]] for r in state.latest.rows}
    state.latest = recount(labels, ids, state.volume, [state.latest])


STEPS: dict[str, Callable[[Chain, State, Mapping], None]] = {
    "segment": _segment_step,
    "compose": _compose_step,
    "keep_largest": _keep_largest_step,
}
"""The verbs of a chain. ``locate`` will join them as a step that narrows ``state.volume``."""


def _verb(step: Mapping) -> str:
    verbs = [k for k in step if k in STEPS]
    if len(verbs) != 1:
        raise UserError(f"inference: step {dict(step)} needs exactly one of {', '.join(STEPS)}")
    return verbs[0]


def _names(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _ids_of_all(models: Mapping) -> dict[str, int]:
    ids: dict[str, int] = {}
    for model in models.values():
        for name, value in model.class_ids.items():
            if ids.setdefault(name, value) != value:
                raise UserError(f"models disagree on the id of {name}: {ids[name]} and {value}")
    return ids


def _prepared(state: State, predictor: Predictor) -> Prepared:
    """Return the image on the predictor's network grid, prepared once per way of preparing."""
    key = digest(predictor.plan.images)
    if key not in state.prepared:
        state.prepared[key] = predictor.prepare(state.volume, state.modality)
    return state.prepared[key]


def _finish(scores, state: State, predictor: Predictor, probabilities: bool = False) -> Prediction:
    frame = _prepared(state, predictor).frame
    return to_prediction(scores, frame, predictor.classes, predictor.class_ids, predictor.settings.mode, probabilities)
