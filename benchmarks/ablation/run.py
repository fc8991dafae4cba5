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
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from recipes import BTCV_PAIR, PAIRS, SIZES, Pair, Size, model_name, partial_recipe

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import RESULTS, gain_in_percent, train, written_by

from labelloop.base.classes import load_classes
from labelloop.base.files import write_text
from labelloop.base.tables import read_table
from labelloop.cases.folders import pair_folders
from labelloop.cases.table import Case, load_cases
from labelloop.images.datasets import load_dataset
from labelloop.metrics.compare import ORGAN_MEAN, compare_scores
from labelloop.phantom import write_phantom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything that is trained")
    parser.add_argument("--btcv", type=Path, help="folder of <case>_0000.nii.gz and <case>.nii.gz; else the phantom")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, help="default: full, or btcv")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--write", action="store_true", help="write the tables to ablation.md, or ablation_btcv.md")
    options = parser.parse_args()
    seeds, size = range(options.seeds), SIZES[options.size or ("btcv" if options.btcv else "full")]
    out, folder = options.out, options.btcv
    title, cases, recipe, pairs = btcv_part(folder, size, seeds) if folder else phantom_part(out, size, seeds)
    part = out / title.replace(" ", "_")
    if not train(part, cases, recipe, options.device, options.cores):
        raise SystemExit(1)
    found = scores(part / "results" / "evaluation", pairs, seeds)
    text = "\n".join([f"## {title}", "", *table(pairs, found, recipe), ""])
    print(text)
    if options.write:
        head = f"# Ablation\n\n{written_by(__file__, 'torch', gpu=options.device == 'cuda')}\n\n"
        write_text(RESULTS / ("ablation_btcv.md" if folder else "ablation.md"), head + text)


Part = tuple[str, Sequence[Case], dict, Sequence[Pair]]
"""Title, cases, recipe and pairs of what is trained in one run of Snakemake."""


def phantom_part(out: Path, size: Size, seeds: range) -> Part:
    """Return the part on partly labeled phantoms."""
    table = out / "phantom" / "cases.csv"
    if not table.is_file():
        write_phantom(table.parent, size.phantoms, seed=1, spacing_mm=size.phantom_mm)
    return "partly labeled", load_cases(table)[0], partial_recipe(size, seeds), PAIRS


def btcv_part(folder: Path, size: Size, seeds: range) -> Part:
    """Return the part on real scans: of four cases one tests, the others keep a third of their organs, in turn."""
    scheme = load_classes("flare")
    organs = [n for n in scheme.names if n in load_dataset("btcv", scheme).annotated]
    cases = []
    pairs = sorted(pair_folders(folder.resolve(), folder.resolve()).items())
    for number, (case, ((image,), label)) in enumerate(pairs):
        test = number % 4 == 3
        kept = organs if test else organs[(number % 4) :: 3]
        files = {"image": str(image), "label": str(label), "dataset": "btcv", "modality": "CT", "patient": case}
        cases.append(Case(case=case, role="test" if test else "train", annotated=";".join(kept), **files))
    recipe = partial_recipe(size, seeds, ("background", "max"), organs)
    pairs = [BTCV_PAIR, *(BTCV_PAIR._replace(what=organ) for organ in organs)]
    return "BTCV with a third of the organs", cases, recipe, pairs


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
        gain = gain_in_percent(row)
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
    classes = load_classes("flare").select("organs") if what == ORGAN_MEAN else (what,)
    chosen = scores_of_seed[scores_of_seed["class"].isin(classes)]
    return float(chosen.groupby("class")["dsc"].mean().mean())


if __name__ == "__main__":
    main()
