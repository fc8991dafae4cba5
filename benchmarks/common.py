"""What several benchmarks share: how Snakemake trains their arms, and how their tables say where they come from."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from labelloop.base.classes import load_classes
from labelloop.base.files import write_text
from labelloop.base.machine import processor
from labelloop.base.tables import read_table
from labelloop.cases.table import Case, write_cases
from labelloop.metrics.compare import ORGAN_MEAN, compare_scores

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def train(
    folder: Path,
    cases: Sequence[Case],
    recipe: Mapping[str, Any],
    device: str,
    cores: str,
    targets: Sequence[str] = (),
    **settings: Any,
) -> bool:
    """Let Snakemake train and score a recipe in ``folder``; what fails does not stop the rest.

    Args:
        targets: files to make, below ``folder``; all that the recipe leads to without any.
        settings: of the configuration, besides cases, recipe, results and device.

    Returns:
        whether all is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_cases(folder / "cases.csv", cases)
    config = {"cases": str((folder / "cases.csv").resolve()), "recipe": "recipe.yaml", "results": "results"}
    write_text(folder / "recipe.yaml", json.dumps(recipe, indent=2))  # JSON is YAML
    write_text(folder / "config.yaml", json.dumps(config | {"device": device} | settings))
    places = ["--directory", str(folder.resolve()), "--configfile", str((folder / "config.yaml").resolve())]
    command = [sys.executable, "-m", "snakemake", *places, "--cores", cores, "--keep-going", *targets]
    done = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    if not done:
        print(f"{folder}: not all arms are finished; type the same command again to go on")
    return done


def written_by(script: str, *packages: str, gpu: bool = False, details: str = "") -> str:
    """Return the sentence below the title of a written table: command, date, machine and versions.

    Args:
        script: ``__file__`` of the benchmark, whose command line is told.
        packages: whose versions are told, besides that of Python.
        gpu: a GPU is named, where there is one, and not the processor.
        details: what else matters, of the machine or of the settings.
    """
    command = " ".join(["python", Path(script).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]])
    where = _gpu_name() if gpu else ""
    where = where or f"{processor()}, {os.cpu_count()} cores"
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    told = [where, ", ".join(versions), *([details] if details else [])]
    return f"Written by `{command}` on {date.today()}: {'; '.join(told)}."


def most_common(counts: Mapping[str, int], most: int | None = None) -> list[tuple[str, int]]:
    """Return the largest counts, equal ones by name: a table is the same each time it is written."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def scores_of_folds(files: Mapping[str, Path]) -> pd.DataFrame | None:
    """Return the scores of a model on all test cases, with the column ``fold``; None while some are missing.

    Args:
        files: the table of scores of each fold.
    """
    if not all(file.is_file() for file in files.values()):
        return None
    tables = [read_table(file, "scores").assign(fold=fold) for fold, file in files.items()]
    return pd.concat(tables, ignore_index=True)


def organ_mean(first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame]) -> pd.Series:
    """Return the row of ``compare_scores`` on the mean DSC of the organs; of each arm, a table of scores a seed."""
    compared = compare_scores(first, second, load_classes("flare")).set_index(["class", "metric"])
    return compared.loc[(ORGAN_MEAN, "dsc")]


def gain_in_percent(row: Mapping[str, Any]) -> str:
    """Return a difference with its 95 % interval, in percentage points, of a row of ``metrics.compare``."""
    return f"{100 * row['difference']:+.1f} ({100 * row['low_95']:+.1f} to {100 * row['high_95']:+.1f})"
