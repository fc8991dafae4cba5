"""The steps of the workflow: a function a rule, of the rule's name; files in, files out, and no Snakemake inside.

A function's arguments have the names that its rule gives to inputs, outputs and params; that is all that it gets.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snakemake.iocontainers import Snakemake

MODULES = {
    "cases": ("survey", "tested", "collect", "group", "prepare"),
    "adapt": ("detect_upside_down", "upright", "train_translator", "structure"),
    "models": ("train", "train_slices", "predict"),
    "external": ("import_nnunet", "predict_external"),
    "labels": ("fuse", "agree", "check", "select", "trust"),
    "arrays": ("prepare_labels", "cut_objects"),
    "transfer": ("transfer",),
    "held_out": ("held_out",),
    "quality": ("corrupt", "measure", "quality"),
    "inference": ("infer", "summarize", "check_final", "evaluate"),
    "report": ("review", "report"),
}
"""The functions of each module of this package."""
MODULE_OF: dict[str, str] = {}
for _module, _names in MODULES.items():
    MODULE_OF |= dict.fromkeys(_names, _module)
NOT_HANDED = ("number", "trigger")
"""Params for messages, and for what shall only make a job run again."""


def step_of(rule: str) -> Callable[..., None]:
    """Return the function of a rule, also of one with a prefix (``use rule * from labelloop as other_*``)."""
    parts = rule.split("_")
    names = ["_".join(parts[start:]) for start in range(len(parts))]
    name = next(name for name in names if name in MODULE_OF)
    return getattr(importlib.import_module(f"labelloop.steps.{MODULE_OF[name]}"), name)


def run_step(snakemake: "Snakemake") -> None:
    """Run the step of a rule, with as many GPUs as the rule asks for."""
    from labelloop.base.gpu_lease import lease_gpus

    function, resources = step_of(snakemake.rule), dict(snakemake.resources.items())
    cards = resources.get("gpu", 0)
    with lease_gpus(resources["device"] if cards else "cpu", cards):
        function(**arguments(function, handed(snakemake), resources | {"threads": snakemake.threads}))


def handed(snakemake: "Snakemake") -> dict[str, Any]:
    """Return what a rule hands to its step, by name: files as paths. An empty list is none.

    Raises:
        TypeError: when two things have one name.
    """
    found: dict[str, Any] = {}
    files = [(name, _paths(value)) for name, value in [*snakemake.input.items(), *snakemake.output.items()]]
    params = [(name, value) for name, value in snakemake.params.items() if name not in NOT_HANDED]
    for name, value in [*((name, file) for name, file in files if file != []), *params]:
        if name in found:
            raise TypeError(f"rule {snakemake.rule} gives the name {name!r} twice")
        found[name] = value
    return found


def _paths(value: Any) -> Path | list[Path]:
    return Path(value) if isinstance(value, str) else [Path(file) for file in value]


def arguments(function: Callable[..., None], given: Mapping[str, Any], also: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a step: all that is ``given``, and of the rest what it asks for.

    An argument that is a dataclass, as :class:`labelloop.steps.common.SurveyTables`, gets its fields.

    Raises:
        TypeError: when the step lacks something, or something is given that it does not take.
    """
    left, found = dict(given), {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            held = [field.name for field in fields(kind) if field.name in left]
            found[name] = kind(**{field: left.pop(field) for field in held})
        elif name in left:
            found[name] = left.pop(name)
        elif name in also:
            found[name] = also[name]
    if left:
        raise TypeError(f"step {function.__name__} takes no {', '.join(sorted(left))}")
    return found
