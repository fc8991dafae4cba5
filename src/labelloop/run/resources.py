"""What a training job asks for: cards, threads and memory, from its plan and the number of its cases.

No image is opened here.
"""

import math
from typing import TYPE_CHECKING, Literal

from labelloop.base.sequences import flat
from labelloop.base.wording import count
from labelloop.inference.budget import MIB
from labelloop.networks.plans import Plan
from labelloop.recipe import TRUTH, Recipe
from labelloop.training.settings import SEMI_SUPERVISED, TRANSLATOR, TrainerSettings, optimizer_buffers

if TYPE_CHECKING:
    from labelloop.run.config import RunConfig
    from labelloop.run.shards import Shards
    from labelloop.run.wiring import Wiring

Workers = Literal["auto"] | int
THREADS, THREADS_WITH_GPU = 8, 12
"""Of a training; beside a GPU, as many as nnU-Net loads with by default (``get_allowed_n_proc_DA``)."""
LEAST_MB, TRANSLATOR_MB = 8000, 16000
"""Memory asked for, at least, of any training and of a translator's."""
PROGRAM_MB, GPU_PROGRAM_MB, WORKER_MB = 1500, 4000, 250
"""Python with torch and nnU-Net; the same with a CUDA context and pinned batches; what a loader has of its own."""
PREFETCHED, SAMPLE_BYTES, AUGMENTED_BYTES = 4, 8, 60
"""Batches that a loader holds; bytes a voxel of a sample that is ready, and of one that is being augmented."""
ACTIVATIONS = 16
"""Tensors of a stage's size that a step on a CPU holds, forwards and backwards."""
WEIGHT_COPIES, FLOAT_BYTES = 3, 4
"""Numbers of each weight beside those of the optimizer: value, gradient, and a copy while a checkpoint is written."""
SCAN_MM = (450.0, 400.0, 400.0)
"""Size (z, y, x) of a large abdominal scan."""
IMAGE_BYTES = 1.5
"""Bytes a voxel of a prepared image takes on a disk (float32, LZ4HC); ``recipe cost --scans`` measures them."""
LABEL_MB = 0.25
"""Of a label map of organs, as prepared and as written (gzip)."""
CACHE_MB = 32000
"""Page cache asked for, at most. Slurm counts it as memory of the job: without it, arrays are read anew each epoch."""


def loader_workers(workers: Workers, threads: int) -> int:
    """Return how many processes load batches; ``auto``: one less than the job's threads, but at least one."""
    return max(1, threads - 1) if workers == "auto" else workers


def training_threads(gpu: bool, cards: int = 1) -> int:
    """Return the threads of a training job on so many ``cards``."""
    return cards * THREADS_WITH_GPU if gpu else THREADS


def training_mb(plan: Plan, settings: TrainerSettings, cases: int, workers: int, gpu: bool, cards: int = 1) -> int:
    """Return the memory of a training job in MiB: what it allocates, and page cache for its prepared arrays.

    Args:
        cases: that it learns from, at most; 0: no page cache.
        workers: processes that load, for each card.
        gpu: whether the network is trained on a GPU.
        cards: on how many, each with a process of its own.
    """
    own = (GPU_PROGRAM_MB if gpu else PROGRAM_MB) + workers * _loader_mb(plan)
    if settings.kind == TRANSLATOR:
        own = max(own, TRANSLATOR_MB)
    else:
        own += (2 if settings.kind == "cross_pseudo" else 1) * _network_mb(plan, settings, gpu)
    return max(LEAST_MB, math.ceil(cards * own + cache_mb(plan, cases)))


def cache_mb(plan: Plan, cases: int) -> float:
    """Return the page cache in MiB that holds the prepared arrays of ``cases``, or as many of them as is sensible."""
    voxels = plan.inputs * math.prod(SCAN_MM) / math.prod(plan.spacing_mm)
    return min(CACHE_MB, cases * (voxels * IMAGE_BYTES / MIB + LABEL_MB))


def _loader_mb(plan: Plan) -> float:
    voxels = plan.inputs * math.prod(plan.patch)
    return WORKER_MB + voxels * (PREFETCHED * plan.batch_size * SAMPLE_BYTES + AUGMENTED_BYTES) / MIB


def _network_mb(plan: Plan, settings: TrainerSettings, gpu: bool) -> float:
    """Return what a network takes of RAM: its weights and, where it is trained there, its activations."""
    pairs = zip((plan.inputs, *plan.features), plan.features, strict=False)
    weights = sum(27 * (a * b + 3 * b * b) for a, b in pairs)
    total = FLOAT_BYTES * (WEIGHT_COPIES + optimizer_buffers(settings)) * weights
    voxels = math.prod(plan.patch)
    for features, stride in zip(plan.features, plan.stage_strides, strict=True):
        voxels //= math.prod(stride)
        total += 0 if gpu else FLOAT_BYTES * ACTIVATIONS * plan.batch_size * voxels * features
    return total / MIB


class TrainingResources:
    """What each training of a run asks for."""

    def __init__(self, config: "RunConfig", chain: Recipe, wiring: "Wiring", shards: "Shards"):
        self._config, self._chain, self._wiring, self._shards = config, chain, wiring, shards
        self._gpu = config.device != "cpu"

    def cards(self, model: str) -> int:
        """Cards that train a model: as many as the configuration says, if a batch has so many samples."""
        if model not in self._wiring.segmenters or not self._gpu:
            return 1
        return min(self._config.gpus_per_training, self._plan(model).batch_size)

    def fewer_cards(self) -> list[str]:
        """Return which models are trained on fewer cards than the configuration says, and why, a line each."""
        asked = self._config.gpus_per_training if self._gpu else 1
        few = {model: self.cards(model) for model in self._wiring.used_models if self.cards(model) < asked}
        samples, kind = "a batch has no more samples", "its kind of training is not shared out"
        return [
            f"model {model}: trained on {count(cards, 'card')}, not on {asked}: "
            + (samples if model in self._wiring.segmenters else kind)
            for model, cards in few.items()
        ]

    def threads(self, model: str) -> int:
        """Threads of the training of a model, where the machine has so many."""
        return training_threads(self._gpu, self.cards(model))

    def mb(self, model: str, threads: int, page_cache: bool = True) -> int:
        """Memory in MiB of the training of a model on ``threads``, with page cache for its prepared arrays or without.

        Only where the cache counts as memory of the job, as on Slurm, must it be asked for.
        """
        spec, cards = self._wiring.model(model), self.cards(model)
        labeled_only = spec.labels == TRUTH and spec.trainer.kind not in (*SEMI_SUPERVISED, TRANSLATOR)
        train = flat(self._shards.cases[shard] for shard in self._shards.train)
        cases = sum(bool(case.label) or not labeled_only for case in train) if page_cache else 0
        workers = loader_workers(self._config.workers, threads // cards)
        return training_mb(self._plan(model), spec.trainer, cases, workers, self._gpu, cards)

    def _plan(self, model: str) -> Plan:
        return self._chain.plans[self._wiring.model(model).plan]
