"""What runs and inferences cost on paper, for docs/costs.md: recipes at FLARE's size, storage, the floor on a GPU.

    python benchmarks/costs/run.py --write

One recipe by itself: ``labelloop recipe cost NAME --cases 4000 --gpu A100 --cards 8``.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import floor

from labelloop.base.files import write_text
from labelloop.recipe import load_recipe
from labelloop.run.cost import Cost, Setting, assumptions, cost_of, measure, wall_hours

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "costs.md"
SCAN = ROOT.parent / "shared" / "data" / "hcc" / "hcc_048_0000.nii.gz"
RECIPES = ("default", "best", "two_stage", "coarse_to_fine", "progressive", "merge_max", "ct_to_mr")
CASES, CARDS = 4000, (1, 4, 8)


def recipes() -> Iterator[str]:
    """Yield a row for each published recipe, and what the numbers rest on."""
    walls = " | ".join(f"h on {cards}" for cards in CARDS)
    yield f"| recipe | GPU hours | longest training, h | {walls} | s a final map | disk, GB | jobs |"
    yield f"| --- |{' ---: |' * (len(CARDS) + 5)}"
    setting = Setting(CASES)
    for name in RECIPES:
        print(name, file=sys.stderr)
        yield _row(name, cost_of(load_recipe(name), setting))
    yield from ("", "Assumed:", "")
    yield from (f"- {sentence}" for sentence in assumptions(setting))


def _row(name: str, cost: Cost) -> str:
    longest = max(t.hours for t in cost.trainings)
    walls = " | ".join(f"{wall_hours(cost, cards):.0f}" for cards in CARDS)
    disk, jobs = sum(cost.disk_mb.values()) / 1000, sum(cost.jobs.values())
    return f"| {name} | {cost.gpu_hours:.0f} | {longest:.1f} | {walls} | {cost.final_s:.1f} | {disk:.0f} | {jobs} |"


def storage(scan: Path) -> Iterator[str]:
    """Yield what the prepared images of a scan take, by recipe and plan."""
    yield "| recipe | plan | million voxels | MB | bytes a voxel |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for name in RECIPES:
        recipe = load_recipe(name)
        recipe = recipe.model_copy(update={"plans": {n: p for n, p in recipe.plans.items() if not p.translate}})
        for one in measure(recipe, [scan]):
            share = one.bytes / one.voxels
            yield f"| {name} | {one.plan} | {one.voxels / 1e6:.1f} | {one.bytes / 1e6:.1f} | {share:.2f} |"


TEXT = """# What it costs, on paper

Written by `python benchmarks/costs/run.py --write`. Nothing here was measured on a GPU: operations are counted, rates
are published ones. What a GPU really takes is measured by `benchmarks/gpu`.

## A recipe at FLARE's size

{cases} cases, hours on so many A100 cards. `labelloop recipe cost NAME --cases N --gpu A100 --cards K` tells it of one
recipe, training by training; `--tflops` takes a rate that was measured, `--scans` measures what your scans take when
prepared.

{recipes}

Trainings depend on each other, so that more cards than models help little.

## Storage

What prepared images take (float32, compressed without loss), measured on `{scan}` (512x512x89):

{storage}

## The floor of an inference on a GPU

Written down before anything was measured.

{floor}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, default=SCAN, help="CT scan that the storage is measured on")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if not options.scan.is_file():
        parser.error(f"--scan {options.scan}: no such file; name a CT scan")
    parts = {"recipes": recipes(), "storage": storage(options.scan), "floor": floor.lines()}
    text = TEXT.format(
        cases=CASES, scan=options.scan.name.removesuffix(".nii.gz"), **{k: "\n".join(v) for k, v in parts.items()}
    )
    print(text)
    if options.write:
        write_text(PAGE, text)


if __name__ == "__main__":
    main()
