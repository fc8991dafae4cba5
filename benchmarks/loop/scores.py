"""Print what a finished run reached: DSC and NSD per class, of its evaluated models and of its final label maps.

    python benchmarks/loop/scores.py results/demo [--write demo]

A class's mean is over the test cases in which it is annotated; a model that does not know a class has no score in it.
Cases that some model was not asked about, as one for MR is not about CT, are left out of all columns.
"Where present" leaves out cases without the class, in which finding nothing scores 1.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import RESULTS, written_by

from labelloop.base.classes import load_classes
from labelloop.base.files import write_text
from labelloop.base.tables import read_table

FINAL = "final"
FIVE = ("liver", "spleen", "right_kidney", "left_kidney", "aorta")
PACKAGES = ("nnunetv2", "torch", "snakemake")


def scores_of(results: Path) -> dict[str, pd.DataFrame]:
    """Return the scores of a run's models and, last, of its final label maps, in the cases that all were given."""
    found = {path.stem: path for path in sorted((results / "evaluation").glob("*.csv"))}
    ordered = [*(name for name in found if name != FINAL), FINAL]
    tables = {name: read_table(found[name], "scores") for name in ordered}
    tables = {name: table.astype({"dsc": float, "nsd": float}) for name, table in tables.items()}
    shared = set.intersection(*(set(table["case"]) for table in tables.values()))
    return {name: table[table["case"].isin(shared)] for name, table in tables.items()}


def lines(tables: dict[str, pd.DataFrame], organs: Sequence[str], classes: Sequence[str]) -> Iterator[str]:
    """Yield the table of all classes, of means over organs, and of each case's tumor if there are any."""
    names = list(tables)
    means = {name: table.groupby("class")[["dsc", "nsd"]].mean() for name, table in tables.items()}
    yield f"| class | cases | {' | '.join(f'{name} DSC | {name} NSD' for name in names)} |"
    yield f"| --- | ---: | {' | '.join('---: | ---:' for _ in names)} |"
    known = [name for name in classes if name in means[FINAL].index]
    for name in known:
        count = (tables[FINAL]["class"] == name).sum()
        yield f"| {name} | {count} | {' | '.join(_pair(means[model].reindex([name])) for model in names)} |"
    scored = [name for name in organs if all(name in table.index for table in means.values())]
    for title, some in ((f"mean of {len(scored)} organs", scored), (f"mean of {', '.join(FIVE)}", FIVE)):
        yield f"| **{title}** | | {' | '.join(_pair(means[model].reindex(some)) for model in names)} |"
    for name in set(known) - set(organs):
        rows = tables[FINAL].query("`class` == @name and volume_truth_ml > 0")
        each = ", ".join(f"{row.case} {row.dsc:.3f}" for row in rows.itertuples())
        yield ""
        yield f"Final DSC of {name} where present: mean {rows['dsc'].mean():.3f} ({each})."


def _pair(rows: pd.DataFrame) -> str:
    return f"{rows['dsc'].mean():.3f} | {rows['nsd'].mean():.3f}".replace("nan", "–")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.md too")
    options = parser.parse_args()
    tables = scores_of(options.results)
    scheme = load_classes("flare")
    text = "\n".join(lines(tables, scheme.sets["organs"], scheme.names)) + "\n"
    print(text)
    if options.write:
        allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "all that it has")
        made = written_by(__file__, *PACKAGES, details=f"oneDNN may use: {allowed}")
        write_text(RESULTS / f"{options.write}.md", f"# {options.write}\n\n{made}\n\n{text}")


if __name__ == "__main__":
    main()
