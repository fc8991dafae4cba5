"""Are accepted pseudo-labels better than refused ones, and does a calibrated threshold keep its promise?

    python benchmarks/selection/run.py results/selection --write     # half an hour on two quiet cores

Draws 130 phantom patients and lets the workflow (``recipe.yaml`` beside this file) train two small teachers on a fifth
of the labeled ones, label the 54 that have no label, and calibrate selection on the labeled ones that no teacher saw.
Then the hidden truth is opened:

- Selection: true DSC of the labels that the run accepted and of those that it refused, by class.
- Calibration: for ten seeds, all patients that no teacher learned from are dealt into two halves; the threshold is
  calibrated on one half and kept if the labels of the other half that it accepts reach the target on average.

What is there already is not made again, so a run that was interrupted goes on.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from labelloop.cases import Case, write_cases
from labelloop.classes import ClassScheme
from labelloop.files import write_text
from labelloop.labels.agree import disagreement
from labelloop.labels.calibrate import SCORE, threshold
from labelloop.labels.select import SelectSettings, select
from labelloop.phantom import write_phantom
from labelloop.recipe import load_recipe
from labelloop.tables import read_table
from labelloop.volume import canonical, read

HERE = Path(__file__).resolve().parent
RESULT = HERE.parent / "results" / "selection.md"
RECIPE = HERE / "recipe.yaml"
PATIENTS, LABELED, TEST = 130, 72, 4
SEED = 11
SEEDS = range(10)
LABELS = "pseudo"
FIXED = 0.7
ACCEPTED, REFUSED = ("accepted",), ("demoted", "dropped")


def write_project(folder: Path) -> Path:
    """Draw the patients and write case table and configuration; return the latter."""
    table = folder / "phantom" / "cases.csv"
    if not table.is_file():
        write_phantom(table.parent, PATIENTS, SEED)
    names = list(pd.read_csv(table)["case"])
    cases = []
    for number, name in enumerate(names):
        labeled, test = number < LABELED, number >= len(names) - TEST
        label = str(table.parent / "truth" / f"{name}.nii.gz") if labeled or test else ""
        about = {"dataset": "phantom", "modality": "CT", "patient": name, "annotated": "all" if label else ""}
        image = str(table.parent / "images" / f"{name}_0000.nii.gz")
        cases.append(Case(case=name, image=image, label=label, role="test" if test else "train", **about))
    write_cases(folder / "cases.csv", cases)
    files = {"cases": str(folder / "cases.csv"), "recipe": str(RECIPE), "results": str(folder / "run")}
    config = folder / "config.json"
    write_text(config, json.dumps({**files, "device": "cpu", "shard_size": 32, "workers": 1}))
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


def selection_lines(table: pd.DataFrame, scheme: ClassScheme) -> list[str]:
    """Return the comparison of accepted and refused labels."""
    result = [
        "| class | accepted | mean DSC | refused | mean DSC | difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    better, both = 0, 0
    for name in (*[n for n in scheme.names if n in set(table["class"])], "all"):
        mine = table if name == "all" else table[table["class"] == name]
        good, bad = (mine.loc[mine["decision"].isin(d), "dsc"] for d in (ACCEPTED, REFUSED))
        difference = good.mean() - bad.mean()
        if name != "all" and len(good) and len(bad):
            both, better = both + 1, better + (difference > 0)
        numbers = ["" if pd.isna(n) else f"{n:.3f}" for n in (good.mean(), bad.mean(), difference)]
        result.append(f"| {name} | {len(good)} | {numbers[0]} | {len(bad)} | {numbers[1]} | {numbers[2]} |")
    return [*result, "", f"Accepted labels are better in {better} of the {both} classes that have both."]


def selected_again(run: Path, scheme: ClassScheme, settings: SelectSettings) -> pd.DataFrame:
    """Return what selection by other settings makes of the patients without a label."""
    labels, annotation = run / "labels" / LABELS, read_table(run / "annotation.csv", "annotation")
    known = set(annotation.loc[annotation["state"] != "unknown", "case"])
    tables = [read_table(labels / f"{kind}.csv", kind) for kind in ("provenance", "verdicts", "disagreement")]
    return select(annotation[~annotation["case"].isin(known)], *tables, settings, scheme.names)


def pool(run: Path, truth: Path, scheme: ClassScheme, settings: SelectSettings) -> pd.DataFrame:
    """Return the labels of patients no teacher saw that pass all other criteria: case, class, pairwise_dice, dsc."""
    labels, chosen = run / "labels" / LABELS, selected_again(run, scheme, settings.without_threshold())
    both = pd.concat([read_table(labels / "held_out.csv", "held_out"), judged(labels, truth, scheme, chosen)])
    return both.loc[both["decision"] == "accepted", ["case", "class", SCORE, "dsc"]].dropna()


def calibration_lines(table: pd.DataFrame, scheme: ClassScheme, target: float, confidence: float) -> list[str]:
    """Return how often the threshold kept its promise on the half it was not calibrated on."""
    result = [
        "| class | labels | mean DSC | seeds with a threshold | share of the other half | mean DSC | target met |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    worst = len(SEEDS)
    for name in [n for n in scheme.names if n in set(table["class"])]:
        mine = table[table["class"] == name]
        outcomes = [_outcome(mine, seed, target, confidence) for seed in SEEDS]
        certified = [(share, dsc) for share, dsc in outcomes if share > 0]
        met = sum(not share or dsc >= target for share, dsc in outcomes)
        worst = min(worst, met)
        share, dsc = np.mean(certified, axis=0) if certified else (0.0, np.nan)
        shown = "" if np.isnan(dsc) else f"{dsc:.3f}"
        result.append(
            f"| {name} | {len(mine)} | {mine['dsc'].mean():.3f} | {len(certified)} | {share:.2f} | {shown} | "
            f"{met} of {len(SEEDS)} |"
        )
    said = f"The target is met in at least {worst} of {len(SEEDS)} seeds for every class. A seed without a threshold"
    return [*result, "", said, "accepts nothing and breaks no promise."]


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
    if not options.made:
        command = ["-m", "snakemake", "--cores", options.cores, "--configfile", str(write_project(folder))]
        subprocess.run([sys.executable, *command], cwd=HERE.parents[1], check=True)

    recipe, run, truth = load_recipe(RECIPE), folder / "run", folder / "phantom" / "truth"
    scheme, settings = recipe.scheme, recipe.labels[LABELS].select
    labels = run / "labels" / LABELS
    decided = judged(labels, truth, scheme, read_table(labels / "selected.csv", "selected"))
    by_fixed = selected_again(run, scheme, SelectSettings(min_pairwise_dice=FIXED))
    target, confidence = settings.target_dsc, settings.confidence
    where = f"{os.cpu_count()} CPU cores, no GPU; Python {platform.python_version()}, NumPy {np.__version__}"
    text = [
        f"Written by `python benchmarks/selection/run.py {options.folder} --write` on {date.today()}: {where}.",
        "",
        f"Two teachers; {LABELED} labeled patients, of whom they learned from a fifth, and {PATIENTS - LABELED - TEST}",
        f"without a label. Asked for: mean DSC {target:g} with confidence {confidence:g}.",
        "",
        f"## Labels of the {decided['case'].nunique()} patients without a label, as the run selected them",
        "",
        *selection_lines(decided, scheme),
        "",
        f"## The same labels by a fixed threshold: pairwise Dice of at least {FIXED:g}, as in the default recipe",
        "",
        *selection_lines(judged(labels, truth, scheme, by_fixed), scheme),
        "",
        "## Calibration on one half of the patients that no teacher saw, asked of the other half",
        "",
        *calibration_lines(pool(run, truth, scheme, settings), scheme, target, confidence),
        "",
    ]
    print("\n".join(text))
    if options.write:
        write_text(RESULT, "\n".join(["# Selection", "", *text]))


if __name__ == "__main__":
    main()
