"""What a page says of its run at its head: recipe, date, time, machines, versions; most of it from what jobs noted."""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelloop import __version__
from labelloop.base.heartbeat import duration
from labelloop.base.machine import SUFFIX
from labelloop.base.paths import Paths
from labelloop.base.sequences import flat
from labelloop.base.wording import count, named

KINDS = {
    "train": "training", "train_translator": "training",
    "predict": "predicting", "predict_external": "predicting", "infer": "predicting",
}  # fmt: skip
"""What the time of a rule goes by; that of all others is one."""
OTHER = "all else"


def run_facts(paths: Paths, recipe: str, models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return facts in words; what nobody noted is left out.

    Args:
        paths: of the results. recipe: its name. models: sections on models, with their ``versions``.
    """
    machines = _machines(Path(paths.logs))
    facts = {
        "recipe": recipe,
        "date": max((machine["began"] for machine in machines), default="")[:16].replace("T", " "),
        "computing time": _time(computing_seconds(Path(paths.benchmarks))),
        "machine": "; ".join(_distinct(f"{m['cpu']}, {count(m['cores'], 'core')} ({m['node']})" for m in machines)),
        "GPU": ", ".join(_distinct(flat(machine["gpus"] for machine in machines))),
        "versions": _versions(models),
    }
    if machines and not facts["GPU"]:
        facts["GPU"] = "none"
    return {words: value for words, value in facts.items() if value}


def computing_seconds(benchmarks: Path) -> dict[str, float]:
    """Return the seconds that jobs took, their last attempts, by kind."""
    seconds: dict[str, float] = defaultdict(float)
    for path in sorted(benchmarks.glob("*/**/*.tsv")):
        rule = path.relative_to(benchmarks).parts[0]
        with path.open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle, delimiter="\t"):
                seconds[KINDS.get(rule, OTHER)] += _seconds(row.get("s"))
    return seconds


def _seconds(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:  # cut short, or what Snakemake writes where it could not measure
        return 0.0


def _time(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    parts = ", ".join(f"{kind} {duration(spent)}" for kind, spent in sorted(seconds.items()) if kind != OTHER)
    return f"{duration(total)} of all jobs together{f' ({parts})' if parts else ''}" if total else ""


def _machines(logs: Path) -> list[dict[str, Any]]:
    """Return what jobs noted of their machines, in the order of their names."""
    found = []
    for path in sorted(logs.glob(f"**/*{SUFFIX}")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            continue  # the page does without
    return found


def _distinct(names: Any) -> list[str]:
    unique = sorted(set(names))
    return [named(unique)] if unique else []


def _versions(models: Sequence[Mapping[str, Any]]) -> str:
    """Return the versions that trained the models, and that of this page where it differs."""
    versions: dict[str, set[str]] = {"labelloop": {__version__}}
    for model in models:
        for name, version in model["versions"].items():
            versions.setdefault(name, set()).add(str(version))
    return ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in versions.items())
