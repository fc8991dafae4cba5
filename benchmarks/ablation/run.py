"""What does each part of the loop bring? Pairs of trainings that differ in one thing, with several seeds each.

    python benchmarks/ablation/run.py OUT                     # on the phantom: hours on two cores
    python benchmarks/ablation/run.py OUT --btcv FOLDER       # 16 real scans, a third of the organs labeled in each
    python benchmarks/ablation/run.py OUT --size tiny --seeds 1    # does it run? Minutes; the numbers mean nothing

Each arm is a model of a recipe (``recipes.py``). Snakemake trains them all under OUT, goes on where it was stopped, and
scores them on the test cases. Printed for each pair: the mean DSC of both arms (over classes, test cases, seeds), the
standard deviation of that mean between seeds, the difference with a 95 % interval over test cases and over trainings,
and its p (``labelloop.metrics.compare.hierarchical_bootstrap``).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recipes import BTCV_PAIR, PAIRS, SEMI_PAIRS, SIZES, Pair, Size, model_name, partial_recipe, semi_recipe

from labelloop.base.classes import load_classes
from labelloop.base.files import write_text
from labelloop.base.tables import read_table
from labelloop.cases.folders import pair_folders
from labelloop.cases.table import Case, load_cases, write_cases
from labelloop.images.datasets import load_dataset
from labelloop.metrics.compare import compare_scores
from labelloop.phantom import write_phantom

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LABELED = (2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything that is trained")
    parser.add_argument("--btcv", type=Path, help="folder of <case>_0000.nii.gz and <case>.nii.gz; else the phantom")
    parser.add_argument(
        "--labeled", type=int, nargs="*", default=LABELED, help="labeled cases of semi-supervised parts"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, help="default: full, or btcv")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--write", action="store_true", help="write the tables to ablation.md, or ablation_btcv.md")
    options = parser.parse_args()
    seeds, size = range(options.seeds), SIZES[options.size or ("btcv" if options.btcv else "full")]
    out, folder = options.out, options.btcv
    parts = btcv_parts(folder, out, size, seeds) if folder else phantom_parts(out, size, seeds, options.labeled)
    lines: list[str] = []
    for title, cases, recipe, pairs in parts:
        results = train(out / title.replace(" ", "_"), cases, recipe, options.device, options.cores)
        lines += [f"## {title}", "", *table(pairs, scores(results / "evaluation", pairs, seeds), recipe), ""]
    text = "\n".join(lines)
    print(text)
    if options.write:
        command = " ".join(["python benchmarks/ablation/run.py", *map(str, sys.argv[1:])])
        where = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} CPU cores, no GPU"
        versions = f"Python {platform.python_version()}, torch {torch.__version__}"
        head = f"# Ablation\n\nWritten by `{command}` on {date.today()}: {where}; {versions}.\n\n"
        write_text(RESULTS / ("ablation_btcv.md" if folder else "ablation.md"), head + text)


Part = tuple[str, Path, dict, Sequence[Pair]]
"""Title, case table, recipe and pairs of what is trained in one run of Snakemake."""


def phantom_parts(out: Path, size: Size, seeds: range, labeled: Sequence[int]) -> Iterable[Part]:
    """Yield the part on partly labeled cases, and those on a few labeled cases of which the rest is unlabeled."""
    table = out / "phantom" / "cases.csv"
    if not table.is_file():
        write_phantom(table.parent, size.phantoms, seed=1, spacing_mm=size.phantom_mm)
    yield "partly labeled", table, partial_recipe(size, seeds), PAIRS
    for number in labeled:
        cases = out / f"cases_{number}.csv"
        write_cases(cases, few_labeled(load_cases(table)[0], number))
        yield f"{number} labeled cases", cases, semi_recipe(size, seeds), SEMI_PAIRS


def few_labeled(cases: Sequence[Case], number: int) -> list[Case]:
    """Return the cases, of which only the first ``number`` with all organs keep their labels, beside the test cases."""
    organs = set(load_classes("flare").select("organs"))
    full = [c.case for c in cases if c.role == "train" and organs <= set(c.annotated.split(";"))][:number]
    hidden = {"label": "", "annotated": ""}
    return [c if c.role == "test" or c.case in full else c.model_copy(update=hidden) for c in cases]


def btcv_parts(folder: Path, out: Path, size: Size, seeds: range) -> Iterable[Part]:
    """Yield one part: of every four cases one tests, the others keep a third of their organs, in turn."""
    scheme = load_classes("flare")
    organs = [n for n in scheme.names if n in load_dataset("btcv", scheme).annotated]
    cases = []
    pairs = sorted(pair_folders(folder.resolve(), folder.resolve()).items())
    for number, (case, ((image,), label)) in enumerate(pairs):
        test = number % 4 == 3
        kept = organs if test else organs[(number % 4) :: 3]
        files = {"image": str(image), "label": str(label), "dataset": "btcv", "modality": "CT", "patient": case}
        cases.append(Case(case=case, role="test" if test else "train", annotated=";".join(kept), **files))
    write_cases(out / "cases_btcv.csv", cases)
    recipe = partial_recipe(size, seeds, ("background", "max"), organs)
    pairs = [BTCV_PAIR, *(BTCV_PAIR._replace(what=organ) for organ in organs)]
    yield "BTCV with a third of the organs", out / "cases_btcv.csv", recipe, pairs


def train(folder: Path, cases: Path, recipe: dict, device: str, cores: str) -> Path:
    """Let Snakemake train and score a recipe in ``folder``; return its results."""
    config = {"cases": str(cases.resolve()), "recipe": "recipe.yaml", "results": "results", "device": device}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.yaml", json.dumps(recipe, indent=2))  # JSON is YAML
    write_text(folder / "config.yaml", json.dumps(config))
    places = ["--directory", str(folder.resolve()), "--configfile", str((folder / "config.yaml").resolve())]
    subprocess.run([sys.executable, "-m", "snakemake", *places, "--cores", cores], cwd=ROOT, check=True)
    return folder / "results"


def scores(evaluation: Path, pairs: Sequence[Pair], seeds: range) -> dict[str, list[pd.DataFrame]]:
    """Return the score tables of each arm, one a seed."""
    arms = dict.fromkeys(arm for pair in pairs for arm in (pair.first, pair.second))
    return {arm: [read_table(evaluation / f"{model_name(arm, s)}.csv", "scores") for s in seeds] for arm in arms}


def table(pairs: Sequence[Pair], found: dict[str, list[pd.DataFrame]], recipe: dict) -> Iterable[str]:
    """Yield a Markdown table of the pairs."""
    trainer = next(iter(recipe["models"].values()))["trainer"]
    yield f"{trainer['epochs'] * trainer['iterations_per_epoch']} updates; DSC in %, standard deviation between seeds."
    if any(pair.what == "tumor" for pair in pairs):
        yield "A case without tumor counts 100 where none is found: models that find no tumor have that share."
    yield ""
    yield "| first, or second | of | test cases | first | second | difference (95 %) | p |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for pair in pairs:
        row = compare(found[pair.first], found[pair.second], pair.what)
        if row is None:
            yield f"| {pair.question} | {pair.what} | 0 | – | – | – | – |"
            continue
        both = " | ".join(f"{100 * row[side]:.1f} ± {100 * row[f'{side}_sd']:.1f}" for side in ("first", "second"))
        gain = f"{100 * row['difference']:+.1f} ({100 * row['low_95']:+.1f} to {100 * row['high_95']:+.1f})"
        yield f"| {pair.question} | {pair.what} | {row['cases']} | {both} | {gain} | {row['p']:.3f} |"


def compare(first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame], what: str) -> dict | None:
    """Compare two arms by their score tables, one a seed, in a class or the organ mean; None without test cases."""
    scheme = load_classes("flare")
    whole = compare_scores(first, second, scheme)
    row = whole[(whole["class"] == what) & (whole["metric"] == "dsc")]
    if row.empty:
        return None
    result = row.iloc[0].to_dict()
    for side, tables in (("first", first), ("second", second)):
        means = [_mean(t, what) for t in tables]
        result |= {side: sum(means) / len(means), f"{side}_sd": float(np.std(means, ddof=min(1, len(means) - 1)))}
    return result


def _mean(scores_of_seed: pd.DataFrame, what: str) -> float:
    classes = load_classes("flare").select("organs") if what == "organ mean" else (what,)
    chosen = scores_of_seed[scores_of_seed["class"].isin(classes)]
    return float(chosen.groupby("case")["dsc"].mean().mean())


if __name__ == "__main__":
    main()
