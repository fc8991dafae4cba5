"""What the experiment on the loop trains: every arm is a model of a recipe, once a seed.

An arm that starts from ``labels_only`` takes N updates on top of its N; ``control`` takes these 2 N on labels alone,
and ``from_scratch``, which starts from nothing, all 2 N on the label set of ``default``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ORGANS = (
    "liver", "right_kidney", "spleen", "pancreas", "aorta", "inferior_vena_cava", "right_adrenal_gland",
    "left_adrenal_gland", "gallbladder", "esophagus", "stomach", "left_kidney",
)  # fmt: skip
"""The 12 organs of BTCV that FLARE knows."""
WHOLE = tuple(organ for organ in ORGANS if "adrenal" not in organ)
"""Those of which the largest part is kept, as in the recipe ``btcv``."""
GROUPS = {
    "large": ("liver", "spleen", "stomach", "right_kidney", "left_kidney"),
    "middle": ("aorta", "inferior_vena_cava", "pancreas"),
    "small": ("gallbladder", "esophagus", "right_adrenal_gland", "left_adrenal_gland"),
}
"""The organs by size: in adults mostly above 100 ml, above 40 ml, below."""
BASE, CONTROL, ORACLE = "labels_only", "control", "oracle"
LABELS = {
    "default": {},
    "agreed": {"select": {"min_pairwise_dice": 0.7, "voxels": "agreed"}},
    "voxels": {"select": {"voxels": "agreed"}},
    "without_agreement": {"select": {"min_pairwise_dice": None}},
    "without_anatomy": {"check": None},
    "quality": {"select": {"min_quality": 0.7}},
}
"""Label sets of the loop, by the arm that learns from them: what they change."""
TRAINERS = {"mixed": {"sampling": {"truth_alone": 0}}}
"""Students of the default's labels, by what their trainer changes: pseudo-labels from the first update on."""
QUALITY, LEARNED_FROM, HELD_OUT = "quality", 12, 0.25
"""The arm whose labels are accepted by a predicted DSC, the labeled cases of the phantom that it takes to learn to
predict one, and the share of them that no model learns from then."""
SURE = {"confidence_threshold": 0.8, "balanced": True, "strong_augmentation": True}
SEMI: Mapping[str, Mapping[str, Any]] = {
    "mean_teacher": {"kind": "mean_teacher"},
    "cross_pseudo": {"kind": "cross_pseudo"},
    "mean_teacher_sure": {"kind": "mean_teacher", "unlabeled": SURE, "consistency_weight": 10},
    "cross_pseudo_sure": {"kind": "cross_pseudo", "unlabeled": SURE},
}
"""Arms that learn from unlabeled scans during training: as published, and so that only sure voxels count, which the
network that learns sees in a strong view. A consistency of 0.1, as published, is four orders below the loss of labels;
10 was not tuned."""
TAUGHT = LARGE, TAUGHT_BY_LARGE = "large", "taught_by_large"
"""A larger network on finer voxels, and a student of what it alone says; no other model must agree."""
CONTINUED, TRUE_LABELS = "continued", "true_labels"
"""Arms that train as the default's student does: without pseudo-labels, and with the truth in their place."""
LONG, CONTINUED_LONG, DEFAULT_LONG = 4, "continued_long", "default_long"
"""Students of four times as many updates, without and with pseudo-labels of the same teachers."""
ALONE = (BASE, CONTROL, CONTINUED, CONTINUED_LONG)
"""Arms that see labels of people alone."""
ARMS = (*ALONE, *LABELS, DEFAULT_LONG, *TRAINERS, "from_scratch", "twice", *SEMI, "best", *TAUGHT, TRUE_LABELS, ORACLE)
UNSEEN = {"files": "{case}.nii.gz", "dataset": "flare22"}
"""A stand-in for the model of label files, where no arm learns from it."""
FEW = tuple(arm for arm in ARMS if arm != QUALITY)
"""The arms that four labeled cases are enough for."""


