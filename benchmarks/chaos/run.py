"""From labeled CT to unlabeled MR on real scans: BTCV's labels teach four organs, CHAOS' T2 images have none.

    python benchmarks/chaos/run.py BTCV CHAOS OUT [--write] [--pictures FOLDER]

BTCV and CHAOS are folders of ``<case>_0000.nii.gz`` and ``<case>.nii.gz``. All CT are labeled. The MR are halved:
models learn from the images of one half and are tested on the other. Models of CT alone are tested on both. No label of
an MR is learned from. Each fold and seed is a run of Snakemake below OUT, which goes on where it was stopped.

Printed: DSC of each organ for each arm (a model of ``recipe.yaml``), and its differences to ``ct_only``, which takes N
updates, and to the arms of CT alone that take the 2 N of every later arm: ``control`` at once, ``continued`` with a
second start, as whatever starts from a model. 95 % intervals are over MR and seeds (``hierarchical_bootstrap``). Arms
that are not finished are named.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import RESULTS, gain_in_percent, organ_mean, train, written_by

from labelloop.base.files import atomic, write_text
from labelloop.base.wording import count
from labelloop.cases.annotation import PRESENT
from labelloop.cases.folders import pair_folders
from labelloop.cases.survey import read_truth
from labelloop.cases.table import Case
from labelloop.images.pictures import case_picture
from labelloop.images.volume import read
from labelloop.metrics.flare import score_case
from labelloop.recipe import load_recipe

RECIPE = Path(__file__).with_name("recipe.yaml")
RESULT = RESULTS / "chaos.md"
CHAIN = load_recipe(RECIPE)
ARMS = CHAIN.evaluate.models
CT_ARMS = ("ct_only", "random", "control", "continued")
"""Arms that see no MR. They are trained in the first fold alone, and tested on all MR."""
ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
RULES = "corrected"
REFERENCES = ("ct_only", "control", "continued")
"""Arms that the others are compared with."""
FOLDS = 2
BAR = """The public bar for this pair of sets is SIFA (Chen et al., TMI 2020), with about 85 mean DSC over these organs.
It learned from 14 to 16 MR volumes and 24 to 30 CT and was tested on 4 other MR, in 2-D slices cut to the organs; here
the volumes are whole and coarse, and models that learn from MR learn from 3."""


class Fold(NamedTuple):
    """Cases of a fold: all CT, and the MR, of which one half is tested."""

    number: int
    ct: list[Case]
    mr: list[Case]

    @property
    def cases(self) -> list[Case]:
        """Cases as the workflow sees them: MR to learn from without their labels."""
        hidden = {"label": "", "annotated": ""}
        seen = [case if case.role == "test" else case.model_copy(update=hidden) for case in self.mr]
        return [*self.ct, *seen]

    def tests(self, arm: str) -> list[Case]:
        """Return the MR on which an arm is tested in this fold."""
        if arm in CT_ARMS:
            return self.mr if self.number == 0 else []
        return [case for case in self.mr if case.role == "test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("btcv", type=Path)
    parser.add_argument("chaos", type=Path)
    parser.add_argument("out", type=Path, help="folder for everything that is trained")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=ARMS, help="what is trained and scored")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--print", action="store_true", help="train nothing, print what is there")
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULT.name}")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each MR and arm of the first seed")
    options = parser.parse_args()
    folds, seeds = [read_fold(options.btcv, options.chaos, number) for number in range(FOLDS)], range(options.seeds)
    if not options.print:
        for seed in seeds:
            for fold in folds:
                train_fold(place(options.out, fold, seed), fold, seed, options.arms, options.device, options.cores)
    found = {arm: [scores(options.out, folds, arm, seed) for seed in seeds] for arm in ARMS}
    text = "\n".join([*lines(found), "", BAR]) + "\n"
    print(text)
    if options.write:
        made = written_by(__file__, "torch", gpu=True)
        write_text(RESULT, f"# CT labels, MR images: BTCV to CHAOS\n\n{made}\n\n{text}")
    if options.pictures:
        draw(options.out, folds, options.pictures)


def read_fold(btcv: Path, chaos: Path, number: int) -> Fold:
    """Return the cases of a fold; every second MR is tested."""
    ct = _cases(btcv, dataset="btcv", modality="CT")
    mr = _cases(chaos, dataset="chaos_mr", modality="MR", sequence="t2w")
    roles = ["test" if n % FOLDS == number else "train" for n in range(len(mr))]
    return Fold(number, ct, [case.model_copy(update={"role": role}) for case, role in zip(mr, roles, strict=True)])


def _cases(folder: Path, **fields: str) -> list[Case]:
    pairs = sorted(pair_folders(folder.resolve(), folder.resolve()).items())
    return [Case(case=case, image=str(i), label=str(label), patient=case, **fields) for case, ((i,), label) in pairs]


def place(out: Path, fold: Fold, seed: int) -> Path:
    """Return the folder of a run."""
    return out / f"fold{fold.number}_seed{seed}"


def recipe(seed: int) -> dict[str, Any]:
    """Return ``recipe.yaml`` with the seed of every training."""
    content = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    for name in ("to_t2w", "ct_only"):  # all others are like ct_only
        content["models"][name]["trainer"]["seed"] = seed
    return content


def train_fold(folder: Path, fold: Fold, seed: int, arms: Sequence[str], device: str, cores: str) -> None:
    """Train arms and predict the MR that they are tested on."""
    targets = [
        f"results/models/{arm}/predictions/shards/{role}-000.csv"
        for arm in arms
        for role in sorted({case.role for case in fold.tests(arm)})
    ]
    if targets:
        train(folder, fold.cases, recipe(seed), device, cores, targets, shard_size=64)  # one shard a role


def scores(out: Path, folds: Sequence[Fold], arm: str, seed: int) -> pd.DataFrame | None:
    """Return the scores of an arm on all MR; None while a prediction is missing."""
    rows = []
    for fold in folds:
        for case in fold.tests(arm):
            file = _prediction(out, fold, arm, seed, case)
            if not file.is_file():
                return None
            scored = score_case(
                read_truth(case, CHAIN.scheme), read(file), CHAIN.scheme, RULES, dict.fromkeys(ORGANS, PRESENT)
            )
            rows += [{"case": case.case, **row} for row in scored]
    return pd.DataFrame(rows)


def _prediction(out: Path, fold: Fold, arm: str, seed: int, case: Case) -> Path:
    return place(out, fold, seed) / "results" / "models" / arm / "predictions" / f"{case.case}.nii.gz"


def draw(out: Path, folds: Sequence[Fold], pictures: Path) -> None:
    """Draw the predictions of the first seed, with the truth dashed."""
    for fold in folds:
        for arm in ARMS:
            for case in fold.tests(arm):
                file = _prediction(out, fold, arm, 0, case)
                if not file.is_file():
                    continue
                truth = read_truth(case, CHAIN.scheme)
                drawn = case_picture(read(case.image), read(file), CHAIN.scheme, truth, window=None, focus=ORGANS)
                with atomic(pictures / f"{case.case}_{arm}.png") as temporary:
                    temporary.write_bytes(drawn)


def lines(found: dict[str, list[pd.DataFrame | None]]) -> Iterator[str]:
    """Yield a table: DSC of each organ by arm, in %, the mean over MR and seeds, and the differences of the means."""
    complete = {arm: [t for t in tables if t is not None] for arm, tables in found.items()}
    finished = {arm: tables for arm, tables in complete.items() if tables and len(tables) == len(found[arm])}
    missing = [arm for arm in found if arm not in finished]
    if missing:
        yield f"Not finished: {', '.join(missing)}."
        yield ""
    if not finished:
        return
    some = next(iter(finished.values()))
    yield f"DSC in %, mean over {some[0]['case'].nunique()} MR and {count(len(some), 'seed')}, rules `{RULES}`."
    yield ""
    yield "| arm | " + " | ".join(ORGANS) + " | mean |" + "".join(f" against {other} (95 %) |" for other in REFERENCES)
    yield "| --- |" + " ---: |" * (len(ORGANS) + 1 + len(REFERENCES))
    for arm, tables in finished.items():
        means = 100 * pd.concat(tables).groupby("class")["dsc"].mean()
        cells = [f"{means[name]:.1f}" for name in ORGANS] + [f"{means[list(ORGANS)].mean():.1f}"]
        cells += [against(finished, other, arm) for other in REFERENCES]
        yield f"| {arm} | {' | '.join(cells)} |"


def against(finished: dict[str, list[pd.DataFrame]], other: str, arm: str) -> str:
    """Return the difference of an arm's mean DSC to another's, with its interval."""
    if arm == other or other not in finished:
        return "–"
    return gain_in_percent(organ_mean(finished[other], finished[arm]))


if __name__ == "__main__":
    main()
