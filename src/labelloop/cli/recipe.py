"""``labelloop recipe``: look at, copy and check recipes."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option, Typer

from labelloop.base.errors import CaseError, UserError
from labelloop.cli.listed import add_copy

Name = Annotated[str, Argument(help="name of a recipe, or a file")]
Rounds = Annotated[int | None, Option(min=1, help="override the number of rounds")]
app = Typer(no_args_is_help=True, help="Look at, copy and check recipes.")
add_copy(app, "recipes")


@app.command(epilog="Example: labelloop recipe show best")
def show(
    name: Name,
    graph: Annotated[bool, Option("--graph", help="print a mermaid flowchart instead of text")] = False,
    rounds: Rounds = None,
) -> None:
    """Print the chain of a recipe."""
    from labelloop.recipe import load_recipe
    from labelloop.run.chain import describe, mermaid

    recipe = load_recipe(name, rounds=rounds)
    print(mermaid(recipe) if graph else describe(recipe), end="")


@app.command("list")
def list_recipes() -> None:
    """Name all recipes."""
    from labelloop.base.lookup import known
    from labelloop.recipe import load_recipe

    for name in known("recipes"):
        try:
            print(f"{name:22}{load_recipe(name).description.strip()}")
        except UserError as error:
            print(f"{name:22}cannot be used: {error}")


@app.command(epilog="Example: labelloop recipe check mine.yaml --cases cases.csv")
def check(
    name: Name,
    cases: Annotated[str | None, Option(help="case table that it is to be run on; without: the recipe alone")] = None,
    rounds: Rounds = None,
) -> None:
    """Tell all that is wrong with a recipe, as a dry run would."""
    from labelloop.recipe import load_recipe
    from labelloop.run.run import Run

    if cases is None:
        load_recipe(name, rounds=rounds)
        print(f"{name}: no error. Whether cases suffice: --cases TABLE")
        return
    run = Run({"cases": cases, "recipe": name, "rounds": rounds})
    for warning in run.warnings():
        print(f"{cases}: {warning}")
    run.refuse_problems()
    print(f"{name}: no error. {run.summary()}")


@app.command(epilog="Example: labelloop recipe cost best --cases 4000 --gpu H100 --cards 4")
def cost(
    name: Name,
    cases: Annotated[int, Option(min=1, help="cases to learn from and to label")],
    test_cases: Annotated[int, Option(min=1, help="cases to test on")] = 50,
    gpu: Annotated[str, Option(help="A100, H100 or H200; any other with --tflops")] = "A100",
    cards: Annotated[int, Option(min=1, help="GPUs that the run may use at once")] = 1,
    tflops: Annotated[float | None, Option(help="TFLOPS of the GPU in training, where measured")] = None,
    workers: Annotated[
        int | None, Option(min=1, help="processes that load batches; default: as a run on a GPU has")
    ] = None,
    rounds: Rounds = None,
    scans: Annotated[list[Path] | None, Option(help="CT scan whose prepared size is measured; repeatable")] = None,
) -> None:
    """Tell on paper what a recipe costs: GPU hours, wall time, disk, jobs."""
    from labelloop.recipe import load_recipe
    from labelloop.run.cost import Setting, cost_of, lines, measure
    from labelloop.run.resources import IMAGE_BYTES

    if tflops is not None and tflops <= 0:
        raise UserError(f"--tflops {tflops:g}: must be above 0")
    recipe = load_recipe(name, rounds=rounds)
    try:
        stored = list(measure(recipe, scans or []))
    except CaseError as error:
        raise UserError(str(error)) from error
    for one in stored:
        print(f"{one.scan}, plan {one.plan}: {one.bytes / one.voxels:.2f} bytes a voxel, {one.bytes / 1e6:.1f} MB")
    taken = sum(s.bytes for s in stored) / sum(s.voxels for s in stored) if stored else IMAGE_BYTES
    setting = Setting(cases, gpu, cards, test_cases, tflops, bytes_a_voxel=taken)
    if workers:
        setting = replace(setting, workers=workers)
    print("\n".join(lines(cost_of(recipe, setting))))


@app.command(epilog="Example: labelloop recipe plan default --cases cases.csv --gpu-memory-gb 12 --out mine.yaml")
def plan(
    name: Name,
    cases: Annotated[Path, Option(help="case table; its labeled train cases are looked at")],
    out: Annotated[Path, Option(help="recipe to write: NAME with the new plan")],
    plan_name: Annotated[str | None, Option("--plan", help="plan to replace; default: the only one, or fine")] = None,
    network: Annotated[
        Literal["plain", "resenc_m", "resenc_l", "resenc_xl"], Option(help="nnU-Net's planner: default, or ResEnc")
    ] = "plain",
    gpu_memory_gb: Annotated[
        float | None, Option(min=1, help="of the card; default: that of nnU-Net's planner, 8 GB for plain")
    ] = None,
    configuration: Annotated[Literal["3d_fullres", "3d_lowres"], Option(help="of nnU-Net")] = "3d_fullres",
    most: Annotated[int, Option(min=1, help="cases to look at, at most, evenly over the table")] = 500,
) -> None:
    """Write a recipe with the plan that nnU-Net makes for a collection and a card."""
    from labelloop.run.planned import write_planned

    for line in write_planned(name, cases, out, plan_name, network, gpu_memory_gb, configuration, most):
        print(line)
