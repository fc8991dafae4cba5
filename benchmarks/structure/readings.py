"""How often the image of a case is read: a tiny chain of the shape of the recipe `best`, watched.

    python benchmarks/structure/readings.py [CHECKOUT ...]

Three seeds, three rounds and a small student learn for a moment from a phantom. Each job notes the files that it opens
(tests/workflow/opened). For each rule the table gives the most readings of one image of a train case, over all jobs of
the rule. `review` and `report` draw pictures of some cases; `held_out` asks labeled cases that no model learned from.
Takes about ten minutes on two cores for each checkout.
"""

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

CASES, SEED, SPACING_MM = 9, 1, 9
FEW = {"epochs": 1, "iterations_per_epoch": 2, "validation_iterations": 1, "save_every": 1}
RECIPE = {
    "name": "tiny",
    "extends": "best",
    "plans": {
        "fine": {"spacing_mm": [12, 12, 12], "patch": [16, 16, 24], "features": [4, 8]},
        "small": {"features": [4, 4]},
    },
    "trainers": {"teach": FEW, "study": FEW},
    "models": {"small": {"trainer": FEW}},
}
PHANTOM = "import sys; from labelloop.phantom import write_phantom; write_phantom(sys.argv[1], {}, {}, {})"
PICTURES, ASKED = ("review", "report"), ("held_out",)
"""Rules that read the images of a few cases only."""


def watched(checkout: Path, folder: Path) -> Path:
    """Run the chain in ``folder`` with the code of a checkout; return the folder of what its jobs have opened."""
    opened = folder / "opened"
    opened.mkdir()
    paths = [checkout / "src", checkout / "tests/workflow/opened"]
    environment = os.environ | {"OPENED": str(opened), "PYTHONPATH": os.pathsep.join(map(str, paths))}

    def run(*command: str) -> None:
        done = subprocess.run([sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}")

    run("-c", PHANTOM.format(f"cases={CASES}", f"seed={SEED}", f"spacing_mm={SPACING_MM}"), str(folder / "phantom"))
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))  # JSON is YAML
    config = {"cases": str(folder / "phantom/cases.csv"), "recipe": "recipe.yaml", "results": "results"}
    (folder / "config.yaml").write_text(json.dumps(config | {"device": "cpu", "workers": 0, "review": 4}))
    places = ["--directory", str(folder), "--configfile", str(folder / "config.yaml")]
    run("-m", "snakemake", "--cores", "2", *places, "--set-threads", "train=1", "predict=1", "infer=1")
    return opened


def readings(folder: Path, opened: Path) -> dict[str, Counter[str]]:
    """Return by rule how often each image of a train case was opened."""
    with (folder / "phantom/cases.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["role"] == "train"]
    images = {str((folder / "phantom" / row["image"]).resolve()): row["case"] for row in rows}
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for notes in opened.iterdir():
        text = notes.read_text()
        rule = re.search(rf"^{re.escape(str(folder))}/results/logs/(\w+)/", text, re.MULTILINE)
        for line in text.splitlines():
            case = images.get(str(Path(line).resolve()))
            if rule and case:
                found[rule[1]][case] += 1
    return found


def most(found: dict[str, Counter[str]], without: tuple[str, ...] = ()) -> int:
    """Return the most readings of one image."""
    total: Counter[str] = sum((counts for rule, counts in found.items() if rule not in without), Counter())
    return max(total.values(), default=0)


def main() -> None:
    checkouts = [Path(argument).resolve() for argument in sys.argv[1:]] or [Path(__file__).resolve().parents[2]]
    found = []
    for checkout in checkouts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            found.append(readings(folder, watched(checkout, folder)))
    print(f"| | {' | '.join(checkout.name for checkout in checkouts)} |")
    print(f"| --- |{' ---: |' * len(checkouts)}")
    for rule in sorted({rule for counts in found for rule in counts}):
        print(f"| `{rule}` | {' | '.join(str(max(counts[rule].values(), default=0)) for counts in found)} |")
    learned = [str(most(counts, without=(*PICTURES, *ASKED))) for counts in found]
    print(f"| image that models learn from | {' | '.join(learned)} |")
    print(f"| any image of a train case, pictures included | {' | '.join(str(most(counts)) for counts in found)} |")


if __name__ == "__main__":
    main()
