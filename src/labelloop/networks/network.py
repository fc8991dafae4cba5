"""Build the network of a plan: the same function for training and inference, without nnunetv2. And what it costs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, TypeVar

from labelloop.base.documents import load_tensors, short
from labelloop.base.errors import UserError, may_pass
from labelloop.base.files import sha256
from labelloop.networks.nnunet_plan import NnunetPlan
from labelloop.networks.plans import Plan

Network = TypeVar("Network", bound="nn.Module")
if TYPE_CHECKING:
    from torch import Tensor, nn


def build_network(plan: Plan, outputs: int, deep_supervision: bool = False) -> "nn.Module":
    """Return the untrained U-Net of ``plan`` with ``outputs`` channels (background included).

    That of several folds of nnU-Net's gives the mean of a network each. Its forward pass maps [batch, channels of the
    image, z, y, x] to logits [batch, outputs, z, y, x], or to a list of them from the finest to the coarsest resolution
    with ``deep_supervision``.
    """
    architecture = plan.architecture()
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        if arguments[name] is not None:
            arguments[name] = resolve_name(arguments[name])
    network_class = resolve_name(architecture["network_class_name"])
    arguments |= {"input_channels": plan.inputs, "num_classes": outputs, "deep_supervision": deep_supervision}
    if isinstance(plan, NnunetPlan) and plan.folds > 1:
        return mean_of([network_class(**arguments) for _ in range(plan.folds)])
    return network_class(**arguments)


def mean_of(networks: "Sequence[nn.Module]") -> "nn.Module":
    """Return a network whose output is the mean of the outputs of ``networks``, its submodules ``0``, ``1``, ..."""
    from torch import nn

    class Mean(nn.ModuleList):
        def forward(self, x: "Tensor") -> "Tensor":
            first, *others = self
            total = first(x)
            for network in others:
                total = total + network(x)
            return total / len(self)

    return Mean(networks)


def check_weights(path: Path, expected: str) -> None:
    """Raise UserError when there are no weights, or others than those whose sha256 ``model.json`` names."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; a trained model folder holds model.json and weights.pt")
    found = sha256(path)
    if found != expected:
        raise UserError(
            f"{path}: sha256 {found[:12]}, model.json says {expected[:12]}: damaged, or of another training. "
            "Copy the model folder again."
        )


def load_network(build: "Callable[[], Network]", path: Path) -> "Network":
    """Return the network that ``build`` makes, on the CPU, with the weights of a ``weights.pt``.

    Raises:
        UserError: when the file holds no weights or others, or no such network can be built here.
    """
    state = load_tensors(path, "Copy the model folder again.").get("weights")
    if not isinstance(state, dict):
        raise UserError(f"{path}: found no weights of a network. Copy the model folder again.")
    import torch

    try:
        with torch.device("meta"):  # takes no memory, however large a network the description asks for
            wanted = {name: _form(value) for name, value in build().state_dict().items()}
        if wanted != {name: _form(value) for name, value in state.items()}:
            raise ValueError("other tensors than its network has")
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise ValueError("weights that are not finite numbers")
        network = build()
        network.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        if may_pass(error):
            raise
        raise UserError(f"{path} does not fit the plan in model.json: {short(error)}") from error
    return network


def _form(tensor: "Tensor") -> tuple[tuple[int, ...], bool]:
    """Return the shape of a tensor, and whether it holds fractions; counts, e.g. of batches seen, are whole."""
    return tuple(tensor.shape), tensor.is_floating_point()


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


def count_macs(network: "nn.Module", patch: Sequence[int], inputs: int = 1) -> int:
    """Return the multiply-accumulates of a forward pass of a ``patch`` [z, y, x] of ``inputs`` channels, not done."""
    import copy

    import torch

    shadow = copy.deepcopy(network).to("meta")
    with counting_macs(shadow) as counted, torch.no_grad():
        shadow(torch.empty((1, inputs, *patch), device="meta"))
    return sum(counted)