class Size(NamedTuple):
    """How much is trained, on what: plan and trainer of every arm, and what the phantom is.

    ``large``: what the plan of the large teacher has else.
    """

    plan: dict[str, Any]
    trainer: dict[str, Any]
    epochs: int
    phantoms: int
    phantom_mm: float
    large: Mapping[str, Any] = {}


QUICK = {
    "optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.01, "deep_supervision": False,
    "validation_iterations": 0,
}  # fmt: skip
"""Of short trainings. AdamW was chosen by the training loss of four labeled scans, no score was looked at."""
CPU = {"spacing_mm": [6, 6, 6], "patch": [32, 40, 48], "batch_size": 2, "features": [8, 16, 32, 64]}
LARGE_CPU = {"spacing_mm": [4, 4, 4], "patch": [48, 64, 72], "features": [16, 32, 64, 128]}
GPU = {"spacing_mm": [3, 2.5, 2.5], "patch": [64, 96, 96], "batch_size": 2, "features": [16, 32, 64, 128, 256]}
LARGE_GPU = {"spacing_mm": [2.5, 1.5, 1.5], "patch": [80, 160, 160], "features": [32, 64, 128, 256, 320]}
SATURATED = {"ct": {"clip_hu": [-125, 275], "mean": 60, "std": 100}}
"""Intensities of BTCV as it is passed on."""
SIZES = {
    "cpu": Size(CPU | SATURATED, QUICK | {"iterations_per_epoch": 80}, 12, 48, 6.0, LARGE_CPU),
    "gpu": Size(GPU | SATURATED, QUICK | {"iterations_per_epoch": 250}, 20, 64, 2.5, LARGE_GPU),
    "tiny": Size(
        {"spacing_mm": [14, 14, 14], "patch": [16, 16, 16], "batch_size": 2, "features": [4, 8]},
        QUICK | {"iterations_per_epoch": 2},
        1,
        20,
        10.0,
    ),
}


def named(arm: str, seed: int) -> str:
    """Return the name of an arm's model of one seed."""
    return f"{arm}_seed{seed}"


