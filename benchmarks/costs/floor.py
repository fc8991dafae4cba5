"""The floor of an inference on a GPU: the operations that must be done and the bytes that must move, before measuring.

Counted for the engine's exact mode with every window of the default step, in half precision. Times are by data sheet;
the larger of a row's two is its floor. No version can be faster, and a version at twice the floor is a good one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from labelloop.inference.resample import target_shape
from labelloop.inference.windows import padding, window_starts
from labelloop.networks.network import build_network, count_parameters, counting_macs
from labelloop.networks.plans import Plan
from labelloop.run.cost import BANDWIDTH_TBS, Setting

SIZE, SPACING_MM = (400, 512, 512), (2.0, 0.8, 0.8)
"""The scan of the goal: voxels and their size (z, y, x)."""
PLAN = Plan(spacing_mm=(2.5, 1.5, 1.5), patch=(48, 128, 160), features=(16, 32, 64, 128, 256))
OUTPUTS, STEP, HALF, SINGLE = 15, 0.5, 2, 4
CARD = "H100"
TENSOR, PLAIN, LINK = 989e12, 67e12, 64e9
"""H100 SXM by data sheet: fp16 tensor cores (dense) and fp32, operations a second; PCIe 5 x16, bytes a second."""
LERPS = 7
"""Linear interpolations of a trilinear one; two multiply-adds' worth of operations each."""


@dataclass(frozen=True)
class Row:
    """A part of the work: operations, bytes, and the rates that bound them."""

    name: str
    operations: float
    bytes: float
    rate: float = PLAIN
    bandwidth: float = BANDWIDTH_TBS[CARD] * 1e12

    @property
    def seconds(self) -> float:
        """The floor: the larger of the two times."""
        return max(self.operations / self.rate, self.bytes / self.bandwidth)


@dataclass(frozen=True)
class Traffic:
    """Of one window, in half precision: bytes that layers move when norm and activation are part of the convolutions
    before and after them (``fused``), when each is a pass of its own (``eager``), and that are alive at once."""

    macs: int
    fused: int
    eager: int
    alive: int
    parameters: int


def traffic(plan: Plan, outputs: int) -> Traffic:
    """Count a forward pass of one patch; nothing is computed."""
    passes = {"InstanceNorm3d": 3, "LeakyReLU": 2}  # a norm reads for its statistics, reads again, writes
    moved = {"fused": 0, "eager": 0, "largest": 0}
    with torch.device("meta"):
        network = build_network(plan, outputs)

    def note(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        kind = type(module).__name__
        voxels = inputs[0].numel() + output.numel()
        if kind in passes:
            moved["eager"] += HALF * passes[kind] * output.numel()
        elif kind.startswith("Conv"):
            moved["fused"] += HALF * voxels
            moved["eager"] += HALF * voxels
        moved["largest"] = max(moved["largest"], HALF * voxels)

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    with torch.no_grad(), counting_macs(network) as macs:
        skips = network.encoder(torch.empty((1, 1, *plan.patch), device="meta"))
        network.decoder(skips)
    for hook in hooks:
        hook.remove()
    alive = moved["largest"] + HALF * sum(skip.numel() for skip in skips)
    return Traffic(sum(macs), moved["fused"], moved["eager"], alive, count_parameters(network))


def rows() -> tuple[list[Row], int, Traffic, tuple[int, int, int]]:
    """Return the parts of the work, the number of windows, the traffic of one, and the shape of the network grid."""
    grid = target_shape(SIZE, SPACING_MM, PLAN.spacing_mm)
    padded = [n + sum(pad) for n, pad in zip(grid, padding(grid, PLAN.patch), strict=True)]
    windows = math.prod(map(len, window_starts(padded, PLAN.patch, STEP)))
    stored, voxels, seen = math.prod(SIZE), math.prod(grid), windows * math.prod(PLAN.patch)
    one = traffic(PLAN, OUTPUTS)
    weights = HALF * one.parameters
    parts = [
        Row("scan to the card, int16", 0, 2 * stored, bandwidth=LINK),
        Row("normalize and resample", 2 * LERPS * voxels, 2 * stored + HALF * voxels),
        Row(f"network, {windows} windows", 2 * windows * one.macs, windows * (one.fused + weights), TENSOR),
        Row("add up windows", 2 * OUTPUTS * seen, OUTPUTS * seen * (HALF + 2 * SINGLE)),
        Row("resample scores, take the winner", 2 * LERPS * OUTPUTS * stored, SINGLE * OUTPUTS * voxels + stored),
        Row("label map back, bytes", 0, stored, bandwidth=LINK),
    ]
    return parts, windows, one, grid


def lines() -> Iterator[str]:
    """Yield the floor in Markdown."""
    parts, windows, one, grid = rows()
    size = "x".join(map(str, SIZE[::-1]))
    sides, spacing = ("x".join(f"{mm:g}" for mm in side) for side in (SPACING_MM[::-1], PLAN.spacing_mm))
    features = f"{PLAN.features[0]} to {PLAN.features[-1]} features, {one.parameters / 1e6:.1f} M parameters"
    yield f"A scan of {size} voxels of {sides} mm; a network of {features}, {one.macs / 1e9:.0f} GMAC a window,"
    yield f"at {spacing} mm; windows at a step of {STEP:g}; one {CARD}."
    yield from ("", "| part | GFLOP | GB | floor, ms |", "| --- | ---: | ---: | ---: |")
    for row in parts:
        yield f"| {row.name} | {row.operations / 1e9:,.0f} | {row.bytes / 1e9:.2f} | {1000 * row.seconds:.1f} |"
    operations, moved, total = (sum(getattr(r, what) for r in parts) for what in ("operations", "bytes", "seconds"))
    yield f"| sum | {operations / 1e9:,.0f} | {moved / 1e9:.2f} | {1000 * total:.1f} |"
    eager = windows * one.eager / (BANDWIDTH_TBS[CARD] * 1e12)
    reached = 2 * windows * one.macs / Setting(1, CARD).rate
    yield ""
    yield f"With norms and activations as passes of their own the network moves {windows * one.eager / 1e9:.0f} GB:"
    yield f"{1000 * eager:.0f} ms. At the rate that nnU-Net's training reaches (an A100's, by bandwidth) it takes"
    yield f"{1000 * reached:.0f} ms. The goal, 3 s with reading and writing, is {3 / total:.0f} times the floor."
    yield ""
    held = {
        "scan": 2 * math.prod(SIZE),
        "label map": math.prod(SIZE),
        "network grid": HALF * math.prod(grid),
        "sums of one patch's height": SINGLE * (OUTPUTS + 1) * PLAN.patch[0] * math.prod(grid[1:]),
        "network and one window": HALF * one.parameters + one.alive,
    }  # fmt: skip
    told = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in held.items())
    yield f"Memory that must be held at once, MB: {told};"
    yield f"together {sum(held.values()) / 1e9:.2f} GB of the goal's 2.5."
