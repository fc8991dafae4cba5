"""Starting a training from the weights of another model: what both know by name is kept, what is new starts blank."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from labelloop.base.errors import UserError
from labelloop.networks.network import build_network, check_weights, load_network
from labelloop.networks.nnunet_plan import parse_plan
from labelloop.training.job import described
from labelloop.training.loading import isolated_random_state

log = logging.getLogger(__name__)


def start_from(
    network: nn.Module,
    folder: Path,
    classes: tuple[str, ...],
    bias: float = 0.0,
    names: Mapping[str, str] | None = None,
) -> None:
    """Copy the weights of a finished model into ``network``, whose output channels are background and ``classes``.

    Everything before the output layers must have the same shape in both. In the output layers, background and the
    classes that both know, by name, keep their rows; rows of other classes are left out, and new ones have zero
    weights (Mao, section 2.3) and the given bias. A new class thus has the constant logit ``bias``.

    Args:
        names: the class of ours that each class of the model is; those not named are none. None: they have our names.
            A class that several of theirs are is new, as no row of theirs is its own.

    Raises:
        UserError: when there is no finished model, its weights are not those of its description, or it does not fit.
    """
    description, weights = described(folder), folder / "weights.pt"
    check_weights(weights, description["weights_sha256"])
    theirs = _in_our_names(description["classes"], names)
    other = _network_of(description, weights)
    heads = {id(p) for p in network.get_submodule("decoder.seg_layers").parameters()}
    body = [(n, p) for n, p in network.named_parameters() if id(p) not in heads]
    sources = dict(other.named_parameters())  # each tensor once: the encoder's also go by a name in the decoder
    misfits = [name for name, p in body if name not in sources or sources[name].shape != p.shape]
    if misfits or len(body) + len(heads) != len(sources):
        raise UserError(
            f"init_from: the network of model {description['name']} is built otherwise, e.g. at "
            f"{misfits[0] if misfits else 'its depth'}; both need the same input channels, features, strides, kernels "
            "and convolutions"
        )
    with torch.no_grad():
        for name, parameter in body:
            parameter.copy_(sources[name])
        layers, origins = (n.get_submodule("decoder.seg_layers").children() for n in (network, other))
        for layer, source in zip(layers, origins, strict=True):
            _copy_rows(layer, source, classes, theirs, bias)
    kept = [name for name in classes if name in theirs]
    log.info(
        "starting from model %s (%s): classes kept: %s; new: %s; left out: %s",
        description["name"], description["weights_sha256"][:16], _list(kept),
        _list([n for n in classes if n not in kept]),
        _list([own for own, name in zip(description["classes"], theirs, strict=True) if name not in kept]),
    )  # fmt: skip


def _in_our_names(classes: Sequence[str], names: Mapping[str, str] | None) -> tuple[str, ...]:
    """Return what we call the classes of another model; "" for those that are none of ours, or a part of one."""
    if names is None:
        return tuple(classes)
    called = [names.get(name, "") for name in classes]
    return tuple(name if called.count(name) == 1 else "" for name in called)


def _network_of(description: dict, weights: Path) -> nn.Module:
    with isolated_random_state(0):
        plan, outputs = parse_plan(description["plan"]), len(description["channels"])
        return load_network(lambda: build_network(plan, outputs), weights)


def _copy_rows(
    layer: nn.Module, source: nn.Module, classes: tuple[str, ...], theirs: tuple[str, ...], bias: float
) -> None:
    layer.get_parameter("weight").zero_()
    layer.get_parameter("bias").fill_(bias)
    rows = {0: 0} | {i: theirs.index(name) + 1 for i, name in enumerate(classes, start=1) if name in theirs}
    for row, origin in rows.items():
        for name in ("weight", "bias"):
            layer.get_parameter(name)[row] = source.get_parameter(name)[origin]


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"
