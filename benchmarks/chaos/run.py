"""From labeled CT to unlabeled MR on real scans: BTCV's labels teach four organs, CHAOS' T2 images have none.

    python benchmarks/chaos/run.py BTCV CHAOS OUT [--write] [--pictures FOLDER]

BTCV and CHAOS are folders of ``<case>_0000.nii.gz`` and ``<case>.nii.gz``. All CT are labeled, all MR are unlabeled;
the labels of the MR are read when all is done, to score with. The MR that are scored are therefore those whose images
(not labels) were learned from. Printed: DSC of each organ for the model of CT alone and each step of ``recipe.yaml``.
"""

import argparse
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import pandas as pd
import torch

from labelloop.base.files import atomic, write_json, write_text
from labelloop.cases.annotation import PRESENT
from labelloop.cases.folders import pair_folders
from labelloop.cases.survey import read_truth
from labelloop.cases.table import Case, write_cases
from labelloop.images.pictures import case_picture
from labelloop.images.volume import read
from labelloop.metrics.flare import score_case
from labelloop.recipe import load_recipe, unroll

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_name("recipe.yaml")
RESULT = ROOT / "benchmarks" / "results" / "chaos.md"
ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
RULES = "corrected"
SHARD = "train-000"
BAR = """The public bar for this pair of sets is SIFA (Chen et al., TMI 2020), with about 85 mean DSC over these organs.
It learned from 14 to 16 MR volumes and 24 to 30 CT and was tested on other MR, in 2-D slices cut to the organs; here
the volumes are whole and coarse, and the MR that are scored are those whose images, not labels, were learned from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("btcv", type=Path)
    parser.add_argument("chaos", type=Path)
    parser.add_argument("out", type=Path, help="folder for everything that is trained")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULT.name}")
    parser.add_argument(
        "--pictures", type=Path, help="folder for a picture of each MR and model, with the truth dashed"
    )
    options = parser.parse_args()
    mr = write_table(options.btcv, options.chaos, options.out)
    models = unroll(load_recipe(RECIPE)).evaluate.models
    train(options.out, models, options.device, options.cores)
    found = pd.DataFrame(row for model in models for row in scores(options.out, model, mr, options.pictures))
    text = "\n".join([*lines(found), "", BAR]) + "\n"
    print(text)
    if options.write:
        command = " ".join(["python benchmarks/chaos/run.py", *sys.argv[1:]])
        where = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} CPU cores, no GPU"
        versions = f"Python {platform.python_version()}, torch {torch.__version__}"
        head = (
            f"# CT labels, MR images: BTCV to CHAOS\n\nWritten by `{command}` on {date.today()}: {where}; {versions}."
        )
        write_text(RESULT, f"{head}\n\n{text}")


def write_table(btcv: Path, chaos: Path, out: Path) -> dict[str, Case]:
    """Write the case table; return the MR cases with their labels, which are not in it."""
    ct = _cases(btcv, dataset="btcv", modality="CT")
    mr = _cases(chaos, dataset="chaos_mr", modality="MR", sequence="t2w")
    out.mkdir(parents=True, exist_ok=True)
    write_cases(out / "cases.csv", [*ct, *(case.model_copy(update={"label": ""}) for case in mr)])
    return {case.case: case for case in mr}


def _cases(folder: Path, **fields: str) -> list[Case]:
    pairs = sorted(pair_folders(folder.resolve(), folder.resolve()).items())
    return [Case(case=case, image=str(i), label=str(label), patient=case, **fields) for case, (i, label) in pairs]


def train(out: Path, models: tuple[str, ...], device: str, cores: str) -> None:
    """Let Snakemake train the models and predict the MR."""
    config = {"cases": str((out / "cases.csv").resolve()), "recipe": str(RECIPE), "results": "results"}
    write_json(out / "config.yaml", config | {"device": device, "shard_size": 64})  # JSON is YAML; one shard
    places = ["--directory", str(out.resolve()), "--configfile", str((out / "config.yaml").resolve())]
    targets = [f"results/models/{model}/predictions/shards/{SHARD}.csv" for model in models]
    subprocess.run([sys.executable, "-m", "snakemake", *places, "--cores", cores, *targets], cwd=ROOT, check=True)


def scores(out: Path, model: str, mr: dict[str, Case], pictures: Path | None):
    """Yield a row for each MR and organ; draw the predictions with the truth dashed."""
    scheme = load_recipe(RECIPE).scheme
    for case in mr.values():
        truth = read_truth(case, scheme)
        prediction = read(out / "results" / "models" / model / "predictions" / f"{case.case}.nii.gz")
        for row in score_case(truth, prediction, scheme, RULES, dict.fromkeys(ORGANS, PRESENT)):
            yield {"model": model, "case": case.case, "class": row["class"], "dsc": row["dsc"]}
        if pictures:
            with atomic(pictures / f"{case.case}_{model}.png") as temporary:
                temporary.write_bytes(
                    case_picture(read(case.image), prediction, scheme, truth, window=None, focus=ORGANS)
                )


def lines(found: pd.DataFrame):
    """Yield a table: DSC of each organ by model, in %, the mean over the MR."""
    means = 100 * found.groupby(["model", "class"], sort=False)["dsc"].mean().unstack("class")
    yield f"DSC in %, mean over {found['case'].nunique()} MR, rules `{RULES}`."
    yield ""
    yield "| model | " + " | ".join(ORGANS) + " | mean |"
    yield "| --- |" + " ---: |" * (len(ORGANS) + 1)
    for model, row in means.iterrows():
        yield (
            f"| {model} | " + " | ".join(f"{row[name]:.1f}" for name in ORGANS) + f" | {row[list(ORGANS)].mean():.1f} |"
        )


if __name__ == "__main__":
    main()
