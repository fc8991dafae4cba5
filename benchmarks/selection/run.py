"""Are accepted pseudo-labels better than refused ones? A finished run on the phantom, held against its hidden truth.

    python benchmarks/selection/run.py results/demo results/demo/phantom/truth
    python benchmarks/selection/run.py results/demo results/demo/phantom/truth --write

For every label set of the run: the true DSC (corrected rules) of the fused and cleaned labels, by class, of those that
selection accepted and of those it refused. Classes that annotators labeled, or that no model found, are not judged.
Risk-coverage: how well the mean pairwise Dice between the models ranks labels (AURC, 0 is best; the mean risk is what
ranking at random gives).
"""

import argparse
from datetime import date
from pathlib import Path

import pandas as pd

from labelloop.classes import ClassScheme, load_classes
from labelloop.errors import UserError
from labelloop.files import write_text
from labelloop.labels.calibrate import SCORE, aurc
from labelloop.metrics.flare import score_case
from labelloop.tables import read_table
from labelloop.volume import read

RESULT = Path(__file__).resolve().parents[1] / "results" / "selection.md"
ACCEPTED, REFUSED = ("accepted",), ("demoted", "dropped")


def true_scores(labels: Path, truth: Path, cases: list[str], scheme: ClassScheme) -> pd.DataFrame:
    """Return case, class and true DSC of the label maps of a label set."""
    rows = []
    for case in cases:
        paths = [folder / f"{case}.nii.gz" for folder in (truth, labels)]
        if all(path.is_file() for path in paths):
            found = score_case(*map(read, paths), scheme, "corrected", file=str(paths[1]))
            rows += [{"case": case, "class": row["class"], "dsc": row["dsc"]} for row in found]
    if not rows:
        raise UserError(f"no label map of {labels} has its truth in {truth}")
    return pd.DataFrame(rows)


def judged(labels: Path, truth: Path, scheme: ClassScheme) -> pd.DataFrame:
    """Return one row per pseudo-label: case, class, dsc, decision, pairwise_dice."""
    selected = read_table(labels / "selected.csv", "selected")
    pseudo = selected[selected["decision"].isin(ACCEPTED + REFUSED)]
    scores = true_scores(labels, truth, sorted(set(pseudo["case"])), scheme)
    table = pseudo.merge(scores, on=["case", "class"]).dropna(subset=["dsc"])
    disagreement = read_table(labels / "disagreement.csv", "disagreement")[["case", "class", SCORE]]
    return table.merge(disagreement, on=["case", "class"], how="left")


def lines(table: pd.DataFrame, scheme: ClassScheme) -> list[str]:
    """Return the table of one label set."""
    result = [
        "| class | accepted | mean DSC | refused | mean DSC | difference | AURC | mean risk |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in (*[n for n in scheme.names if n in set(table["class"])], "all"):
        mine = table if name == "all" else table[table["class"] == name]
        good, bad = (mine.loc[mine["decision"].isin(d), "dsc"] for d in (ACCEPTED, REFUSED))
        ranked = mine.dropna(subset=[SCORE])
        area = aurc(ranked[SCORE].to_numpy(float), ranked["dsc"].to_numpy(float))
        numbers = (good.mean(), bad.mean(), good.mean() - bad.mean(), area, 1 - ranked["dsc"].mean())
        first, second, difference, *risks = ("" if pd.isna(n) else f"{n:.3f}" for n in numbers)
        result.append(
            f"| {name} | {len(good)} | {first} | {len(bad)} | {second} | {difference} | {' | '.join(risks)} |"
        )
    both = table.groupby("class")["decision"].apply(lambda d: d.isin(ACCEPTED).any() and d.isin(REFUSED).any())
    means = table.assign(good=table["decision"].isin(ACCEPTED)).groupby(["class", "good"])["dsc"].mean().unstack()
    kept = [name for name in both.index[both] if means.loc[name, True] > means.loc[name, False]]
    return [*result, "", f"Accepted labels are better in {len(kept)} of the {both.sum()} classes that have both."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of a finished run")
    parser.add_argument("truth", type=Path, help="folder of the hidden truth, <case>.nii.gz in the ids of the classes")
    parser.add_argument("--classes", default="flare")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {RESULT.parent.name}/{RESULT.name}")
    options = parser.parse_args()
    scheme, text = load_classes(options.classes), []
    for path in sorted(options.results.glob("labels/*/selected.csv")):
        table = judged(path.parent, options.truth, scheme)
        text += [f"Label set `{path.parent.name}`, {table['case'].nunique()} cases:", "", *lines(table, scheme), ""]
    if not text:
        raise SystemExit(f"{options.results}: no labels/*/selected.csv; has the run finished?")
    print("\n".join(text))
    if options.write:
        command = f"python benchmarks/selection/run.py {options.results} {options.truth} --write"
        write_text(RESULT, "\n".join(["# Selection", "", f"Written by `{command}` on {date.today()}.", "", *text]))


if __name__ == "__main__":
    main()
