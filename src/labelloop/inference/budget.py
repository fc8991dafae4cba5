"""Keeping a memory budget: what a case needs at a setting, and the largest setting that fits.

The estimates are sums of the arrays that exist at the same time, with a measured allowance for the network's inner
activations; a test holds them against the true peak.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from labelloop.base.errors import CaseError, UserError
from labelloop.networks.nnunet_plan import NnunetPlan
from labelloop.networks.plans import Plan

log = logging.getLogger(__name__)
MIB = 2**20
FLOAT = 4
PROGRAM_MB = 900
"""Resident memory of Python, torch and SimpleITK before the first case (measured: 680 MB), and what oneDNN and the
memory allocator add to it (110 MB) with some room; a CUDA context adds its own."""
CUDA_MB = 600
"""GPU memory of a CUDA context with cuDNN's workspaces."""
FEATURE_MAPS = 6.0
"""Full-resolution tensors of the first stage's width that a forward pass holds at its peak: skip connection, upsampled
features, their concatenation (two) and the convolution's input and output layouts."""
MUCH_LESS = 0.8
"""Share of its GPU memory, at most, that is tried after a setting for which memory did not suffice."""
BATCH_VOXELS, LARGEST_BATCH = 1 << 22, 16
"""Voxels, and windows at most, that a GPU looks at in one forward pass: of few, it would wait for launches."""
SLAB_VOXELS, SMALLEST_SLAB = 1 << 22, 1 << 18
"""Stored voxels that are resampled at a time: 16 MiB of float32, and the least that is worth it."""


@dataclass(frozen=True)
class Budget:
    """Limits in MiB; None: no limit. RAM is the whole process's, GPU memory what this process allocates."""

    max_ram_mb: float | None = None
    max_gpu_mb: float | None = None

    def __post_init__(self) -> None:
        for name, limit in (("--max-ram-mb", self.max_ram_mb), ("--max-gpu-mb", self.max_gpu_mb)):
            if limit is not None and limit <= 0:
                raise UserError(f"{name} {limit:g}: a limit must be above 0")


@dataclass(frozen=True)
class Choice:
    """A way to run one case: windows per forward pass, where logits are added up, voxels per exported slab."""

    batch: int
    on_gpu: bool
    slab_voxels: int = SLAB_VOXELS

    def __str__(self) -> str:
        where = "on the GPU" if self.on_gpu else "in RAM"
        return f"{self.batch} windows at a time, logits added up {where}, slabs of {self.slab_voxels / 1e6:.2g} Mvoxel"


@dataclass(frozen=True)
class Held:
    """What is held while a model works on an image, besides that image.

    Args:
        logits: tensors of all its logits at once, its own included: in ensembles there is the sum, too. 0: no more
            than one patch's height of them is held.
        ram_bytes: RAM of everything else: label maps of steps before, images that other models look at.
        gpu_bytes: what of these ``logits`` lies on the GPU already.
    """

    logits: int = 0
    ram_bytes: int = 0
    gpu_bytes: int = 0


ALONE = Held()


@dataclass(frozen=True)
class Sizes:
    """What decides the memory of a case.

    Args:
        stored: voxels of the image as stored, and ``stored_bytes`` of one of them, all channels together.
        network: shape (z, y, x) on the network grid.
        outputs: channels of the network.
    """

    stored: int
    stored_bytes: int
    network: tuple[int, int, int]
    outputs: int
    plan: Plan
    held: Held = ALONE


def ram_mb(sizes: Sizes, choice: Choice, gpu: bool) -> float:
    """Return the estimated peak of RAM in MiB: one image in work, one label map being written, nothing read ahead."""
    image = sizes.stored * sizes.stored_bytes
    prepared = sizes.plan.inputs * _voxels(sizes.network) * FLOAT
    labels = 3 * sizes.stored  # the one in work, its turned copy, the one being written
    total = sizes.held.ram_bytes + image + image // 2 + 2 * prepared + labels + 8 * choice.slab_voxels * FLOAT
    if not choice.on_gpu:
        total += _accumulated(sizes)
    if not gpu:
        total += _activations(sizes.plan, choice.batch)
    if isinstance(sizes.plan, NnunetPlan):
        kinds = {one.kind for one in sizes.plan.normalizations}
        inside = "zscore_inside" in kinds  # which takes copies in double precision, and a mask
        total += _weights(sizes.plan) * FLOAT + sizes.stored * (5 * FLOAT if inside else FLOAT)
    return PROGRAM_MB + (CUDA_MB if gpu else 0) + total / MIB


def gpu_mb(sizes: Sizes, choice: Choice) -> float:
    """Return the estimated peak of GPU memory in MiB."""
    total = _activations(sizes.plan, choice.batch) + 3 * _weights(sizes.plan) * FLOAT
    if choice.on_gpu:
        total += (
            _accumulated(sizes)
            + 2 * sizes.plan.inputs * _voxels(sizes.network) * FLOAT
            + 8 * choice.slab_voxels * FLOAT
        )
    return CUDA_MB + total / MIB


