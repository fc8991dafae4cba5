"""Are accepted pseudo-labels better than refused ones, and does a calibrated threshold keep its promise?

    python benchmarks/selection/run.py results/selection --write     # a quarter of an hour on one core

Draws 126 phantom patients and lets the workflow (``recipe.yaml`` beside this file) train two small teachers on a fifth
of the labeled ones, label the 54 that have no label, and calibrate selection on the labeled ones that no teacher saw.
Nothing that comes after selection (queue, student, report) is made. Then the hidden truth is opened:

- Selection: true DSC of the labels that the run accepted and of those that it refused, by class.
- Calibration: for ten seeds, all patients that no teacher learned from are dealt into two halves; the threshold is
  calibrated on one half and kept if the labels of the other half that it accepts reach the target on average.

What is there already is not made again, so a run that was interrupted goes on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import written_by

from labelloop.base.classes import ClassScheme
from labelloop.base.files import write_text
from labelloop.base.tables import read_table
from labelloop.cases.table import Case, write_cases
from labelloop.images.volume import canonical, read
from labelloop.labels.agree import disagreement
from labelloop.labels.calibrate import SCORE, calibrate_held_out, threshold
from labelloop.labels.select import select
from labelloop.labels.settings import SelectSettings
from labelloop.phantom import write_phantom
from labelloop.recipe import load_recipe

HERE = Path(__file__).resolve().parent
RESULT = HERE.parent / "results" / "selection.md"
RECIPE = HERE / "recipe.yaml"
PATIENTS, LABELED = 126, 72
SEED = 11
SEEDS = range(10)
LABELS = "pseudo"
TARGETS = (0.7, 0.75, 0.8, 0.85, 0.9)
FIXED = (0.7, 0.8, 0.9)
FEW = 3
ACCEPTED, REFUSED = ("accepted",), ("demoted", "dropped")
COLUMNS = "| accepted | mean DSC | refused | mean DSC | difference |"
RULER = "| ---: | ---: | ---: | ---: | ---: |"


def write_project(folder: Path) -> Path:
    """Draw the patients and write case table and configuration; return the latter."""
    table = folder / "phantom" / "cases.csv"
    if not table.is_file():
        write_phantom(table.parent, PATIENTS, SEED)
    names = list(pd.read_csv(table)["case"])
    cases = []
    for number, name in enumerate(names):
        label = str(table.parent / "truth" / f"{name}.nii.gz") if number < LABELED else ""
        about = {"dataset": "phantom", "modality": "CT", "patient": name, "annotated": "all" if label else ""}
        image = str(table.parent / "images" / f"{name}_0000.nii.gz")
        cases.append(Case(case=name, image=image, label=label, role="train", **about))
    write_cases(folder / "cases.csv", cases)
    files = {"cases": str(folder / "cases.csv"), "recipe": str(RECIPE), "results": str(folder / "run")}
    config = folder / "config.json"
    write_text(config, json.dumps({**files, "device": "cpu", "shard_size": PATIENTS, "workers": 1}))
    return config


def true_dsc(labels: Path, truth: Path, cases: list[str], scheme: ClassScheme) -> pd.DataFrame:
    """Return case, class and true DSC of the label maps of a label set; 1 when both are empty."""
    rows = []
    for case in cases:
        maps = [canonical(read(folder / f"{case}.nii.gz")).array for folder in (truth, labels)]
        rows += [{"case": case, "class": r["class"], "dsc": r[SCORE]} for r in disagreement(maps, scheme, scheme.names)]
    return pd.DataFrame(rows)


def judged(labels: Path, truth: Path, scheme: ClassScheme, selected: pd.DataFrame) -> pd.DataFrame:
    """Return one row per pseudo-label that was accepted or refused: case, class, decision, dsc, pairwise_dice."""
    pseudo = selected[selected["decision"].isin(ACCEPTED + REFUSED)]
    cases = [c for c in sorted(set(pseudo["case"])) if (labels / f"{c}.nii.gz").is_file()]
    table = pseudo.merge(true_dsc(labels, truth, cases, scheme), on=["case", "class"])
    agreement = read_table(labels / "disagreement.csv", "disagreement")[["case", "class", SCORE]]
    return table.merge(agreement, on=["case", "class"], how="left")


Groups = tuple[pd.Series, pd.Series]


def groups(table: pd.DataFrame, name: str) -> Groups:
    """Return the true DSC of accepted and of refused labels of a class, or of all."""
    mine = table if name == "all" else table[table["class"] == name]
    return mine.loc[mine["decision"].isin(ACCEPTED), "dsc"], mine.loc[mine["decision"].isin(REFUSED), "dsc"]


def both(table: pd.DataFrame, scheme: ClassScheme) -> dict[str, Groups]:
    """Return the groups of the classes that have accepted and refused labels."""
    every = {name: groups(table, name) for name in scheme.names}
    return {name: pair for name, pair in every.items() if len(pair[0]) and len(pair[1])}


def row(first: str, good: pd.Series, bad: pd.Series) -> str:
    numbers = ["" if pd.isna(n) else f"{n:.3f}" for n in (good.mean(), bad.mean(), good.mean() - bad.mean())]
    return f"| {first} | {len(good)} | {numbers[0]} | {len(bad)} | {numbers[1]} | {numbers[2]} |"


def verdict(pairs: Sequence[Groups]) -> list[str]:
    def counted(some: Sequence[Groups]) -> str:
        return f"{sum(good.mean() > bad.mean() for good, bad in some)} of the {len(some)} rows"

    enough = [pair for pair in pairs if min(map(len, pair)) >= FEW]
    said = f"Accepted labels are better in {counted(pairs)} that have both, and in {counted(enough)} that have at least"
    return ["", said, f"{FEW} of either."]


def selection_lines(table: pd.DataFrame, scheme: ClassScheme) -> list[str]:
    """Return the comparison of accepted and refused labels of every class."""
    names = [*(n for n in scheme.names if n in set(table["class"])), "all"]
    lines = [f"| class {COLUMNS}", f"| --- {RULER}", *(row(n, *groups(table, n)) for n in names)]
    return [*lines, *verdict(list(both(table, scheme).values()))]


def other_lines(tables: dict[str, pd.DataFrame], scheme: ClassScheme) -> list[str]:
    """Return the same for other settings: the classes that have accepted and refused labels."""
    pairs = [(f"{words} | {name}", pair) for words, t in tables.items() for name, pair in both(t, scheme).items()]
    lines = [f"| asked for | class {COLUMNS}", f"| --- | --- {RULER}", *(row(first, *pair) for first, pair in pairs)]
    return [*lines, *verdict([pair for _, pair in pairs])]


def selected_again(
    run: Path, scheme: ClassScheme, settings: SelectSettings, calibration: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return what selection by other settings makes of the patients without a label."""
    labels, annotation = run / "labels" / LABELS, read_table(run / "annotation.csv", "annotation")
    known = set(annotation.loc[annotation["state"] != "unknown", "case"])
    tables = [read_table(labels / f"{kind}.csv", kind) for kind in ("provenance", "verdicts", "disagreement")]
    return select(annotation[~annotation["case"].isin(known)], *tables, settings, scheme.names, calibration)