def recipe(
    size: Size, seeds: range, schedule: float = 1.0, arms: Sequence[str] = FEW, truth: Mapping[str, Any] = UNSEEN
) -> dict[str, Any]:
    """Return the recipe of the arms that know a few labeled cases.

    Args:
        schedule: share of the updates that every arm takes.
        arms: those that are scored. Only these are trained, and what they start and learn from. With
            :data:`QUALITY`, no arm learns from some of the labeled cases.
        truth: the model of label files that :data:`TRUE_LABELS` learns from.
    """
    models: dict[str, Any] = {}
    labels: dict[str, Any] = {"set_truth": {"predict": ["truth_files"], "classes": list(ORGANS), "check": None}}
    for seed in seeds:
        base = named(BASE, seed)
        models[base] = model(size, schedule, seed)
        models[named(CONTROL, seed)] = model(size, schedule, seed, times=2)
        models[named(CONTINUED, seed)] = model(size, schedule, seed) | {"init_from": base}
        models[named(CONTINUED_LONG, seed)] = model(size, schedule, seed, times=LONG) | {"init_from": base}
        models[named(DEFAULT_LONG, seed)] = student(size, schedule, seed, f"set_default{seed}", times=LONG)
        models[named(TRUE_LABELS, seed)] = student(size, schedule, seed, "set_truth")
        for arm in (arm for arm in LABELS if arm != QUALITY or QUALITY in arms):
            labels[f"set_{arm}{seed}"] = label_set([named(CONTROL, seed), base]) | LABELS[arm]
            models[named(arm, seed)] = student(size, schedule, seed, f"set_{arm}{seed}")
        for arm, change in TRAINERS.items():
            models[named(arm, seed)] = student(size, schedule, seed, f"set_default{seed}", **change)
        whole = model(size, schedule, seed, times=2)
        models[named("from_scratch", seed)] = whole | {"cases": "all", "labels": f"set_default{seed}"}
        labels[f"set_twice{seed}"] = label_set([named(CONTROL, seed), named("default", seed)])
        models[named("twice", seed)] = student(size, schedule, seed, f"set_twice{seed}")
        for arm, trainer in SEMI.items():
            models[named(arm, seed)] = model(size, schedule, seed, **trainer) | {"cases": "all", "init_from": base}
        # As the recipe `best`: three teachers vote, and a class on which they disagree is refused.
        models[named("third", seed)] = model(size, schedule, seed + 1000, times=2)
        labels[f"set_best{seed}"] = label_set([named(CONTROL, seed), named("third", seed), base])
        models[named("best", seed)] = student(size, schedule, seed, f"set_best{seed}")
        models[named(LARGE, seed)] = model(size, schedule, seed, times=2) | {"plan": LARGE}
        labels[f"set_{TAUGHT_BY_LARGE}{seed}"] = label_set([named(LARGE, seed)]) | {"select": {}}
        models[named(TAUGHT_BY_LARGE, seed)] = student(size, schedule, seed, f"set_{TAUGHT_BY_LARGE}{seed}")
    if QUALITY in arms:
        models = {name: spec | {"validation_fraction": HELD_OUT} for name, spec in models.items()}
    scored = [named(arm, seed) for arm in arms if arm != ORACLE for seed in seeds]
    external = {"truth_files": dict(truth) | {"classes": list(ORGANS)}}
    whole = whole_recipe(size, models, labels, scored) | {"external": external}
    whole["plans"][LARGE] = {"like": "p"} | size.large
    return whole


def oracle_recipe(size: Size, seeds: range, schedule: float = 1.0) -> dict[str, Any]:
    """Return the recipe of the oracle, which knows the labels of all cases, for as many updates as the control."""
    models = {named(ORACLE, seed): model(size, schedule, seed, times=2) for seed in seeds}
    return whole_recipe(size, models, {}, list(models))


def epochs_of(size: Size, schedule: float) -> int:
    """Return the epochs of N updates, whole ones: a share of those of a size."""
    return max(1, round(size.epochs * schedule))


def model(size: Size, schedule: float, seed: int, times: int = 1, **trainer: Any) -> dict[str, Any]:
    """Return a model that learns from the labeled cases for N updates, or ``times`` as many.

    Args:
        trainer: other settings of its trainer.
    """
    settings = size.trainer | {"kind": "partial", "seed": seed, "epochs": times * epochs_of(size, schedule)} | trainer
    return {"plan": "p", "classes": list(ORGANS), "cases": "labeled", "validation_fraction": 0, "trainer": settings}


def student(size: Size, schedule: float, seed: int, labels: str, times: int = 1, **trainer: Any) -> dict[str, Any]:
    """Return a model that goes on from the labeled cases alone with a label set of all cases."""
    learned = {"cases": "all", "labels": labels, "init_from": named(BASE, seed)}
    return model(size, schedule, seed, times, **trainer) | learned


def label_set(predict: list[str]) -> dict[str, Any]:
    """Return the checked label set of some models."""
    cleaned = {"keep_largest": list(WHOLE)}
    return {"predict": predict, "classes": list(ORGANS), "clean": cleaned, "select": {"min_pairwise_dice": 0.7}}


def whole_recipe(size: Size, models: dict[str, Any], labels: dict[str, Any], scored: list[str]) -> dict[str, Any]:
    """Return a recipe of models and label sets that scores some of the models."""
    return {
        "name": "loop",
        "plans": {"p": size.plan},
        "models": models,
        "labels": labels,
        "inference": [{"segment": scored[0]}],
        "evaluate": {"models": scored, "protocol": "corrected"},
    }
