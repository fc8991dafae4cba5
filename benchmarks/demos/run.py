"""What do the recipes reach in demo size, on synthetic patients that nobody chose a setting with?

    python benchmarks/demos/run.py OUT [--recipes NAME ...] [--seed 2]    # each takes minutes on two cores
    python benchmarks/demos/run.py OUT --print --write                    # what is finished, and write demos.md

The phantom of ``make demo`` has seed 1, and some settings of the demos were chosen with scores of its test cases in
view. So here each recipe is trained once on a phantom of another seed. What was stopped goes on.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "loop")]
import scores
from common import RESULTS, train, written_by

from labelloop.base.classes import load_classes
from labelloop.base.files import write_text
from labelloop.cases.table import Case, load_cases
from labelloop.phantom import write_phantom

RESULT = RESULTS / "demos.md"
RECIPES = ("default", "best", "merge_max", "two_stage", "coarse_to_fine", "progressive", "ct_to_mr")
MR_PATIENTS = {"ct_to_mr": 6}
CASES = 24
FINAL_SCORES = Path("evaluation", "final.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything that is trained")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES, metavar="NAME", help="default: all")
    parser.add_argument("--seed", type=int, default=2, help="of the phantom")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--print", action="store_true", help="train nothing, show what is there")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}, too")
    options = parser.parse_args()
    folders = {name: options.out / f"seed_{options.seed}" / name for name in options.recipes}
    if not options.print:
        for name, folder in folders.items():
            cases = phantom(folder, name, options.seed)
            train(folder, cases, recipe(name), options.device, options.cores, shard_size=12)
    text = "\n".join(report(folders)) + "\n"
    print(text)
    if options.write:
        head = f"# The recipes in demo size, on the phantom of seed {options.seed}"
        made = written_by(__file__, *scores.PACKAGES, gpu=options.device == "cuda")
        write_text(RESULT, f"{head}\n\n{made}\n\n{text}")


def recipe(name: str) -> dict[str, str]:
    """Return a recipe in demo size, as it is."""
    return {"extends": f"{name}_demo", "description": f"{name} in demo size."}


def phantom(folder: Path, name: str, seed: int) -> list[Case]:
    """Return the cases of the phantom that a recipe learns from: all but one share it."""
    patients = MR_PATIENTS.get(name, 0)
    table = folder.parent / f"phantom_{patients}_mr" / "cases.csv"
    if not table.is_file():
        write_phantom(table.parent, CASES, seed, mr_patients=patients)
    return load_cases(table)[0]


def report(folders: Mapping[str, Path]) -> Iterator[str]:
    """Yield a table of the final label maps of all recipes, and one of each with its models."""
    scheme = load_classes("flare")
    finished = {name: folder / "results" for name, folder in folders.items()}
    finished = {name: results for name, results in finished.items() if (results / FINAL_SCORES).is_file()}
    unfinished = [name for name in folders if name not in finished]
    if unfinished:
        yield from (f"Not finished: {', '.join(unfinished)}.", "")
    tables = {name: scores.scores_of(results) for name, results in finished.items()}
    yield "| recipe | test scans | DSC of organs | of the five large ones | of tumors, where present |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, found in tables.items():
        yield f"| {name} | {' | '.join(cells(found[scores.FINAL], scheme.sets['organs']))} |"
    for name, found in tables.items():
        yield from ("", f"## {name}", "", *scores.lines(found, scheme.sets["organs"], scheme.names))


def cells(final: pd.DataFrame, organs: Sequence[str]) -> list[str]:
    """Return what the table of all recipes says of one: scans, and mean DSC of organs, large ones and tumors."""
    means = final.groupby("class")["dsc"].mean()
    present = final.query("`class` == 'tumor' and volume_truth_ml > 0")["dsc"]
    numbers = (means.reindex(organs).mean(), means.reindex(list(scores.FIVE)).mean(), present.mean())
    return [str(final["case"].nunique()), *(f"{number:.3f}".replace("nan", "–") for number in numbers)]


if __name__ == "__main__":
    main()
