"""The command line: ``labelloop init``, ``cases``, ``run``, ``infer``, ``evaluate``, ``check``, and others."""

import argparse
import logging
import sys
from importlib.metadata import version
from pathlib import Path

from labelloop.base.errors import CaseError, UserError
from labelloop.base.heartbeat import speaking
from labelloop.base.wording import count

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 fine, 1 some cases failed, 2 nothing could be done."""
    given = sys.argv[1:] if arguments is None else arguments
    end = given.index("--") if given[:1] == ["run"] and "--" in given else len(given)
    options = _parser().parse_args(given[:end], argparse.Namespace(snakemake=given[end + 1 :]))
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("labelloop").setLevel(logging.INFO)
    try:
        with speaking(options.command):
            return options.run(options) or 0
    except UserError as error:
        print(f"labelloop: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"labelloop: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("labelloop: interrupted. Type the same command again to go on: finished cases are kept.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="labelloop", description="Models make labels; checked labels make models.")
    parser.add_argument("--version", action="version", version=f"labelloop {version('labelloop')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    label_commands = (_add_evaluate, _add_check, _add_calibrate)
    for add in (
        _add_init,
        _add_phantom,
        _add_convert,
        _add_cases,
        _add_run,
        _add_infer,
        _add_export,
        *label_commands,
        _add_recipe,
        _add_dataset,
        _add_classes,
        _add_schema,
    ):
        add(commands)
    return parser


def _add_init(commands) -> None:
    parser = commands.add_parser("init", help="write a configuration, profiles and an example of a case table to edit")
    parser.add_argument("folder", type=Path, help="folder to write to; files that are there are kept")
    parser.set_defaults(run=_init)


def _init(options) -> None:
    from labelloop.cli.init import write_project

    for file, new in write_project(options.folder):
        print(file if new else f"{file}: kept, it was there already")
    print(f"Next, in {options.folder}: labelloop cases, then labelloop run -n")


def _add_phantom(commands) -> None:
    parser = commands.add_parser("phantom", help="write a synthetic abdomen collection to try things on")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mr", type=int, default=0, metavar="PATIENTS", help="other patients to write MR sequences of")
    parser.set_defaults(run=_phantom)


def _phantom(options) -> None:
    from labelloop.phantom import write_phantom

    print(write_phantom(options.out, options.cases, options.seed, mr_patients=options.mr))


def _add_convert(commands) -> None:
    parser = commands.add_parser("convert", help="write DICOM series as NIfTI files for a case table")
    parser.add_argument("images", type=Path, help="folder with a DICOM series, or with folders of them at any depth")
    parser.add_argument("--out", type=Path, required=True, help="folder to write <case>_0000.nii.gz to")
    parser.add_argument("--series", default="", help="DICOM series to take of a folder: its number or UID")
    parser.set_defaults(run=_convert)


def _convert(options) -> int:
    from labelloop.inference.convert import convert

    return convert(options.images, options.out, options.series)


def _add_cases(commands) -> None:
    parser = commands.add_parser("cases", help="write a case table from folders in nnU-Net or FLARE naming")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="folder of labels; may be the same folder; omit for none")
    parser.add_argument("--dataset", required=True, help="name of a data set, or a data set file")
    parser.add_argument("--out", type=Path, required=True, help="the table to write")
    parser.add_argument("--modality", default="", help="CT or MR; default: the data set's")
    parser.add_argument("--sequence", default="", help="MR sequence or CT phase of all cases")
    parser.add_argument("--role", default="train", choices=("train", "test"))
    parser.add_argument("--test-images", type=Path, help="folder of test images")
    parser.add_argument("--test-labels", type=Path, help="folder of their labels")
    parser.add_argument("--test-fraction", type=float, default=0.0, help="share of labeled cases to test on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--annotated-from-ids", action="store_true", help="take the ids in a label as annotated")
    parser.add_argument("--overwrite", action="store_true")
    parser.set_defaults(run=_cases)


def _cases(options) -> int:
    from labelloop.cases.folders import table_from_folders

    apart = ("run", "command", "snakemake", "images", "labels", "dataset", "out")
    given = {k: v for k, v in vars(options).items() if k not in apart}
    lost: list = []
    cases = table_from_folders(options.images, options.labels, options.dataset, options.out, **given, lost=lost)
    labeled = sum(bool(case.label) for case in cases)
    tested = sum(case.role == "test" for case in cases)
    print(f"{options.out}: {count(len(cases), 'case')}, {labeled} with a label, {tested} for testing")
    return bool(lost)


def _add_run(commands) -> None:
    parser = commands.add_parser(
        "run",
        help="run a recipe on a case table, from labels to a trained student and its report",
        usage="labelloop run [CONFIG] [OPTIONS] [-- SNAKEMAKE_OPTIONS]",
        description="Run a recipe. What is finished is kept: type the same command again to go on.",
        epilog="Whatever follows `--` goes to Snakemake: labelloop run -n -- --quiet rules",
    )
    parser.add_argument(
        "config", nargs="?", type=Path, help="config file; goes before config/config.yaml, if it is here"
    )
    parser.add_argument("--cases", help="case table")
    parser.add_argument("--recipe", help="name of a recipe, or a file; default: the config file's, or `default`")
    parser.add_argument("--results", help="folder for everything produced; default: the config file's, or results/run")
    parser.add_argument(
        "--config", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="settings",
        help="other keys of the configuration, e.g. device=cpu",
    )  # fmt: skip
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would be done, and change nothing")
    parser.add_argument("--cores", help="cores of this machine to use; default: all")
    parser.add_argument("--profile", help="`slurm`, or a profile of your own: where and how jobs are run")
    parser.set_defaults(run=_run)


def _run(options) -> None:
    from labelloop.run.launch import launch, snakemake_command

    o = options
    flags = ["--dry-run"] if o.dry_run else []
    for name in ("cores", "profile"):
        value = getattr(o, name)
        flags += [f"--{name}", value] if value else []
    given = {"cases": o.cases, "recipe": o.recipe, "results": o.results}
    launch(snakemake_command(o.config, given, o.settings, [*flags, *o.snakemake]))


def _add_infer(commands) -> None:
    parser = commands.add_parser("infer", help="segment images with a trained model; exit 0 all, 1 some failed, 2 none")
    parser.add_argument("images", type=Path, help="a file, a folder of files, or a DICOM series folder")
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument(
        "--model",
        type=Path,
        action="append",
        help="model folder, also of nnU-Net's, or nnU-Net's zip; given several times: their mean",
    )
    models.add_argument("--results", type=Path, help="results of a run, whose whole inference chain is used")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--modality", default="CT", choices=("CT", "MR"), help="of all images; default: CT")
    parser.add_argument("--sequence", default="", help="MR sequence, e.g. t1w; tells some models which end is up")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, or cuda:1 for the second GPU")
    parser.add_argument("--mode", choices=("exact", "fast"), help="as nnU-Net decides (default), or faster")
    parser.add_argument("--step", type=float, help="window step as a share of the patch; default: 0.5, or the run's")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="default: auto, or the run's")
    parser.add_argument("--max-ram-mb", type=float, help="RAM that must be enough")
    parser.add_argument("--max-gpu-mb", type=float, help="GPU memory that must be enough")
    parser.add_argument("--meter", action="store_true", help="measure the GPU's memory over time, and its energy")
    parser.add_argument("--series", default="", help="DICOM series to take of a folder: its number or UID")
    parser.add_argument("--masks", action="store_true", help="also write masks/<case>/<class>.nii.gz")
    parser.add_argument("--preview", action="store_true", help="draw a picture of each case, finished ones too")
    parser.add_argument("--check", action="store_true", help="hold the label maps against the rules of anatomy")
    parser.add_argument("--classes", default="flare", help="class scheme with the colors of pictures and the rules")
    parser.add_argument("--dataset", help="data set file that says which class of --classes each id of the model is")
    parser.add_argument("--folds", default="", help="of nnU-Net's models, e.g. 0,1 or all; default: all numbered ones")
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="average over mirrored images; default: nnU-Net's do",
    )
    parser.add_argument("--again", action="store_true", help="do finished cases again")
    parser.set_defaults(run=_infer)


def _infer(options) -> int:
    from labelloop.base.classes import load_classes
    from labelloop.inference.budget import Budget
    from labelloop.inference.infer import infer
    from labelloop.inference.settings import Settings
    from labelloop.inference.steps import FinishedInference

    if options.step is not None and not 0 < options.step <= 1:
        raise UserError(f"--step {options.step:g}: above 0 and at most 1")
    named = {key: getattr(options, key) for key in ("mode", "step", "precision")}
    given = {key: value for key, value in named.items() if value is not None}
    finished = FinishedInference.read(options.results) if options.results else None
    if finished and (options.dataset or options.folds or options.mirror is not None):
        raise UserError("--dataset, --folds, --mirror: go with --model; a run's recipe says what its models do")
    shown = load_classes(options.classes) if options.preview or options.check or options.dataset else None
    return infer(
        options.images,
        finished.folders(options.results) if finished else options.model,
        options.out,
        steps=finished.steps if finished else None,
        scheme=finished.classes if finished else shown,
        settings=Settings.model_validate((finished.engine.model_dump() if finished else {}) | given),
        device=options.device,
        modality=options.modality,
        sequence=options.sequence,
        resume=not options.again,
        budget=Budget(options.max_ram_mb, options.max_gpu_mb),
        meter=options.meter,
        preview=options.preview,
        check=options.check,
        series=options.series,
        progress=True,
        dataset=options.dataset,
        folds=[fold for fold in options.folds.split(",") if fold],
        mirror=options.mirror,
        masks=options.masks,
    )


def _add_export(commands) -> None:
    parser = commands.add_parser("export", help="write a trained model for another tool")
    parser.add_argument("model", type=Path, help="model folder, e.g. results/mine/models/student")
    parser.add_argument("--to", required=True, choices=("nnunet",))
    parser.add_argument("--out", type=Path, required=True, help="a .zip to install, or nnU-Net's results folder")
    parser.add_argument("--modality", default="CT", choices=("CT", "MR"), help="of the images it is for; default: CT")
    parser.add_argument(
        "--dataset-id", type=int, default=900, help="number that nnU-Net is to know it by; default: 900"
    )
    parser.set_defaults(run=_export)


def _export(options) -> None:
    from labelloop.training.export import export_tree
    from labelloop.training.stock import CONFIGURATION, PLANS

    o = options
    if not 0 < o.dataset_id < 1000:
        raise UserError(f"--dataset-id {o.dataset_id}: nnU-Net has numbers from 1 to 999")
    export_tree(o.model, o.out, o.modality, o.dataset_id)
    if o.out.suffix == ".zip":
        print(f"nnUNetv2_install_pretrained_model_from_zip {o.out}")
    print(f"nnUNetv2_predict -d {o.dataset_id} -c {CONFIGURATION} -p {PLANS} -f 0 -i IMAGES -o LABELS")


def _add_evaluate(commands) -> None:
    about = "score label maps: DSC and NSD as FLARE computes them, and how many tumors are found"
    parser = commands.add_parser("evaluate", help=about)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--prediction", type=Path, required=True)
    parser.add_argument("--classes", default="flare")
    parser.add_argument("--protocol", default="official-2024", help="official-2022, -2023, -2024 or corrected")
    parser.add_argument(
        "--dataset", help="data set whose ids the truth carries, and whose annotated classes are scored"
    )
    parser.add_argument("--annotation", type=Path, help="annotation table; unknown classes are not scored")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="table of scores to write")
    parser.add_argument("--lesions", type=Path, help="table of tumors found and missed to write")
    parser.set_defaults(run=_evaluate)


def _evaluate(options) -> int:
    from labelloop.metrics.evaluate import evaluate_folders

    o = options
    more = o.annotation, o.lesions, o.dataset
    return bool(evaluate_folders(o.truth, o.prediction, o.classes, o.protocol, o.out, o.workers, *more))


def _add_check(commands) -> None:
    parser = commands.add_parser("check", help="hold label maps against the rules of anatomy")
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="folder of images, for the rules on intensity")
    parser.add_argument("--classes", default="flare")
    parser.add_argument("--dataset", help="data set whose ids the labels carry; default: the ids of --classes")
    parser.add_argument("--modality", default="CT", choices=("CT", "MR"))
    parser.add_argument("--rules", type=Path, help="thresholds that --fit wrote; default: those of --classes")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", type=Path, help="table of verdicts to write")
    task.add_argument("--fit", type=Path, help="file of thresholds to write, fitted to these fully labeled maps")
    parser.set_defaults(run=_check)


def _check(options) -> int:
    o = options
    if o.fit:
        from labelloop.labels.folder import fit_folder

        return bool(fit_folder(o.labels, o.classes, o.fit, o.images, o.dataset, o.modality))
    from labelloop.labels.folder import check_folder

    return bool(check_folder(o.labels, o.classes, o.out, o.images, o.dataset, o.modality, o.rules))


def _add_calibrate(commands) -> None:
    parser = commands.add_parser("calibrate", help="from which agreement on do labels reach a DSC? Asks held-out truth")
    parser.add_argument("--scores", type=Path, required=True, help="scores of cases that the models did not learn from")
    parser.add_argument("--disagreement", type=Path, required=True, help="disagreement of the models on these cases")
    parser.add_argument("--target-dsc", type=float, required=True, help="mean DSC that accepted labels are to reach")
    parser.add_argument("--confidence", type=float, default=0.9, help="probability with which they do")
    parser.add_argument("--classes", default="flare")
    parser.add_argument("--out", type=Path, required=True)
    parser.set_defaults(run=_calibrate)


def _calibrate(options) -> None:
    from labelloop.labels.calibrate import calibrate_files

    o = options
    table = calibrate_files(o.scores, o.disagreement, o.out, o.classes, o.target_dsc, o.confidence)
    print(table[["class", "threshold", "cases", "coverage", "mean_dsc", "aurc", "reason"]].to_string(index=False))


def _add_recipe(commands) -> None:
    parser = commands.add_parser("recipe", help="look at, copy and check recipes")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print the chain of a recipe")
    show.add_argument("name", help="name of a recipe, or a file")
    show.add_argument("--graph", action="store_true", help="print a mermaid flowchart instead of text")
    show.add_argument("--rounds", type=int, help="override the number of rounds")
    show.set_defaults(run=_show_recipe)
    actions.add_parser("list", help="name all recipes").set_defaults(run=_list_recipes)
    _add_copy(actions, "recipes")
    check = actions.add_parser("check", help="tell all that is wrong with a recipe, as a dry run would")
    check.add_argument("name", help="name of a recipe, or a file")
    check.add_argument("--cases", help="case table that it is to be run on; without: the recipe alone")
    check.add_argument("--rounds", type=int, help="override the number of rounds")
    check.set_defaults(run=_check_recipe)
    cost = actions.add_parser("cost", help="tell on paper what a recipe costs: GPU hours, wall time, disk, jobs")
    cost.add_argument("name", help="name of a recipe, or a file")
    cost.add_argument("--cases", type=int, required=True, help="cases to learn from and to label")
    cost.add_argument("--test-cases", type=int, default=50)
    cost.add_argument("--gpu", default="A100", help="A100, H100 or H200; any other with --tflops")
    cost.add_argument("--cards", type=int, default=1, help="GPUs that the run may use at once")
    cost.add_argument("--tflops", type=float, help="TFLOPS of the GPU in training, where measured")
    cost.add_argument("--workers", type=int, help="processes that load batches; default: as a run on a GPU has")
    cost.add_argument("--rounds", type=int, help="override the number of rounds")
    cost.add_argument("--scans", type=Path, nargs="+", default=[], help="CT scans whose prepared size is measured")
    cost.set_defaults(run=_cost_of_recipe)


def _show_recipe(options) -> None:
    from labelloop.recipe import load_recipe
    from labelloop.run.chain import describe, mermaid

    recipe = load_recipe(options.name, rounds=options.rounds)
    print(mermaid(recipe) if options.graph else describe(recipe), end="")


def _list_recipes(_options) -> None:
    from labelloop.base.lookup import known
    from labelloop.recipe import load_recipe

    for name in known("recipes"):
        try:
            print(f"{name:22}{load_recipe(name).description.strip()}")
        except UserError as error:
            print(f"{name:22}cannot be used: {error}")


def _check_recipe(options) -> None:
    from labelloop.recipe import load_recipe
    from labelloop.run.run import Run

    if options.cases is None:
        load_recipe(options.name, rounds=options.rounds)
        print(f"{options.name}: no error. Whether cases suffice: --cases TABLE")
        return
    run = Run({"cases": options.cases, "recipe": options.name, "rounds": options.rounds})
    for warning in run.warnings():
        print(f"{options.cases}: {warning}")
    run.refuse_problems()
    print(f"{options.name}: no error. {run.summary()}")


def _add_dataset(commands) -> None:
    parser = commands.add_parser("dataset", help="look at and copy data sets: what label ids mean")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="name all data sets").set_defaults(run=_list_datasets)
    _add_copy(actions, "datasets")


def _list_datasets(_options) -> None:
    from labelloop.base.lookup import known
    from labelloop.images.datasets import read_dataset

    for name in known("datasets"):
        dataset = read_dataset(name)
        print(f"{name:22}{dataset.modality}: {', '.join(dataset.annotated) or 'in each case what its row says'}")


def _add_classes(commands) -> None:
    parser = commands.add_parser("classes", help="look at and copy class schemes: names, ids, rules of anatomy")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="name all class schemes").set_defaults(run=_list_classes)
    _add_copy(actions, "classes")


def _list_classes(_options) -> None:
    from labelloop.base.classes import load_classes
    from labelloop.base.lookup import known

    for name in known("classes"):
        print(f"{name:22}{', '.join(load_classes(name).names)}")


def _add_copy(actions, kind: str) -> None:
    parser = actions.add_parser("copy", help="copy one to edit it")
    parser.add_argument("name", help="name, or a file")
    parser.add_argument("file", type=Path, nargs="?", help=f"file to write; default: config/{kind}/NAME.yaml")
    parser.set_defaults(run=_copy, kind=kind)


def _copy(options) -> None:
    from labelloop.cli.init import copy

    print(copy(options.kind, options.name, options.file))


def _cost_of_recipe(options) -> None:
    from labelloop.recipe import load_recipe
    from labelloop.run.cost import Setting, cost_of, lines, measure
    from labelloop.run.resources import IMAGE_BYTES

    o = options
    for name in ("cases", "test_cases", "cards", "workers", "tflops"):
        value = getattr(o, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be above 0")
    recipe = load_recipe(o.name, rounds=o.rounds)
    try:
        stored = list(measure(recipe, o.scans))
    except CaseError as error:
        raise UserError(str(error)) from error
    for one in stored:
        print(f"{one.scan}, plan {one.plan}: {one.bytes / one.voxels:.2f} bytes a voxel, {one.bytes / 1e6:.1f} MB")
    taken = sum(s.bytes for s in stored) / sum(s.voxels for s in stored) if stored else IMAGE_BYTES
    given = {"workers": o.workers} if o.workers else {}
    setting = Setting(o.cases, o.gpu, o.cards, o.test_cases, o.tflops, bytes_a_voxel=taken, **given)
    print("\n".join(lines(cost_of(recipe, setting))))


def _add_schema(commands) -> None:
    parser = commands.add_parser("schema", help="for developers: write the JSON schemas and the reference page anew")
    parser.set_defaults(run=_schema)


def _schema(options) -> None:
    from labelloop.base.files import write_text
    from labelloop.base.lookup import PACKED, PROJECT
    from labelloop.cli.schemas import generated

    if PROJECT == PACKED:
        raise UserError("schema: writes files of labelloop's own, so it needs a checkout; this one is installed")
    for path, text in generated(PROJECT).items():
        write_text(path, text)
        print(path)