def by_other_settings(run: Path, scheme: ClassScheme, settings: SelectSettings) -> dict[str, pd.DataFrame]:
    """Return what other promises, calibrated on the same held-out labels, and fixed thresholds select."""
    held_out, result = read_table(run / "labels" / LABELS / "held_out.csv", "held_out"), {}
    for target in TARGETS:
        table = calibrate_held_out(held_out, target, settings.confidence, scheme.names)
        promised = settings.model_copy(update={"target_dsc": target})
        result[f"mean DSC {target:g}"] = selected_again(run, scheme, promised, table)
    for least in FIXED:
        result[f"pairwise Dice {least:g}"] = selected_again(run, scheme, SelectSettings(min_pairwise_dice=least))
    return result


def pool(run: Path, truth: Path, scheme: ClassScheme, settings: SelectSettings) -> pd.DataFrame:
    """Return the labels of patients no teacher saw that pass all other criteria: case, class, pairwise_dice, dsc."""
    labels, chosen = run / "labels" / LABELS, selected_again(run, scheme, settings.without_threshold())
    every = pd.concat([read_table(labels / "held_out.csv", "held_out"), judged(labels, truth, scheme, chosen)])
    return every.loc[every["decision"] == "accepted", ["case", "class", SCORE, "dsc"]].dropna()


