"""What the ablation trains: every arm is a model of a recipe, once a seed, and two arms make a pair."""

from typing import Any, NamedTuple

ARMS = ("background", "max", "marginal", "longer", "cutmix", "gated", "ungated", "pseudo_alone")
QUICK = {
    "optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.01, "deep_supervision": False,
    "validation_iterations": 0,
}  # fmt: skip
"""Of short trainings, as in ``benchmarks/loop``, where no test score chose them."""
ORGANS = {"mirror_axes": [], "foreground_fraction": 0.67}
"""For arms of organs alone: mirrored, left and right kidneys look alike to nets that see a few hundred patches."""
SATURATED = {"ct": {"clip_hu": [-125, 275], "mean": 60, "std": 100}}
"""Intensities of BTCV as it is passed on."""
SEEN = {"foreground_fraction": 1.0, "class_weights": {"tumor": 10}}
"""For all arms that know the tumor: else none finds one in hundreds of updates, and there is nothing to compare."""


class Size(NamedTuple):
    """How much is trained, on what. ``plan`` is that of every arm."""

    plan: dict[str, Any]
    trainer: dict[str, Any]
    phantoms: int
    phantom_mm: float


SIZES = {
    "full": Size(
        {"spacing_mm": [7, 7, 7], "patch": [24, 32, 40], "batch_size": 2, "features": [8, 16, 32, 64]},
        QUICK | {"epochs": 15, "iterations_per_epoch": 80},
        48,
        5.0,
    ),
    # 12 cases with a third of 12 organs each teach slowly: a larger net, and more than three times the updates.
    "btcv": Size(
        {"spacing_mm": [6, 6, 6], "patch": [32, 40, 48], "batch_size": 2, "features": [12, 24, 48, 96]} | SATURATED,
        QUICK | ORGANS | {"epochs": 24, "iterations_per_epoch": 80},
        0,
        0.0,
    ),
    "tiny": Size(
        {"spacing_mm": [14, 14, 14], "patch": [16, 16, 16], "batch_size": 2, "features": [4, 8]},
        QUICK | {"epochs": 1, "iterations_per_epoch": 2},
        12,
        10.0,
    ),
}


class Pair(NamedTuple):
    """Two arms to compare: is ``second`` better than ``first`` in ``what``, a class or the mean of the organs?"""

    question: str
    first: str
    second: str
    what: str = "organ mean"


PAIRS = (
    Pair("unknown taken for background, or merged by max", "background", "max"),
    Pair("unknown taken for background, or merged by max", "background", "max", "tumor"),
    Pair("unknown taken for background, or merged exactly", "background", "marginal"),
    Pair("unknown taken for background, or merged exactly", "background", "marginal", "tumor"),
    Pair("merged by max, or exactly", "max", "marginal"),
    Pair("labeled cases only for as many updates in all, or all with pseudo-labels", "longer", "gated"),
    Pair("pseudo-labels alone, or truth first (Jia, table 5)", "pseudo_alone", "ungated"),
    Pair("without, or with the anatomy gate (He, table 6)", "ungated", "gated"),
    Pair("without, or with tumor CutMix (Zhou)", "marginal", "cutmix", "tumor"),
)
BTCV_PAIR = Pair("a third of the organs in each case: background, or merged by max", "background", "max")


def model_name(arm: str, seed: int) -> str:
    """Return the name of an arm's model of one seed."""
    return f"{arm}_seed{seed}"


def partial_recipe(size: Size, seeds: range, arms: tuple[str, ...] = ARMS, classes: str | list[str] = "all") -> dict:
    """Return the recipe of the arms on partly labeled cases."""
    models: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    seen = SEEN if classes == "all" else {}
    for seed in seeds:
        common = {"plan": "p", "classes": classes, "validation_fraction": 0}
        trainers = {
            "background": {"kind": "supervised", "unknown": "background"},
            "max": {"kind": "partial", "merge": "max"},
            "longer": {"kind": "partial", "epochs": 2 * size.trainer["epochs"]},
            "cutmix": {"kind": "partial", "cutmix": {}},
        }
        sets = {"gated": "anatomy", "ungated": None, "pseudo_alone": None}
        for arm in arms:
            trainer = size.trainer | seen | {"seed": seed} | trainers.get(arm, {"kind": "partial"})
            learned = {"labels": f"set_{arm}{seed}"} if arm in sets else {"cases": "labeled"}
            models[model_name(arm, seed)] = common | {"trainer": trainer} | learned
            if arm in sets:
                fuse = "predictions_only" if arm == "pseudo_alone" else "truth_first"
                made = {"predict": model_name("marginal", seed), "fuse": fuse, "check": sets[arm]}
                labels[f"set_{arm}{seed}"] = made
    return _recipe("ablation", size, models, labels)


def _recipe(name: str, size: Size, models: dict, labels: dict) -> dict:
    first = next(iter(models))
    return {
        "name": name,
        "plans": {"p": size.plan},
        "models": models,
        "labels": labels,
        "inference": [{"segment": first}],
        "evaluate": {"models": list(models), "protocol": "corrected"},
    }
