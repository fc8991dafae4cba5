"""Report section on models: what each was trained on, how its training went."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from labelloop.report.charts import Chart, Line, curves
from labelloop.report.gallery import data_uri
from labelloop.report.results import Results

TRAIN, VALIDATION, DICE = "#486581", "#d9822b", "#1b7f86"
CYCLE_GAN = {
    "Adversarial losses": {"adversarial": TRAIN, "discriminator": VALIDATION},
    "Cycle and identity": {"cycle": TRAIN, "identity": VALIDATION},
}


def model(results: Results, name: str) -> dict[str, Any]:
    """Return cases, epochs, validation Dice, facts and training curves of a model."""
    paths = results.paths
    about = results.json(paths.model("model.json", name))
    epochs = results.json_lines(paths.model("training.jsonl", name))
    cases = results.table(paths.model("cases.csv", name), "training_cases")
    dice = [_number(row.get("dice_average")) for row in epochs]
    best = max((d for d in dice if math.isfinite(d)), default=math.nan)
    return {
        "name": name,
        "there": bool(about or epochs),
        "train": int((cases["split"] == "train").sum()),
        "validation": int((cases["split"] == "validation").sum()),
        "cases_known": bool(len(cases)),
        "classes": len(about.get("classes") or ()),
        "epochs": len(epochs),
        "dice": dice[-1] if dice else math.nan,
        "best_dice": best,
        "facts": _facts(about),
        "versions": about.get("versions") or {},
        "licenses": _licenses(about),
        "fingerprint": str(about.get("fingerprint", "")),
        "weights_sha256": str(about.get("weights_sha256", "")),
        "charts": _charts(epochs),
        "picture": None if epochs else _embedded(results, paths.model("curve.png", name)),
    }


def translation(results: Results, plan: str) -> dict[str, Any]:
    """Return whether labels fit the translated CT of a plan, and the picture of CT, translations and real MR."""
    table = results.table(results.paths.structure("structure.csv", plan), "structure")
    wrong = table[table["fits"] != "True"]
    return {
        "plan": plan,
        "labeled": len(table),
        "wrong": sorted(wrong["case"]),
        "picture": _embedded(results, results.paths.structure("translated.png", plan)),
    }


def _facts(about: Mapping[str, Any]) -> dict[str, str]:
    """Return what ``model.json`` says of the training, in words; what it does not say is left out."""
    settings, plan = about.get("settings") or {}, about.get("plan") or {}
    patch = settings.get("patch") or plan.get("patch")  # a translator has its own
    facts = {
        "trainer": settings.get("kind") or about.get("kind"),
        "seed": settings.get("seed"),
        "voxel z, y, x": plan.get("spacing_mm") and " × ".join(f"{s:g}" for s in plan["spacing_mm"]) + " mm",
        "patch z, y, x": patch and " × ".join(map(str, patch)),
        "weights of": about.get("epoch") and f"epoch {about['epoch']} ({settings.get('export', 'final')})",
    }
    return {words: str(value) for words, value in facts.items() if value is not None}


def _licenses(about: Mapping[str, Any]) -> dict[str, str]:
    """Return what ``model.json`` says of the licenses of data sets and of external models, in words."""
    told = about.get("licenses") or {}
    return {
        kind: ", ".join(f"{name} ({text or 'not stated'})" for name, text in (told.get(kind) or {}).items())
        for kind in ("datasets", "models")
    }


def _charts(epochs: Sequence[Mapping[str, Any]]) -> list[Chart]:
    if not epochs:
        return []
    x = [float(row.get("epoch", number)) for number, row in enumerate(epochs, 1)]
    losses = [
        Line(part, color, x, [_number((row.get(part) or {}).get("loss")) for row in epochs])
        for part, color in (("train", TRAIN), ("validation", VALIDATION))
    ]
    dices = [
        Line("each epoch", "#8fbfc3", x, [_number(row.get("dice_mean")) for row in epochs]),
        Line("moving average", DICE, x, [_number(row.get("dice_average")) for row in epochs]),
    ]
    drawn = [curves(losses, "Loss"), curves(dices, "Validation Dice of patches")]
    for label, parts in CYCLE_GAN.items():
        lines = [Line(part, color, x, [_number(row.get(part)) for row in epochs]) for part, color in parts.items()]
        drawn.append(curves(lines, label))
    return [chart for chart in drawn if chart]


def _embedded(results: Results, path: str) -> str | None:
    content = results.bytes(path)
    return data_uri(content) if content else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