def calibration_lines(table: pd.DataFrame, scheme: ClassScheme, confidence: float) -> list[str]:
    """Return how often the threshold kept its promise on the half it was not calibrated on."""
    lines = [
        "| target | class | labels | mean DSC | seeds with one | share of the rest | mean DSC | target met |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    worst = len(SEEDS)
    for target, name in product(TARGETS, [n for n in scheme.names if n in set(table["class"])]):
        mine = table[table["class"] == name]
        outcomes = [_outcome(mine, seed, target, confidence) for seed in SEEDS]
        certified = [(share, dsc) for share, dsc in outcomes if share > 0]
        met = sum(not share or dsc >= target for share, dsc in outcomes)
        worst = min(worst, met)
        if certified:
            share, dsc = np.mean(certified, axis=0)
            found = f"{target:g} | {name} | {len(mine)} | {mine['dsc'].mean():.3f} | {len(certified)}"
            lines.append(f"| {found} | {share:.2f} | {dsc:.3f} | {met} of {len(SEEDS)} |")
    said = f"Each target is met in at least {worst} of {len(SEEDS)} seeds by every class. A seed without a threshold"
    return [*lines, "", said, "accepts nothing and breaks no promise; classes that never have one are left out."]


def _outcome(mine: pd.DataFrame, seed: int, target: float, confidence: float) -> tuple[float, float]:
    """Return the share of the other half that is accepted and its mean DSC (NaN without)."""
    order = np.random.default_rng(seed).permutation(len(mine))
    asked, fresh = mine.iloc[order[: len(mine) // 2]], mine.iloc[order[len(mine) // 2 :]]
    limit = threshold(asked[SCORE].to_numpy(float), asked["dsc"].to_numpy(float), target, confidence)["threshold"]
    accepted = fresh[fresh[SCORE] > limit]
    return len(accepted) / max(len(fresh), 1), float(accepted["dsc"].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where patients and the run go")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--made", action="store_true", help="only open the truth of a run that was made before")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {RESULT.parent.name}/{RESULT.name}")
    options = parser.parse_args()
    folder = options.folder.resolve()
    run = folder / "run"
    labels = run / "labels" / LABELS
    if not options.made:
        command = ["-m", "snakemake", str(labels / "selected.csv"), str(run / "annotation.csv")]
        command += ["--cores", options.cores, "--configfile", str(write_project(folder))]
        subprocess.run([sys.executable, *command], cwd=HERE.parents[1], check=True)

    recipe, truth = load_recipe(RECIPE), folder / "phantom" / "truth"
    scheme, settings = recipe.scheme, recipe.labels[LABELS].select
    decided = judged(labels, truth, scheme, read_table(labels / "selected.csv", "selected"))
    others = by_other_settings(run, scheme, settings)
    target, confidence = settings.target_dsc, settings.confidence
    text = [
        written_by(__file__, "numpy"),
        "",
        f"Two teachers; {LABELED} labeled patients, of whom they learned from a fifth, and {PATIENTS - LABELED}",
        f"without a label. Asked for: mean DSC {target:g} with confidence {confidence:g}.",
        "",
        f"## Labels of the {decided['case'].nunique()} patients without a label, as the run selected them",
        "",
        *selection_lines(decided, scheme),
        "",
        "## The same labels by other promises and by fixed thresholds (the default recipe has 0.7)",
        "",
        *other_lines({words: judged(labels, truth, scheme, table) for words, table in others.items()}, scheme),
        "",
        "## Calibration on one half of the patients that no teacher saw, asked of the other half",
        "",
        "Of ten seeds: how many found a threshold, what share of the other half it accepted, and with what mean DSC.",
        "",
        *calibration_lines(pool(run, truth, scheme, settings), scheme, confidence),
        "",
    ]
    print("\n".join(text))
    if options.write:
        write_text(RESULT, "\n".join(["# Selection", "", *text]))


if __name__ == "__main__":
    main()
