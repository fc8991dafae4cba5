"""Build the network of a plan: the same function for training and inference, without nnunetv2."""

from typing import TYPE_CHECKING

from labelloop.plans import Plan

if TYPE_CHECKING:
    from torch import nn


def build_network(plan: Plan, outputs: int, channels: int = 1, deep_supervision: bool = False) -> "nn.Module":
    """Return the untrained U-Net of ``plan`` with ``outputs`` channels (background included).

    Its forward pass maps [batch, channels, z, y, x] to logits [batch, outputs, z, y, x], or to a list of them from
    the finest to the coarsest resolution with ``deep_supervision``.
    """
    from pydoc import locate

    architecture = plan.architecture()
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        if arguments[name] is not None:
            arguments[name] = locate(arguments[name])
    network_class = locate(architecture["network_class_name"])
    return network_class(input_channels=channels, num_classes=outputs, deep_supervision=deep_supervision, **arguments)