def choices(sizes: Sizes, budget: Budget, gpu: bool, batch: int, free_gpu_mb: float | None = None) -> list[Choice]:
    """Return the fastest way to run a case within ``budget``, and what to fall back to, each needing less.

    Args:
        gpu: whether the network runs on a GPU.
        batch: windows per forward pass, at most.
        free_gpu_mb: what the GPU has left for this process, in MiB. It sets the limit where the budget sets none, but
            refuses no case: others may need less of the GPU soon, and the estimate is generous.

    Raises:
        CaseError: when not even the smallest setting fits the budget; the message says what it would need.
    """
    known = _all_choices(gpu, batch)
    allowed = [choice for choice in known if _fits(sizes, choice, budget, gpu)]
    if not allowed:
        raise CaseError("too_large", "", _refusal(sizes, known[-1], budget, gpu), "Allow more memory.", common=True)
    if gpu and budget.max_gpu_mb is None and free_gpu_mb is not None:
        allowed = [choice for choice in allowed if gpu_mb(sizes, choice) <= free_gpu_mb] or allowed[-1:]
    if allowed[0] != known[0]:
        log.info("memory budget: %s", allowed[0])
    return _falling(sizes, allowed) if gpu else allowed[:1]


def best_batch(plan: Plan, gpu: bool) -> int:
    """Return how many windows of a plan make a forward pass that keeps the device busy."""
    return max(1, min(LARGEST_BATCH, BATCH_VOXELS // _voxels(plan.patch))) if gpu else 1


def _all_choices(gpu: bool, batch: int) -> list[Choice]:
    """Return all settings, the fastest first."""
    slabs = [SLAB_VOXELS]
    while slabs[-1] > SMALLEST_SLAB:
        slabs.append(slabs[-1] // 4)
    batches = [batch] + [1 << i for i in range(batch.bit_length() - 1, -1, -1) if 1 << i < batch]
    on_gpu = (True, False) if gpu else (False,)
    return [Choice(windows, on, slab) for on, windows, slab in product(on_gpu, batches, slabs)]


def _falling(sizes: Sizes, choices: Sequence[Choice]) -> list[Choice]:
    """Return the first of ``choices``, those after it that need :data:`MUCH_LESS` GPU memory each, and the last."""
    chosen = [choices[0]]
    for choice in choices[1:]:
        if gpu_mb(sizes, choice) - CUDA_MB <= MUCH_LESS * (gpu_mb(sizes, chosen[-1]) - CUDA_MB):
            chosen.append(choice)
    least = min(choices, key=lambda choice: gpu_mb(sizes, choice))
    return chosen if gpu_mb(sizes, chosen[-1]) <= gpu_mb(sizes, least) else [*chosen, least]


def _fits(sizes: Sizes, choice: Choice, budget: Budget, gpu: bool) -> bool:
    ram = budget.max_ram_mb is None or ram_mb(sizes, choice, gpu) <= budget.max_ram_mb
    return ram and (not gpu or budget.max_gpu_mb is None or gpu_mb(sizes, choice) <= budget.max_gpu_mb)


def _refusal(sizes: Sizes, smallest: Choice, budget: Budget, gpu: bool) -> str:
    needs = [f"{ram_mb(sizes, smallest, gpu):.0f} MB of RAM (allowed: {budget.max_ram_mb or 'any'})"]
    if gpu:
        needs.append(f"{gpu_mb(sizes, smallest):.0f} MB on the GPU (allowed: {budget.max_gpu_mb or 'any'})")
    grid = "x".join(map(str, sizes.network[::-1]))
    return f"memory: {grid} voxels on the network grid need about {' and '.join(needs)} at the smallest setting"


def _accumulated(sizes: Sizes) -> int:
    """Bytes of the sums of logits: those of one patch's height, a finished block, and the planes export still holds.

    Where all logits are held, these come on top.
    """
    depth, height, width = (max(n, p) for n, p in zip(sizes.network, sizes.plan.patch, strict=True))
    planes = 3 * sizes.plan.patch[0] + sizes.held.logits * depth
    return (sizes.outputs + 1) * planes * height * width * FLOAT


def _activations(plan: Plan, batch: int) -> int:
    """Bytes of the activations of a forward pass."""
    voxels, total = _voxels(plan.patch), 0.0
    for stage, (features, stride) in enumerate(zip(plan.features, plan.stage_strides, strict=True)):
        voxels //= _voxels(stride)
        total += (FEATURE_MAPS if stage == 0 else 1.0) * voxels * features
    return int(batch * total * FLOAT)


def _weights(plan: Plan) -> int:
    """Roughly the number of weights of the network."""
    pairs = zip((plan.inputs, *plan.features), plan.features, strict=False)
    each = 2 if plan.residual else 1
    counts = [each * n + m for n, m in zip(plan.encoder_counts, (*plan.decoder_counts, 0), strict=True)]
    folds = plan.folds if isinstance(plan, NnunetPlan) else 1
    return folds * sum(27 * (a * b + n * b * b) for (a, b), n in zip(pairs, counts, strict=True))


def _voxels(shape: Sequence[int]) -> int:
    z, y, x = shape
    return z * y * x
