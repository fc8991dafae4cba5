"""``labelloop infer`` and ``export``: what trained models are for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Context, Option, Typer

from labelloop.base.classes import Idle
from labelloop.base.errors import UserError
from labelloop.cli.idle import refuse_idle

if TYPE_CHECKING:
    from labelloop.inference.settings import Settings

Modality = Literal["CT", "MR"]
Mode = Literal["exact", "fast"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
USE_CLASSES = ("preview", "check", "dataset", "dicom_seg")
IDLE_INFER = (
    Idle(
        ("classes", "dataset", "folds", "mirror"),
        lambda o: o["results"] is not None,
        "with --results: a run's recipe has its classes, and says what its models do",
    ),
    Idle(
        ("classes",),
        lambda o: not o["results"] and not any(o[key] for key in USE_CLASSES),
        "without --preview, --check, --dataset or --dicom-seg, which ask for names, rules and codes",
    ),
    Idle(
        ("sequence",),
        lambda o: o["modality"] == "CT",
        "without --modality MR: every CT tells which end is up",
    ),
    Idle(("series",), lambda o: Path(o["images"]).is_file(), "for one file; DICOM series lie in folders"),
    Idle(("meter",), lambda o: o["device"] == "cpu", "with --device cpu: it is the GPU that is measured"),
)
IDLE_EXPORT = (
    Idle(("modality", "dataset_id"), lambda o: o["to"] == "onnx", "with --to onnx: the file holds the network alone"),
)
app = Typer()


@app.command(epilog="Example: labelloop infer scans --model results/mine/models/student --out labels --preview")
def infer(
    context: Context,
    images: Annotated[Path, Argument(help="a file, a folder of files, or a DICOM series folder")],
    out: Annotated[Path, Option(help="folder to write <case>.nii.gz to")],
    model: Annotated[
        list[Path] | None,
        Option(help="model folder, also of nnU-Net's, or nnU-Net's zip; given several times: their mean"),
    ] = None,
    results: Annotated[Path | None, Option(help="results of a run, whose whole inference chain is used")] = None,
    modality: Annotated[Modality, Option(help="of all images")] = "CT",
    sequence: Annotated[str, Option(help="MR sequence, e.g. t1w; tells some models which end is up")] = "",
    device: Annotated[str, Option(help="auto, cpu, cuda, or cuda:1 for the second GPU")] = "auto",
    mode: Annotated[Mode | None, Option(help="as nnU-Net decides, or faster; default: exact, or the run's")] = None,
    step: Annotated[float | None, Option(help="window step, a share of the patch; default: 0.5, or the run's")] = None,
    precision: Annotated[Precision | None, Option(help="default: auto, or the run's")] = None,
    max_ram_mb: Annotated[float | None, Option(help="RAM that must be enough")] = None,
    max_gpu_mb: Annotated[float | None, Option(help="GPU memory that must be enough")] = None,
    meter: Annotated[bool, Option("--meter", help="measure the GPU's memory over time, and its energy")] = False,
    series: Annotated[str, Option(help="DICOM series to take of a folder: its number or UID")] = "",
    masks: Annotated[bool, Option("--masks", help="also write masks/<case>/segmentations/<class>.nii.gz")] = False,
    dicom_seg: Annotated[
        bool, Option("--dicom-seg", help="also write a DICOM segmentation of each DICOM series, dicom_seg/<case>.dcm")
    ] = False,
    preview: Annotated[bool, Option("--preview", help="draw a picture of each case, finished ones too")] = False,
    check: Annotated[bool, Option("--check", help="hold the label maps against the rules of anatomy")] = False,
    classes: Annotated[
        str, Option(help="class scheme with colors, rules of anatomy and codes for DICOM; of --model")
    ] = "flare",
    dataset: Annotated[
        str | None, Option(help="data set file that says which class of --classes each id of the model is")
    ] = None,
    folds: Annotated[str, Option(help="of nnU-Net's models, e.g. 0,1 or all; default: all numbered ones")] = "",
    mirror: Annotated[bool | None, Option(help="average over mirrored images; default: nnU-Net's do")] = None,
    again: Annotated[bool, Option("--again", help="do finished cases again")] = False,
) -> int:
    """Segment images with a trained model; exit 0 all, 1 some failed, 2 none."""
    from labelloop.base.classes import load_classes
    from labelloop.inference.budget import Budget
    from labelloop.inference.infer import infer as infer_images
    from labelloop.inference.settings import Settings
    from labelloop.inference.steps import FinishedInference

    _refuse_contradictions(bool(model), bool(results), step)
    refuse_idle(context, IDLE_INFER)
    finished = FinishedInference.read(results) if results else None
    shown = load_classes(classes) if preview or check or dataset or dicom_seg else None
    return infer_images(
        images,
        finished.folders(results) if results and finished else model or [],
        out,
        steps=finished.steps if finished else None,
        scheme=finished.classes if finished else shown,
        settings=_settings(finished.engine if finished else Settings(), mode=mode, step=step, precision=precision),
        device=device,
        modality=modality,
        sequence=sequence,
        resume=not again,
        budget=Budget(max_ram_mb, max_gpu_mb),
        meter=meter,
        preview=preview,
        check=check,
        series=series,
        progress=True,
        dataset=dataset,
        folds=[fold for fold in folds.split(",") if fold],
        mirror=mirror,
        masks=masks,
        dicom_seg=dicom_seg,
    )


def _refuse_contradictions(model: bool, results: bool, step: float | None) -> None:
    """Raise UserError for options of which one contradicts another, or that say nothing."""
    if model == results:
        raise UserError("--model or --results: name one of them")
    if step is not None and not 0 < step <= 1:
        raise UserError(f"--step {step:g}: above 0 and at most 1")


def _settings(run: "Settings", **options: object) -> "Settings":
    """Return the settings of a run, overridden by the options that were given."""
    given = {key: value for key, value in options.items() if value is not None}
    return run.model_validate(run.model_dump() | given)


@app.command(epilog="Example: labelloop export results/mine/models/student --to nnunet --out student.zip")
def export(
    context: Context,
    model: Annotated[Path, Argument(help="model folder, e.g. results/mine/models/student")],
    to: Annotated[Literal["nnunet", "onnx"], Option(help="the other tool, or a file of the network alone")],
    out: Annotated[Path, Option(help="nnunet: a .zip to install, or nnU-Net's results folder; onnx: a file")],
    modality: Annotated[Modality | None, Option(help="nnunet: of the images it is for; default: CT")] = None,
    dataset_id: Annotated[
        int | None, Option(min=1, max=999, help="nnunet: number that it is to know the model by; default: 900")
    ] = None,
) -> None:
    """Write a trained model for another tool."""
    refuse_idle(context, IDLE_EXPORT)
    if to == "onnx":
        from labelloop.inference.onnx_file import export_onnx

        shape = export_onnx(model, out)
        print(f"{out}: image [batch, {', '.join(map(str, shape))}] to logits [batch, outputs, z, y, x]")
        return
    from labelloop.training.export import export_tree
    from labelloop.training.stock import CONFIGURATION, PLANS

    number = dataset_id or 900
    export_tree(model, out, modality, number)
    if out.suffix.lower() == ".zip":
        print(f"nnUNetv2_install_pretrained_model_from_zip {out}")
    print(f"nnUNetv2_predict -d {number} -c {CONFIGURATION} -p {PLANS} -f 0 -i IMAGES -o LABELS")
