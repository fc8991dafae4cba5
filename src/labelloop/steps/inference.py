"""Final label maps and their scores: the steps of ``workflow/rules/inference.smk``."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from labelloop.annotation import UNKNOWN, annotated
from labelloop.classes import load_classes
from labelloop.errors import CaseError
from labelloop.files import digest
from labelloop.metrics.flare import score_case
from labelloop.shards import Ledger
from labelloop.steps.common import Files, Rows, read_many, surveyed, table_of
from labelloop.survey import read_truth
from labelloop.tables import write_table
from labelloop.volume import read

log = logging.getLogger(__name__)
MEASURED = ("runtime_s", "peak_gpu_mb", "peak_ram_mb")


def infer(
    rows: Rows,
    steps: Sequence[Mapping[str, Any]],
    engine: Mapping[str, Any],
    classes: str,
    shard: str,
    results: Path,
    device: str,
) -> None:
    """Run the inference chain over the cases of one shard: label maps, volumes and confidence, run times."""
    from labelloop.inference.infer import Case, run_cases
    from labelloop.inference.infer import rows as summary_rows
    from labelloop.inference.postprocess import load_chain
    from labelloop.inference.settings import Settings

    out = results / "predictions"
    ledger = Ledger(out, shard)
    items = surveyed(rows, results / "survey", [shard])
    chain = load_chain(steps, results / "models", load_classes(classes), device, Settings.model_validate(dict(engine)))
    run_cases([Case(i.id, Path(i.case.image), i.case.modality, i.image_sha256) for i in items], chain, ledger)
    write_table(out / "summary" / f"{shard}.csv", pd.DataFrame(summary_rows(ledger)), "summary")
    efficiency = [{"case": case, **{m: extra[m] for m in MEASURED}} for case, extra in ledger.extras().items()]
    write_table(out / "efficiency" / f"{shard}.csv", pd.DataFrame(efficiency), "efficiency")


def summarize(summaries: Iterable[str], efficiencies: Iterable[str], out: Path) -> None:
    """Join the shards' tables of the final label maps."""
    write_table(out / "summary.csv", read_many(summaries, "summary"), "summary")
    write_table(out / "efficiency.csv", read_many(efficiencies, "efficiency"), "efficiency")


def evaluate(
    rows: Rows,
    manifests: Sequence[str],
    survey_folder: Path,
    classes: str,
    known: Sequence[str],
    rules: str,
    out: Path,
    version: int,
) -> None:
    """Score label maps of test cases against their truth, on classes that are annotated and that the maps know.

    Args:
        manifests: manifests of the label maps.
        known: classes (or class sets) that the label maps can contain.
    """
    scheme = load_classes(classes)
    asked = scheme.select(list(known))
    files = Files(manifests, "prediction")
    ledger = Ledger(out.parent / "cases", out.stem)
    for item in surveyed(rows, survey_folder, [Path(manifest).stem for manifest in manifests]):
        states = {name: state if name in asked else UNKNOWN for name, state in item.states.items()}
        if not annotated(states):
            continue

        def work(item=item, states=states):
            truth = read_truth(item.case, scheme)
            if truth is None:
                raise CaseError("label_missing", item.case.label, "no label to score against", "Give one, or none.")
            return None, {"rows": score_case(truth, read(files.path(item.id)), scheme, rules, states)}

        ledger.run(item.id, digest([version, rules, states, item.truth_key, files.key(item.id)]), work)
    ledger.close()
    scores = table_of(ledger.extras(), "rows")
    write_table(out, scores, "scores")
    if not scores.empty:
        means = scores.groupby("class", sort=False)[["dsc", "nsd"]].mean()
        log.info("%s: mean DSC %.4f, mean NSD %.4f over %d classes", out.stem, *means.mean(), len(means))
