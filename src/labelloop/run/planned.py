"""A recipe whose plan fits a collection and a card: planned once, then pinned in a file that people can read.

The plan is made before the run and not by one of its jobs. So the dry run knows what each training needs, and a plan
does not change when a case is added.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from labelloop.base.errors import UserError, nearest
from labelloop.base.files import write_text
from labelloop.base.lookup import SUFFIXES
from labelloop.base.sequences import flat
from labelloop.base.wording import count
from labelloop.cases.table import Case, load_cases
from labelloop.images.datasets import read_dataset
from labelloop.networks.network import build_network, count_parameters
from labelloop.networks.nnunet_plan import NnunetPlan
from labelloop.networks.plans import ADAPTATION, Plan
from labelloop.recipe import Recipe, load_recipe
from labelloop.recipe.channel_checks import listed
from labelloop.training.planning import Configuration, PlannedNetwork, plan_for, shapes_of, usual_memory_gb
from labelloop.training.settings import TRANSLATOR

USUAL = "fine"
"""The plan that is replaced where a recipe has several and none is named."""
NOT_PLANNED = {"mr", *ADAPTATION}
"""Keys of a plan of which nnU-Net's planners say nothing."""


def write_planned(
    name: str,
    table: Path,
    out: Path,
    plan_name: str | None = None,
    network: PlannedNetwork = "plain",
    gpu_memory_gb: float | None = None,
    configuration: Configuration = "3d_fullres",
    most: int = 500,
) -> Iterator[str]:
    """Write the recipe ``name`` with nnU-Net's plan for the labeled train cases of a table; yield what it is.

    Args:
        out: file to write. It ``extends`` the recipe and holds the new plan alone.
        plan_name: plan to replace; None: the only one, or ``fine``.
        most: cases to look at, at most.

    Raises:
        UserError: when the file exists, the recipe has no such plan, or no case can be planned for.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out}: name a file that ends in .yaml")
    if out.exists():
        raise UserError(f"{out}: exists; name another file, or remove it")
    recipe = load_recipe(name)
    replaced = _plan_name(recipe, plan_name)
    if isinstance(recipe.plans[replaced], NnunetPlan):
        raise UserError(f"recipe {name}: plan {replaced} is that of a model of nnU-Net's, whose weights fit no other")
    models = [spec for spec in recipe.models.values() if spec.plan == replaced and spec.trainer.kind != TRANSLATOR]
    classes = recipe.scheme.select(flat(spec.classes for spec in models))
    if not models:
        raise UserError(f"recipe {name}: no model that segments has the plan {replaced}")
    cases, _ = load_cases(table)
    labeled = [case for case in cases if case.role == "train" and case.label]
    channels = _channels(table, labeled, recipe.plans[replaced], replaced)
    shapes = shapes_of(labeled, recipe.scheme, classes, most)
    outputs = max(len(recipe.scheme.select(spec.classes)) for spec in models)
    memory_gb = gpu_memory_gb or usual_memory_gb(network)
    plan = plan_for(shapes, outputs, len(labeled), network, memory_gb, configuration, channels)
    parameters = count_parameters(build_network(plan, outputs + 1)) / 1e6
    about = [
        f"Planned from {count(len(shapes), 'labeled case')} of {table.name}: nnU-Net's {configuration}, {network}.",
        f"{parameters:.1f} million weights. nnU-Net estimates that a training needs at most {memory_gb:g} GB of a GPU.",
    ]
    write_text(out, _text(out, name, replaced, plan, about))
    yield from about
    yield f"{out}: recipe {name} with this plan {replaced}. What it costs: labelloop recipe cost {out} --cases N"


def _channels(table: Path, cases: Sequence[Case], plan: Plan, name: str) -> tuple[str, ...]:
    """Return the channels of the images of all cases, as their data sets name them.

    Raises:
        UserError: when they differ, or the plan to replace has others.
    """
    datasets = {case.dataset: read_dataset(case.dataset).channels for case in cases}
    channels = plan.channels or next(iter(datasets.values()), ())
    others = {dataset: found for dataset, found in datasets.items() if found != channels}
    if others:
        dataset, found = next(iter(others.items()))
        raise UserError(
            f"{table}: the images of data set {dataset} have {listed(found)}, and those of plan {name}, or of other "
            f"data sets, {listed(channels)}. A plan is of the same channels everywhere: write one list"
        )
    return channels


def _plan_name(recipe: Recipe, wanted: str | None) -> str:
    known = list(recipe.plans)
    if wanted is None and len(known) == 1:
        return known[0]
    name = wanted or USUAL
    if name not in known:
        raise UserError(f"recipe {recipe.name}: --plan: no plan {name}{nearest(name, known)}")
    return name


def _text(out: Path, name: str, replaced: str, plan: Plan, about: list[str]) -> str:
    pinned = plan.model_dump(mode="json", exclude=NOT_PLANNED) | {"residual": plan.residual}
    extends = os.path.relpath(name, out.parent) if name.endswith(SUFFIXES) else name
    content = {"name": out.stem, "extends": extends, "plans": {replaced: pinned}}
    lines = "".join(f"# {line}\n" for line in about)
    return lines + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
