"""Build the network of a plan: the same function for training and inference, without nnunetv2. And what it costs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from labelloop.plans import Plan

if TYPE_CHECKING:
    from torch import Tensor, nn


def build_network(plan: Plan, outputs: int, deep_supervision: bool = False) -> "nn.Module":
    """Return the untrained U-Net of ``plan`` with ``outputs`` channels (background included).

    Its forward pass maps [batch, 1, z, y, x] to logits [batch, outputs, z, y, x], or to a list of them from
    the finest to the coarsest resolution with ``deep_supervision``.
    """
    architecture = plan.architecture()
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        if arguments[name] is not None:
            arguments[name] = resolve_name(arguments[name])
    network_class = resolve_name(architecture["network_class_name"])
    return network_class(input_channels=1, num_classes=outputs, deep_supervision=deep_supervision, **arguments)


def count_parameters(network: "nn.Module") -> int:
    """Return the number of parameters, each tensor once however many names it has.

    Summing a state dict of an nnU-Net counts its encoder four times.
    """
    return sum(p.numel() for p in network.parameters())


@contextmanager
def counting_macs(network: "nn.Module") -> Iterator[list[int]]:
    """Yield a list that gets the multiply-accumulates of each layer that runs inside; FLOPs are twice as many.

    Convolutions and matrix products are counted, as usual; norms and activations are not.
    """
    counted: list[int] = []

    def note(taps: int, module: "nn.Module", inputs: tuple, output: "Tensor") -> None:
        # a transposed convolution moves each voxel of its input through its kernel, others each of their output
        voxels = inputs[0] if getattr(module, "transposed", False) else output
        counted.append(voxels.numel() * taps)

    weights = [(layer, getattr(layer, "weight", None)) for layer in network.modules()]
    hooks = [
        layer.register_forward_hook(partial(note, weight[0].numel()))
        for layer, weight in weights
        if weight is not None and weight.ndim > 1
    ]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def count_macs(network: "nn.Module", patch: Sequence[int]) -> int:
    """Return the multiply-accumulates of one forward pass of a ``patch`` [z, y, x]; nothing is computed."""
    import copy

    import torch

    shadow = copy.deepcopy(network).to("meta")
    with counting_macs(shadow) as counted, torch.no_grad():
        shadow(torch.empty((1, 1, *patch), device="meta"))
    return sum(counted)
