"""What a recipe costs, before it runs: GPU hours, wall time on several cards, disk, jobs. From counted operations.

Nothing is run. The operations of each training and prediction are counted on networks without memory, and divided by
the rate that a card is known to reach in nnU-Net's own training. Every assumption is a field of :class:`Setting` or a
constant here, and :func:`assumptions` says it in words.
"""

import heapq
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path

from labelloop.base.errors import UserError, nearest
from labelloop.base.sequences import flat
from labelloop.base.shards import assign_shards
from labelloop.base.wording import count
from labelloop.inference.external import NnunetModel
from labelloop.inference.steps import InferenceStep, Segment
from labelloop.networks.plans import Plan
from labelloop.networks.settings import TranslatorSettings
from labelloop.recipe import Recipe, parents, unroll
from labelloop.run.chain import arrays_of, bank_of, images_of, needed, ordered
from labelloop.run.resources import IMAGE_BYTES, LABEL_MB, SCAN_MM, loader_workers, training_threads
from labelloop.training.settings import (
    SLICE_CLASSIFIER,
    TRANSLATOR,
    CrossPseudoSettings,
    MeanTeacherSettings,
    SegmenterSettings,
    SliceClassifierSettings,
    SupervisedSettings,
    cutmix_of,
    optimizer_buffers,
    settings_of,
)

LIVER = Plan(spacing_mm=(1, 0.77, 0.77), patch=(128, 128, 128), batch_size=2)
LIVER_OUTPUTS, LIVER_EPOCH_S = 3, 41.1
"""nnU-Net's benchmark on an A100 of 40 GB: Task003_Liver, 3d_fullres, without loading of data, seconds an epoch
(documentation/benchmarking.md and its sheet of results)."""
BANDWIDTH_TBS = {"A100": 1.555, "H100": 3.35, "H200": 4.8}
"""Memory bandwidth by NVIDIA's data sheets, SXM cards (A100: 40 GB). A U-Net's training waits for memory most of the
time, so the rate of another card is taken to follow it."""
TF32 = 0.5
"""Rate in TF32 as a share of that in half precision (data sheets): slice classifiers train in it."""
BACKWARD = 2
"""Operations of a backward pass, in forward passes."""
BATCH_S_A_VOXEL = 0.26 / (2 * 48 * 128 * 160)
"""CPU seconds to load and augment a voxel of a training batch: measured on a Zen 3 core for the plan `fine`."""
OTHER_S = 1.0
"""Seconds a case takes beside its network: reading, preparing, export, writing, as far as they do not overlap."""
START_S = 25.0
"""Seconds until a job has started and loaded its model."""
COPIES = 3
"""Copies of a network's parameters that a training leaves: weights, and a checkpoint with these and the best ones.

The checkpoint also holds what the optimizer keeps of each (``training.settings.optimizer_buffers``).
"""
MB = 1e6
RULE = "| --- | ---: | ---: | ---: | ---: |"


