"""What learns from a model of nnU-Net's: a student of its labels beside one of our labels, and one from its weights.

All models have the network, the plan and the optimizer of nnU-Net's, and are scored on the same scans. An arm that
starts from ``own`` takes N updates on top of its N; ``control`` takes 2 N on labels alone; ``fine_tuned`` takes N on
top of nnU-Net's, which are more by default (``--teacher-epochs``): after N it finds few organs.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from arms import ORGANS, QUICK, WHOLE
from common import gain_in_percent, organ_mean, train
from folds import Fold

from labelloop.base.tables import read_table

ZOO, CONTROL = "nnunet", "control"
ABOUT = {
    ZOO: "nnU-Net's own training on the labeled scans",
    "own": "ours, the same, N",
    CONTROL: "ours, the same, 2 N",
    "student_of_nnunet": "`own`, then N on the labels that `nnunet` makes of all scans",
    "student_of_own": "`own`, then N on the labels that `own` makes of all scans",
    "fine_tuned": "`nnunet`, then N of ours on the labeled scans",
}


def recipe(zoo: Path, organs: Iterable[str], epochs: int, updates: int, seeds: range) -> dict[str, Any]:
    """Return the recipe of all arms.

    Args:
        zoo: folder of the model of nnU-Net's.
        epochs: of N updates.
        updates: in an epoch.
    """
    models: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    cleaned = {"keep_largest": [organ for organ in organs if organ in WHOLE]}
    common = {"classes": list(organs), "clean": cleaned, "select": {"min_pairwise_dice": None}}
    for seed in seeds:
        # AdamW, as the short training of nnU-Net's (`trainer`), and its deep supervision.
        trainer = QUICK | {"kind": "partial", "deep_supervision": True, "seed": seed}
        trainer |= {"epochs": epochs, "iterations_per_epoch": updates}
        on_labels = {
            "plan": "p",
            "classes": common["classes"],
            "cases": "labeled",
            "validation_fraction": 0,
            "trainer": trainer,
        }
        models[f"own_seed{seed}"] = on_labels
        models[f"{CONTROL}_seed{seed}"] = on_labels | {"trainer": trainer | {"epochs": 2 * epochs}}
        models[f"fine_tuned_seed{seed}"] = on_labels | {"init_from": ZOO}
        for teacher, name in ((ZOO, "nnunet"), (f"own_seed{seed}", "own")):
            labels[f"by_{name}{seed}"] = common | {"predict": [teacher]}
            student = {"cases": "all", "labels": f"by_{name}{seed}", "init_from": f"own_seed{seed}"}
            models[f"student_of_{name}_seed{seed}"] = on_labels | student
    return {
        "name": "students",
        "plans": {"p": {"like": ZOO}},
        "external": {ZOO: {"nnunet": str(zoo.resolve()), "dataset": "btcv", "learned_from": []}},
        "models": models,
        "labels": labels,
        "inference": [{"segment": f"{CONTROL}_seed0"}],
        "evaluate": {"models": [ZOO, *models], "protocol": "corrected"},
    }


def report(
    out: Path, fold: Fold, zoo: Path, zoo_updates: int, epochs: int, updates: int, seeds: range
) -> Iterable[str]:
    """Train and score all arms; yield their table. ``zoo_updates`` is what nnU-Net's model took."""
    train(out, fold.known(), recipe(zoo, ORGANS, epochs, updates, seeds), "cpu", "1")
    amount = f"N is {epochs * updates} updates, `{ZOO}` took {zoo_updates}; {len(seeds)} seeds"
    yield f"{amount}; DSC of the {len(ORGANS)} organs of the other scans. Labels of the unlabeled scans that the checks"
    yield f"accepted: {_accepted(out, 'nnunet', seeds)} of `{ZOO}`, {_accepted(out, 'own', seeds)} of `own`."
    yield ""
    yield "| arm | what it is | DSC, % | against the control (95 %) |"
    yield "| --- | --- | ---: | ---: |"
    scored = {arm: _scores(out, arm, seeds) for arm in ABOUT}
    for arm, about in ABOUT.items():
        if not scored[arm]:
            yield f"| {arm} | {about} | not finished | – |"
            continue
        rows = pd.concat(scored[arm])
        mean = rows[rows["class"].isin(ORGANS)].groupby("class")["dsc"].mean().mean()
        yield f"| {arm} | {about} | {100 * mean:.1f} | {_against(scored, arm)} |"


def _accepted(out: Path, name: str, seeds: range) -> str:
    """Return the share of a model's labels that were accepted, over all seeds."""
    files = [out / "results" / "labels" / f"by_{name}{seed}" / "selected.csv" for seed in seeds]
    if not all(file.is_file() for file in files):
        return "not yet known"
    rows = pd.concat(read_table(file, "selected") for file in files)
    judged = rows[rows["decision"] != "truth"]
    return f"{(judged['decision'] == 'accepted').sum()} of {len(judged)}"


def _scores(out: Path, arm: str, seeds: range) -> list[pd.DataFrame]:
    """Return the scores of an arm, a table a seed; none while some are missing. nnU-Net's model is the same for all."""
    files = [out / "results" / "evaluation" / f"{arm if arm == ZOO else f'{arm}_seed{seed}'}.csv" for seed in seeds]
    return [read_table(file, "scores") for file in files] if all(file.is_file() for file in files) else []


def _against(scored: dict[str, list[pd.DataFrame]], arm: str) -> str:
    if arm == CONTROL or not scored[CONTROL]:
        return "–"
    return gain_in_percent(organ_mean(scored[CONTROL], scored[arm]))
