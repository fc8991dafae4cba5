"""Do the demo in fp32 and in bf16 end alike? The whole demo in either, for several seeds of all its trainings.

    python benchmarks/precision/run.py results/precision --write

Needs a CPU with bf16 units. A run takes as long as ``make demo``; runs that are there are not made again. The data are
those of the demo. Scores are means over the test cases of the mean DSC of the organs, and of the tumor's DSC.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from labelloop.base.classes import load_classes
from labelloop.base.files import write_json, write_text
from labelloop.base.precision import has_units
from labelloop.base.tables import read_table
from labelloop.phantom import write_phantom

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "precision.md"
SEEDS = (1, 2, 3)
PRECISIONS = ("fp32", "bf16")
STEP = 10
"""Added to the demo's own seeds, so that no two trainings of two runs share one."""
SCORED = ("teacher_b", "final")


def recipe(precision: str, seed: int) -> dict:
    """Return the demo's recipe in a precision, with other seeds."""
    trainers = {"teacher": STEP * seed + 1, "teacher_b": STEP * seed + 2, "student": STEP * seed + 1}
    models = {name: {"trainer": {"precision": precision, "seed": number}} for name, number in trainers.items()}
    return {"extends": "default_demo", "name": f"{precision}_{seed}", "models": models}


def run(folder: Path, precision: str, seed: int) -> Path:
    """Run the demo; return its results folder."""
    name = f"{precision}_{seed}"
    table = folder / "phantom" / "cases.csv"
    if not table.is_file():
        write_phantom(table.parent, 24, 1)
    write_json(folder / f"{name}.yaml", recipe(precision, seed))  # JSON is YAML
    paths = {"cases": str(table), "recipe": str(folder / f"{name}.yaml"), "results": str(folder / name)}
    write_json(folder / f"{name}.config.yaml", paths | {"device": "cpu", "workers": 1, "review": 0})
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--quiet", "--configfile"]
    subprocess.run([*command, str((folder / f"{name}.config.yaml").resolve())], cwd=ROOT, check=True)
    return folder / name


def scores(results: Path) -> dict[str, float]:
    """Return the mean DSC of organs of teacher_b and of the final label maps, and of the tumor in these."""
    scheme = load_classes("flare")
    found = {}
    for name in SCORED:
        table = read_table(results / "evaluation" / f"{name}.csv", "scores")
        dsc = table.astype({"dsc": float}).groupby("class")["dsc"].mean()
        found[name] = float(dsc.reindex(scheme.sets["organs"]).mean())
        if name == "final":
            found["tumor"] = float(dsc["tumor"])
    return found


def spread(values: Sequence[float]) -> str:
    """Return mean, and lowest to highest."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def page(found: dict[str, list[dict[str, float]]]) -> str:
    """Return the table of all runs."""
    lines = [
        "# The demo in fp32 and in bf16", "",
        f"`python benchmarks/precision/run.py RESULTS --write`, {len(SEEDS)} seeds each, {date.today()}.", "",
        "| DSC | " + " | ".join(f"{p}: mean (lowest to highest)" for p in PRECISIONS) + " | difference of the means |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for what in (*SCORED, "tumor"):
        values = {p: [scores[what] for scores in found[p]] for p in PRECISIONS}
        difference = statistics.mean(values["bf16"]) - statistics.mean(values["fp32"])
        cells = " | ".join(spread(values[p]) for p in PRECISIONS)
        lines.append(f"| {what} | {cells} | {difference:+.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    options = parser.parse_args()
    if not has_units("bf16", torch.device("cpu")):
        sys.exit("This CPU has no bf16 units: both runs would be in fp32.")
    folder = options.results.resolve()
    found: dict[str, list[dict[str, float]]] = {precision: [] for precision in PRECISIONS}
    for seed in SEEDS:
        for precision in PRECISIONS:
            found[precision].append(scores(run(folder, precision, seed)))
            print(json.dumps({"seed": seed, "precision": precision, **found[precision][-1]}), flush=True)
    text = page(found)
    print(text)
    if options.write:
        write_text(RESULT, text)


if __name__ == "__main__":
    main()