@dataclass(frozen=True)
class Setting:
    """What a recipe is run on.

    Args:
        cases, test_cases: that are learned from and labeled, and that are segmented and scored at the end.
        gpu: a key of :data:`BANDWIDTH_TBS`. cards: how many there are.
        tflops: the card's rate in training, where it was measured (``benchmarks/gpu``).
        workers: processes that make batches for one training.
        extent_mm: size (z, y, x) of a scan.
        shard_size: cases in a job, at most.
        bytes_a_voxel: of a prepared image.
    """

    cases: int
    gpu: str = "A100"
    cards: int = 1
    test_cases: int = 50
    tflops: float | None = None
    workers: int = loader_workers("auto", training_threads(gpu=True))
    extent_mm: tuple[float, float, float] = SCAN_MM
    shard_size: int = 64
    bytes_a_voxel: float = IMAGE_BYTES

    @property
    def rate(self) -> float:
        """Operations a second in training, half precision. Raises UserError for a GPU that nothing is known of."""
        if self.tflops is not None:
            return self.tflops * 1e12
        if self.gpu not in BANDWIDTH_TBS:
            hint = nearest(self.gpu, BANDWIDTH_TBS)
            raise UserError(f"--gpu {self.gpu}: known are {', '.join(BANDWIDTH_TBS)}{hint}; of others give --tflops")
        return liver_rate() * BANDWIDTH_TBS[self.gpu] / BANDWIDTH_TBS["A100"]

    def shards(self, role: str) -> int:
        """Number of shards that the cases of a role (train, test) fill."""
        number = self.cases if role == "train" else self.test_cases
        return len(set(assign_shards([(f"{role}{i}", role) for i in range(number)], self.shard_size).values()))

    def shape(self, plan: Plan) -> tuple[int, int, int]:
        """Shape (z, y, x) of a scan on the network grid of a plan."""
        z, y, x = (round(mm / side) for mm, side in zip(self.extent_mm, plan.spacing_mm, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Training:
    """The training of one model: its updates, and seconds that an update takes on the card and its batch to make."""

    model: str
    updates: int
    card_s: float
    batch_s: float

    @property
    def hours(self) -> float:
        """Hours it takes: whichever is slower sets the pace."""
        return self.updates * max(self.card_s, self.batch_s) / 3600


@dataclass(frozen=True)
class Prediction:
    """What one model predicts: windows and seconds of a case, and the number of cases."""

    model: str
    windows: int
    case_s: float
    cases: int

    @property
    def hours(self) -> float:
        """Hours it takes, without the start of jobs."""
        return self.cases * self.case_s / 3600


@dataclass
class Cost:
    """The cost of a recipe; disk in MB by what lies there, jobs by rule."""

    recipe: Recipe
    setting: Setting
    trainings: list[Training] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    final_s: float = 0.0
    disk_mb: dict[str, float] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)

    @property
    def gpu_hours(self) -> float:
        """Hours of all cards together, without what they wait for each other."""
        final = self.final_s * self.setting.test_cases / 3600
        return final + sum(t.hours for t in self.trainings) + sum(p.hours for p in self.predictions)


def cost_of(recipe: Recipe, setting: Setting) -> Cost:
    """Return what a recipe, its rounds unrolled, costs. Raises UserError for a GPU that nothing is known of."""
    chain = unroll(recipe)
    used = [name for name in ordered(chain) if name in needed(chain)]
    models = [name for name in used if name in chain.models]
    asked = dict.fromkeys(flat(chain.labels[name].predict for name in used if name in chain.labels))
    scored = [name for name in chain.evaluate.models if name in chain.models]
    result = Cost(chain, setting, [training(chain, name, setting) for name in models])
    result.predictions = [prediction(chain, name, setting, setting.cases) for name in asked if name in models]
    result.predictions += [prediction(chain, name, setting, setting.test_cases) for name in scored]
    steps = flat(product([step], step.models) for step in chain.inference)
    result.final_s = sum(prediction(chain, name, setting, 1, step).case_s for step, name in steps)
    result.disk_mb = disk(chain, models, setting)
    result.jobs = jobs(chain, setting.shards("train"), setting.shards("test"))
    return result


# --- operations


@cache
def liver_rate() -> float:
    """Return the operations a second of nnU-Net's published benchmark: what an A100 really reaches."""
    settings = SupervisedSettings()
    update, validation = (n * forward(LIVER, LIVER_OUTPUTS) * LIVER.batch_size for n in (1 + BACKWARD, 1))
    epoch = settings.iterations_per_epoch * update + settings.validation_iterations * validation
    return epoch / LIVER_EPOCH_S


@cache
def forward(plan: Plan, outputs: int) -> int:
    """Return the floating-point operations of a forward pass of one patch: two a multiply-accumulate."""
    return 2 * _macs(plan, outputs)[0]


@cache
def _macs(plan: Plan, outputs: int) -> tuple[int, int]:
    """Return multiply-accumulates of a patch, and parameters."""
    import torch

    from labelloop.networks.network import build_network, count_macs, count_parameters

    with torch.device("meta"):
        network = build_network(plan, outputs)
    return count_macs(network, plan.patch, plan.inputs), count_parameters(network)


def passes(settings: SegmenterSettings, batch_size: int) -> tuple[float, float]:
    """Return the work of an update and of a validation step, in forward passes of a batch."""
    if isinstance(settings, CrossPseudoSettings):
        told = 2.0 if settings.unlabeled.strong_augmentation else 0.0  # both networks then predict apart what teaches
        return 2.0 * (1 + BACKWARD) + told, 2.0
    if isinstance(settings, MeanTeacherSettings):
        unlabeled = max(1, int(settings.unlabeled.share * batch_size)) / batch_size
        shown = 1.0 if settings.consistency_on == "all" else unlabeled
        return 1 + BACKWARD + (shown if settings.consistency else 0.0), 1.0
    return 1.0 + BACKWARD, 1.0


def training(chain: Recipe, name: str, setting: Setting) -> Training:
    """Return the training of a model, validation counted with its updates."""
    spec = chain.models[name]
    settings, plan = spec.trainer, chain.plans[spec.plan]
    if isinstance(settings, TranslatorSettings):
        s = settings
        work, voxels = _translator_update(s.features, s.blocks, s.layers, tuple(s.patch)), 2 * math.prod(s.patch)
        seconds = work / setting.rate
        return Training(name, s.epochs * s.iterations_per_epoch, seconds, BATCH_S_A_VOXEL * voxels / setting.workers)
    if isinstance(settings, SliceClassifierSettings):
        work = (1 + BACKWARD) * settings.batch_size * _classifier(settings.size)
        seconds, voxels = work / (setting.rate * TF32), settings.batch_size * settings.size**2
    else:
        segmenter = settings_of(settings, SegmenterSettings)
        update, validation = passes(segmenter, plan.batch_size)
        share = segmenter.validation_iterations / segmenter.iterations_per_epoch
        one = plan.batch_size * forward(plan, _outputs(chain, name))
        seconds, voxels = (update + share * validation) * one / setting.rate, plan.batch_size * math.prod(plan.patch)
    updates = settings.epochs * settings.iterations_per_epoch
    return Training(name, updates, seconds, BATCH_S_A_VOXEL * voxels / setting.workers)


@cache
def _translator_update(features: int, blocks: int, layers: int, patch: tuple[int, int, int]) -> float:
    """Return the operations of an update of a translator (``training.translator``).

    Six passes of a generator, forward and backward. A discriminator is asked twice for the generators, which need the
    gradient of its input alone, and learns from four.
    """
    import torch

    from labelloop.networks.generator import Discriminator, Generator
    from labelloop.networks.network import count_macs

    with torch.device("meta"):
        generator, discriminator = Generator(features, blocks), Discriminator(features, layers)
    verdicts = 2 * (1 + BACKWARD / 2) + 4 * (1 + BACKWARD)
    macs = 6 * (1 + BACKWARD) * count_macs(generator, patch) + verdicts * count_macs(discriminator, patch)
    return 2 * macs


@cache
def _classifier(size: int) -> int:
    """Return the operations of a slice classifier on one slice."""
    import torch

    from labelloop.inference.slices import build_classifier
    from labelloop.networks.network import counting_macs

    with torch.device("meta"):
        network = build_classifier().eval()
        with counting_macs(network) as counted, torch.no_grad():
            network(torch.empty((1, 3, size, size)))
    return 2 * sum(counted)


def prediction(chain: Recipe, name: str, setting: Setting, cases: int, step: InferenceStep | None = None) -> Prediction:
    """Return what a model predicts of ``cases`` scans, whole ones: in a step of the inference, or for labels."""
    from labelloop.inference.windows import window_starts

    spec = chain.models[name]
    plan = chain.plans[spec.plan]
    shape = setting.shape(plan)
    if isinstance(spec.trainer, SliceClassifierSettings):
        seconds = shape[0] * _classifier(spec.trainer.size) / (setting.rate * TF32)
        return Prediction(name, shape[0], seconds + OTHER_S, cases)
    padded = [max(n, p) for n, p in zip(shape, plan.patch, strict=True)]
    own = step if isinstance(step, Segment) else Segment(segment=(name,))
    windows = math.prod(map(len, window_starts(padded, plan.patch, own.step or chain.engine.step)))
    axes = settings_of(spec.trainer, SegmenterSettings).mirror_axes if own.mirror else chain.engine.mirror_axes
    mirrored = 2 ** len(axes)
    seconds = windows * mirrored * forward(plan, _outputs(chain, name)) / setting.rate
    return Prediction(name, windows, seconds + OTHER_S, cases)


def _outputs(chain: Recipe, name: str) -> int:
    return 1 + len(chain.scheme.select(chain.models[name].classes))


# --- disk, jobs, wall time


def disk(chain: Recipe, models: Sequence[str], setting: Setting) -> dict[str, float]:
    """Return MB of what a run leaves, by what lies there."""
    images = dict.fromkeys(images_of(chain, chain.models[m].plan) for m in models)
    voxels = sum(math.prod(setting.shape(chain.plans[name])) for name in images)
    maps = set(flat(chain.labels[name].predict for name in needed(chain) & set(chain.labels)))
    maps |= needed(chain) & set(chain.labels)
    segmenters = [m for m in models if isinstance(chain.models[m].trainer, SegmenterSettings)]
    numbers = sum(
        (COPIES + optimizer_buffers(chain.models[m].trainer))
        * _macs(chain.plans[chain.models[m].plan], _outputs(chain, m))[1]
        for m in segmenters
    )
    return {
        "prepared images": setting.cases * voxels * setting.bytes_a_voxel / MB,
        "prepared labels": setting.cases * len(_prepared_labels(chain, models)) * LABEL_MB,
        "label maps": (setting.cases * len(maps) + setting.test_cases) * LABEL_MB,
        "models": 4 * numbers / MB,
    }


def _prepared_labels(chain: Recipe, models: Sequence[str]) -> set[tuple[str, str, str]]:
    """Return the (images, kind of arrays, label set) that labels are prepared for."""
    specs = {m: chain.models[m] for m in models if chain.models[m].trainer.kind != TRANSLATOR}
    return {(images_of(chain, spec.plan), arrays_of(chain, m), spec.labels) for m, spec in specs.items()}


def jobs(chain: Recipe, train: int, test: int) -> dict[str, int]:
    """Return the jobs of each rule, as Snakemake counts them, for so many shards of cases to learn from and to test."""
    used = needed(chain)
    models = [name for name in chain.models if name in used]
    labels = [chain.labels[name] for name in chain.labels if name in used]
    plans = [chain.plans[chain.models[m].plan] for m in models]
    images = {images_of(chain, chain.models[m].plan) for m in models}
    kinds: list[str] = [chain.models[m].trainer.kind for m in models]
    pasting = [m for m in models if cutmix_of(chain.models[m].trainer)]
    banks = {(images_of(chain, chain.models[m].plan), bank_of(chain, m)) for m in pasting}
    asked = set(flat(spec.predict for spec in labels))
    labeling = dict.fromkeys([*asked, *chain.evaluate.models])
    predicting = [(name, train) for name in asked] + [(name, test) for name in chain.evaluate.models]
    predicted = sum(spec.select.asks_quality for spec in labels)
    compared = sum(len(spec.predict) > 1 or spec.select.asks_quality for spec in labels)
    learned = {chain.models[m].labels for m in models} & chain.labels.keys()
    agreed = sum(chain.labels[name].select.voxels == "agreed" for name in learned)
    upright = any(plan.upright for plan in plans)
    counted = {
        "survey": train + test, "tested": min(1, test), "collect": 1, "group": 1,
        "detect_upside_down": (train + test) * upright, "upright": int(upright),
        "prepare": train * len(images), "prepare_labels": train * len(_prepared_labels(chain, models)),
        "cut_objects": train * len(banks),
        "train": sum(isinstance(chain.models[m].trainer, SegmenterSettings) for m in models),
        "train_slices": kinds.count(SLICE_CLASSIFIER), "train_translator": kinds.count(TRANSLATOR),
        "structure": len({name for name in images if chain.plans[name].translate}),
        "import_nnunet": sum(isinstance(chain.external.get(name), NnunetModel) for name in labeling),
        "predict": sum(shards for name, shards in predicting if name in chain.models),
        "predict_external": sum(shards for name, shards in predicting if name in chain.external),
        "transfer": train * sum(spec.transfer is not None for spec in labels),
        "fuse": train * len(labels), "agree": train * compared, "held_out": train * compared,
        "corrupt": train * bool(predicted), "measure": train * predicted, "quality": predicted,
        "check": train * sum(spec.check is not None for spec in labels),
        "select": len(labels), "trust": train * agreed, "review": len(labels), "infer": test or train, "summarize": 1,
        "check_final": (test or train) * chain.evaluate.check,
        "evaluate": (len(chain.evaluate.models) + 1) * min(1, test), "report": 1,
    }  # fmt: skip
    return {name: number for name, number in counted.items() if number}


def wall_hours(cost: Cost, cards: int | None = None) -> float:
    """Return the hours that trainings and predictions take on ``cards``, each as soon as what it needs is there.

    A training takes one card; what a model predicts is split into shards. Jobs without a GPU are not counted.
    """
    chain, cards = cost.recipe, cards or cost.setting.cards
    ready: dict[str, float] = {}
    free = [0.0] * cards
    trainings = {t.model: t for t in cost.trainings}
    predictions = {p.model: p for p in cost.predictions if p.cases == cost.setting.cases}

    def run(hours: float, after: float) -> float:
        began = max(heapq.heappop(free), after)
        heapq.heappush(free, began + hours)
        return began + hours

    waiting = [name for name in ordered(chain) if name in needed(chain)]
    while waiting:
        possible = [n for n in waiting if all(parent in ready for parent in parents(chain, n))]
        name = min(possible, key=lambda n: max((ready[p] for p in parents(chain, n)), default=0.0))
        after = max((ready[parent] for parent in parents(chain, name)), default=0.0)
        if name in trainings:
            ready[name] = run(trainings[name].hours + START_S / 3600, after)
        elif name in chain.external:
            ready[name] = after
        else:
            ends = [after]
            for model in chain.labels[name].predict:
                work, pieces = predictions.pop(model, None), cost.setting.shards("train")
                if work is not None:
                    ends += [run(work.hours / pieces + START_S / 3600, ready[model]) for _ in range(pieces)]
            ready[name] = max(ends)
        waiting.remove(name)
    return max([*ready.values(), *free])


@dataclass(frozen=True)
class Stored:
    """What the prepared image of one scan takes."""

    scan: str
    plan: str
    voxels: int
    bytes: int


def measure(recipe: Recipe, scans: Sequence[Path]) -> Iterator[Stored]:
    """Prepare CT scans by each plan of a recipe that prepares images of its own, and yield what they take.

    Raises:
        CaseError: when a scan cannot be used.
        UserError: when the plans take images of several channels.
    """
    from labelloop.images.scan import read_image
    from labelloop.inference.prepare import prepare_image
    from labelloop.inference.prepared import SUFFIX, write_image_array

    plans = {name: recipe.plans[name] for name in dict.fromkeys(images_of(recipe, name) for name in recipe.plans)}
    several = [name for name, plan in plans.items() if plan.channels]
    if several and scans:
        raise UserError(f"--scans: a scan is one channel, and plan {several[0]} takes several. Leave it out")
    with tempfile.TemporaryDirectory() as folder:
        for scan in scans:
            volume = read_image(scan, "CT")
            for name, plan in plans.items():
                prepared = prepare_image(volume, plan, "CT")
                path = Path(folder) / f"case{SUFFIX}"
                write_image_array(path, prepared.array, prepared.frame.as_dict())
                yield Stored(scan.name, name, prepared.array.size, path.stat().st_size)


# --- words


def assumptions(setting: Setting) -> Iterator[str]:
    """Yield all that the numbers rest on, a sentence each."""
    rate = f"{setting.rate / 1e12:.0f} TFLOPS in training, half precision"
    if setting.tflops is None:
        anchor = f"nnU-Net's published {LIVER_EPOCH_S:g} s an epoch of Task003_Liver on an A100 of 40 GB"
        times = BANDWIDTH_TBS[setting.gpu] / BANDWIDTH_TBS["A100"]
        rate += f" ({anchor}{f', times {times:.2f} by memory bandwidth' if times != 1 else ''})"
    yield f"{setting.gpu}: {rate}; TF32 (slice classifiers) at {TF32:g} of it."
    yield f"A backward pass counts as {BACKWARD} forward passes; convolutions and matrix products are counted alone."
    yield (
        f"{count(setting.workers, 'worker')} make batches, in {BATCH_S_A_VOXEL * 1e6:.2f} CPU s a million voxels; "
        "a training takes the longer of the card's time and its batches'."
    )
    extent = " x ".join(f"{mm:g}" for mm in setting.extent_mm[::-1])
    yield (
        f"A scan is {extent} mm and is segmented whole, windows as the recipe's engine has them, plus"
        f" {OTHER_S:g} s; a job takes {START_S:g} s to start."
    )
    yield f"Every label set predicts all {setting.cases} cases; {setting.test_cases} cases are tested on."
    yield (
        f"A prepared image takes {setting.bytes_a_voxel:.2f} bytes a voxel, a label map {LABEL_MB:g} MB; a training "
        f"leaves {COPIES} copies of its parameters, and what its optimizer keeps: one more with SGD, two with AdamW."
    )
    yield "Jobs without a GPU (survey, prepare, fuse, check) and waits for the queue are not in the wall time."


def lines(cost: Cost) -> Iterator[str]:
    """Yield the cost of a recipe in Markdown."""
    s = cost.setting
    yield f"{cost.recipe.name}: {count(s.cases, 'case')}, {s.cards} x {s.gpu}"
    yield from (
        "",
        "| training | updates | card s an update | batch s | hours |",
        RULE,
    )
    for t in cost.trainings:
        yield f"| {t.model} | {t.updates} | {t.card_s:.3f} | {t.batch_s:.3f} | {t.hours:.1f} |"
    yield from ("", "| prediction | cases | windows | s a case | hours |", RULE)
    for p in cost.predictions:
        yield f"| {p.model} | {p.cases} | {p.windows} | {p.case_s:.2f} | {p.hours:.1f} |"
    yield ""
    yield f"GPU hours: {cost.gpu_hours:.1f}. Wall time on {count(s.cards, 'card')}: {wall_hours(cost):.1f} h."
    yield f"Final label maps: {cost.final_s:.1f} s a case."
    parts = ", ".join(f"{name} {mb / 1000:.1f}" for name, mb in cost.disk_mb.items())
    yield f"Disk: {sum(cost.disk_mb.values()) / 1000:.1f} GB ({parts})."
    yield f"Jobs: {sum(cost.jobs.values())} ({', '.join(f'{name} {n}' for name, n in cost.jobs.items())})."
    unknown = sorted(needed(cost.recipe) & cost.recipe.external.keys())
    if unknown:
        yield f"What external models take is not in these numbers: {', '.join(unknown)}."
    yield from ("", "Assumed:", *(f"- {sentence}" for sentence in assumptions(s)))
