"""The wiring of a run: which files of its chain a rule needs, by model and label set."""

from collections.abc import Iterable
from functools import cached_property

from labelloop.base.sequences import flat
from labelloop.inference.steps import Compose, Segment
from labelloop.recipe import LabelSetSpec, ModelSpec, Recipe, ancestors, round_before
from labelloop.run.chain import arrays_of, bank_of, images_of, lineage, needed
from labelloop.training.settings import SLICE_CLASSIFIER, TRANSLATOR, CutMix, SegmenterSettings, cutmix_of


class Wiring:
    """What the rules ask about the models and label sets of a chain.

    Args:
        recipe: the recipe of the run.
        chain: the same with its rounds written out.
    """

    def __init__(self, recipe: Recipe, chain: Recipe):
        self._recipe, self._chain = recipe, chain

    def model(self, name: str) -> ModelSpec:
        """A model of the chain."""
        return self._chain.models[name]

    def label_set(self, name: str) -> LabelSetSpec:
        """A label set of the chain."""
        return self._chain.labels[name]

    def images(self, model: str) -> str:
        """Name under which the prepared images of a model's plan lie."""
        return images_of(self._chain, self.model(model).plan)

    def arrays(self, model: str) -> str:
        """Kind of label arrays that a model learns from."""
        return arrays_of(self._chain, model)

    def lineage(self, model: str) -> list[str]:
        """Models of the chain whose weights a model starts from."""
        return [name for name in lineage(self._chain, model) if name in self._chain.models]

    def cutmix(self, model: str) -> CutMix | None:
        """Return which tumor objects a model pastes, and how; None where it pastes none."""
        return cutmix_of(self.model(model).trainer)

    def bank(self, model: str) -> str:
        """Name under which the tumor objects that a model pastes lie: the first model's that cuts the same ones."""
        return bank_of(self._chain, model)

    @cached_property
    def used_models(self) -> list[str]:
        """Models that the final label maps or a score lead back to, in the order of the chain."""
        used = needed(self._chain)
        return [name for name in self._chain.models if name in used]

    @cached_property
    def used_label_sets(self) -> list[str]:
        """Label sets that the final label maps or a score lead back to, in the order of the chain."""
        used = needed(self._chain)
        return [name for name in self._chain.labels if name in used]

    @cached_property
    def label_sets_of_several_models(self) -> list[str]:
        """Label sets of which agreement of models can be asked."""
        return [name for name in self.used_label_sets if len(self.label_set(name).predict) > 1]

    @cached_property
    def label_sets_checked(self) -> list[str]:
        """Label sets that are held against rules."""
        return [name for name in self.used_label_sets if self.label_set(name).check]

    @cached_property
    def label_sets_transferred(self) -> list[str]:
        """Label sets that carry labels from one MR sequence to others."""
        return [name for name in self.used_label_sets if self.label_set(name).transfer]

    @cached_property
    def label_sets_with_quality(self) -> list[str]:
        """Label sets of whose labels the DSC is predicted."""
        return [name for name in self.used_label_sets if self.label_set(name).select.asks_quality]

    @cached_property
    def predicting_models(self) -> list[str]:
        """Models that a label set asks for predictions."""
        return list(dict.fromkeys(flat(self.label_set(name).predict for name in self.used_label_sets)))

    def models_behind(self, labels: str) -> list[str]:
        """Return the models that make a label set and those that they descend from, in the order of the chain."""
        found = ancestors(self._chain, labels)
        return [name for name in self._chain.models if name in found]

    def leading_model_before(self, labels: str) -> list[str]:
        """Return the leading model of a label set one round earlier; none in round 1."""
        earlier = round_before(self._recipe, labels)
        return [self.label_set(earlier).predict[0]] if earlier else []

    @cached_property
    def inference_models(self) -> list[str]:
        """Models that the inference chain loads."""
        return list(dict.fromkeys(flat(step.models for step in self._chain.inference)))

    @cached_property
    def slice_classifiers(self) -> list[str]:
        """Models that look for slices."""
        return [name for name, spec in self._chain.models.items() if spec.trainer.kind == SLICE_CLASSIFIER]

    @cached_property
    def translators(self) -> list[str]:
        """Models that give CT the look of MR."""
        return [name for name, spec in self._chain.models.items() if spec.trainer.kind == TRANSLATOR]

    @cached_property
    def segmenters(self) -> list[str]:
        """Models that label voxels: all others."""
        return [name for name, spec in self._chain.models.items() if isinstance(spec.trainer, SegmenterSettings)]

    @cached_property
    def upright(self) -> bool:
        """Whether volumes that are stored upside down are turned upright wherever they are read."""
        return any(self._chain.plans[self.model(name).plan].upright for name in self.used_models)

    @cached_property
    def translations(self) -> dict[str, str]:
        """Names of prepared images with translated CT, and under which the same CT lies as it was."""
        used = {self.images(name): self._chain.plans[self.model(name).plan].translate for name in self.used_models}
        return {images: self.images(translator) for images, translator in used.items() if translator}

    def classes(self, name: str) -> list[str]:
        """Return the classes (or class sets) that label maps can hold: those of a model, or the `final` ones.

        What is composed holds the composed classes; otherwise what was segmented counts, not what was only located.
        """
        if name != "final":
            return list(self._chain.classes_of(name))
        chain, scheme = self._chain, self._chain.scheme
        segmenters = [model for model in self.inference_models if model in self.segmenters]
        held = scheme.select(self._classes_of(segmenters))
        composed = [step.compose for step in chain.inference if isinstance(step, Compose)]
        segmenting = flat(step.segment for step in chain.inference if isinstance(step, Segment))
        shown = list(composed[-1]) if composed else self._classes_of(segmenting)
        return [c for c in scheme.select(shown) if c in held]

    def _classes_of(self, models: Iterable[str]) -> list[str]:
        return flat(self.model(model).classes for model in models)

    def groups(self) -> dict[str, dict]:
        """The recipe's own groups, as plain data."""
        return {name: group.model_dump(mode="json") for name, group in self._chain.groups.items()}
