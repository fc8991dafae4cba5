"""``labelloop evaluate``, ``check`` and ``calibrate``: how good label maps are."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Context, Option, Typer

from labelloop.base.classes import Idle
from labelloop.base.errors import UserError
from labelloop.cli.idle import refuse_idle

Classes = Annotated[str, Option(help="class scheme: a name or a file")]
IDLE_CHECK = (Idle(("rules", "asked"), lambda o: o["fit"], "with --fit, which judges nothing"),)
IDLE_CALIBRATE = (Idle(("confidence",), lambda o: o["on_average"], "with --on-average, which promises no probability"),)
app = Typer()


@app.command(epilog="Example: labelloop evaluate --truth labels --prediction ours --dataset btcv --out scores.csv")
def evaluate(
    truth: Annotated[Path, Option(help="folder of expert labels, or with a folder of masks a case")],
    prediction: Annotated[Path, Option(help="folder of label maps, or masks, of the same names")],
    out: Annotated[Path, Option(help="table of scores to write")],
    classes: Classes = "flare",
    protocol: Annotated[str, Option(help="official-2022, -2023, -2024 or corrected")] = "official-2024",
    dataset: Annotated[
        str | None,
        Option(
            help="data set, or nnU-Net's dataset.json, whose ids the truth carries and whose annotated classes count"
        ),
    ] = None,
    prediction_dataset: Annotated[
        str | None, Option(help="data set, or nnU-Net's dataset.json, whose ids the predictions carry")
    ] = None,
    annotation: Annotated[Path | None, Option(help="annotation table; unknown classes are not scored")] = None,
    workers: Annotated[int, Option(min=1, help="processes")] = 1,
    lesions: Annotated[Path | None, Option(help="table of tumors found and missed to write")] = None,
) -> int:
    """Score label maps: DSC and NSD as FLARE computes them, and how many tumors are found."""
    from labelloop.metrics.evaluate import evaluate_folders

    lost = evaluate_folders(
        truth, prediction, classes, protocol, out, workers, annotation, lesions, dataset, prediction_dataset
    )
    return int(bool(lost))


@app.command(epilog="Example: labelloop check --labels labels --images scans --dataset btcv --out verdicts.csv")
def check(
    context: Context,
    labels: Annotated[Path, Option(help="folder of label maps, or with a folder of masks a case")],
    images: Annotated[Path | None, Option(help="folder of images, for the rules on intensity")] = None,
    classes: Classes = "flare",
    dataset: Annotated[
        str | None,
        Option(help="data set (or nnU-Net's dataset.json) whose ids the labels carry; default: those of --classes"),
    ] = None,
    modality: Annotated[Literal["CT", "MR"], Option(help="of all images that --cases does not name")] = "CT",
    cases: Annotated[
        Path | None,
        Option(help="case table that says each case's modality and patient, and what was removed (surgery)"),
    ] = None,
    rules: Annotated[Path | None, Option(help="thresholds that --fit wrote; default: those of --classes")] = None,
    asked: Annotated[
        str | None,
        Option(
            metavar="A,B,C",
            help="classes (or sets) that were asked for: a map without them fails; default: what --dataset annotates",
        ),
    ] = None,
    out: Annotated[Path | None, Option(help="table of verdicts to write")] = None,
    fit: Annotated[Path | None, Option(help="file of thresholds to write, fitted to these fully labeled maps")] = None,
) -> int:
    """Hold label maps against the rules of anatomy."""
    from labelloop.labels.folder import check_folder, fit_folder

    refuse_idle(context, IDLE_CHECK)
    if fit and not out:
        return int(bool(fit_folder(labels, classes, fit, images, dataset, modality, cases)))
    if out and not fit:
        names = [name.strip() for name in asked.split(",")] if asked else None
        return int(bool(check_folder(labels, classes, out, images, dataset, modality, rules, names, cases)))
    raise UserError("--out or --fit: name one of them")


@app.command(epilog="Example: labelloop calibrate --scores s.csv --disagreement d.csv --target-dsc 0.9 --out t.csv")
def calibrate(
    context: Context,
    scores: Annotated[
        Path,
        Option(
            help="scores of cases that the models did not learn from; tubes (aorta, vena cava, esophagus) get no "
            "threshold, because FLARE scores them on some slices only"
        ),
    ],
    disagreement: Annotated[Path, Option(help="disagreement of the models on these cases")],
    target_dsc: Annotated[float, Option(help="mean DSC that accepted labels are to reach")],
    out: Annotated[Path, Option(help="table of thresholds to write")],
    confidence: Annotated[float, Option(help="probability with which they do")] = 0.9,
    on_average: Annotated[
        bool, Option("--on-average", help="they do on average over runs, instead; takes fewer labels")
    ] = False,
    classes: Classes = "flare",
    cases: Annotated[
        Path | None, Option(help="case table that says each case's patient, who counts once; default: each case is one")
    ] = None,
) -> None:
    """From which agreement on do labels reach a DSC? Asks held-out truth."""
    from labelloop.labels.calibrate import calibrate_files

    refuse_idle(context, IDLE_CALIBRATE)
    promise = None if on_average else confidence
    table = calibrate_files(scores, disagreement, out, classes, target_dsc, promise, cases)
    print(table[["class", "threshold", "cases", "coverage", "mean_dsc", "aurc", "reason"]].to_string(index=False))
