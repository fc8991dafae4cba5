"""The command ``labelloop infer``: a folder or file in, label maps and tables out."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from labelloop.base.classes import BACKGROUND, IGNORE, IGNORED, ClassScheme
from labelloop.base.documents import read_json
from labelloop.base.errors import UserError
from labelloop.base.files import write_json
from labelloop.base.heartbeat import counted
from labelloop.base.outputs import claim, claims, refuse_folder_of_inputs, refuse_overwriting, release
from labelloop.base.sequences import flat
from labelloop.base.shards import Ledger
from labelloop.base.tables import read_table, write_table
from labelloop.base.wording import count, named, shown
from labelloop.images.datasets import Dataset, load_dataset
from labelloop.images.listing import NAME, LeftOut, is_utf8
from labelloop.images.nnunet_json import NAME as IDS
from labelloop.images.volume import Volume
from labelloop.inference.budget import Budget
from labelloop.inference.find_cases import find_cases
from labelloop.inference.masks import Masks
from labelloop.inference.nnunet_files import model_name
from labelloop.inference.reading import InputImage
from labelloop.inference.running import Options, Segmenter, SideOutput, efficiency, rows, run_cases
from labelloop.inference.settings import Settings
from labelloop.inference.steps import InferenceStep
from labelloop.networks.nnunet_plan import NnunetPlan
from labelloop.networks.plans import Plan

if TYPE_CHECKING:
    from labelloop.inference.postprocess import Model

log = logging.getLogger(__name__)
TABLES_WRITTEN = ("summary", "efficiency", "verdicts")
VERDICTS = "verdicts.csv"
ALL_FINE, SOME_FAILED, NOTHING_USABLE = 0, 1, 2


def infer(
    inputs: Path,
    model_folders: Path | Sequence[Path] | Mapping[str, Path],
    out: Path,
    *,
    steps: Sequence[Mapping | InferenceStep] | None = None,
    scheme: ClassScheme | None = None,
    settings: Settings | None = None,
    device: str = "auto",
    modality: str = "CT",
    sequence: str = "",
    resume: bool = True,
    budget: Budget | None = None,
    preview: bool = False,
    check: bool = False,
    series: str = "",
    progress: bool = False,
    meter: bool = False,
    dataset: str | Path | None = None,
    folds: Sequence[str] = (),
    mirror: bool | None = None,
    masks: bool = False,
    dicom_seg: bool = False,
) -> int:
    """Segment all images of ``inputs`` into ``out``: ``<case>.nii.gz``, ``summary.csv`` and ``efficiency.csv``.

    Args:
        inputs: see :func:`~labelloop.inference.find_cases.find_cases`.
        model_folders: one, several, or a mapping of names (those in ``steps``) to folders. Unnamed folders go by the
            folder's name. Folders and zips of nnU-Net's are first written to ``out``/models as folders of ours.
        steps: an ``inference`` chain; default: one ``segment`` step with all models.
        scheme: names of class sets in ``steps``, the colors of previews, and the rules of anatomy.
        sequence: MR sequence of the images, for models that want them upright: some sequences tell which end is up.
        resume: keep the cases that an earlier run finished with the same image, models and settings.
        budget: memory to keep. With a limit on RAM, images are not read ahead.
        preview: draw ``previews/<case>.png``.
        check: hold the label maps against the scheme's rules of anatomy, and write ``verdicts.csv``.
        series: number or UID of the DICOM series to take, where a folder holds several.
        dataset: data set file by which the models' ids become those of ``scheme``; None: they stay.
        folds: of models of nnU-Net's; default: all.
        mirror: average over mirrored images, along the axes that were mirrored in training; None: models of nnU-Net's.
        masks, dicom_seg: also write a mask a class, or a DICOM segmentation (by ``scheme``) of each DICOM series.
        progress: show a bar, if standard error is a terminal. meter: measure the GPU's memory over time and its energy.

    Returns:
        Exit code: 0 all cases are done, 1 some failed (``shards/infer.csv`` in ``out`` says why) or are named like
        images and cannot be read (the log says which), 2 none is done.

    Raises:
        UserError: when inputs or models cannot be used at all, or when inputs or files of others would be written over.
    """
    lost: list[LeftOut] = []
    folders, budget, out = _named(model_folders), budget or Budget(), Path(out)
    found = find_cases(inputs, modality, series, lost, partial(_take_several, folders))
    cases = [replace(case, sequence=sequence) for case in found]
    named_by, drawn = _named_by(dataset, scheme, preview or check or dicom_seg), scheme if preview else None
    beside = _beside(out, scheme, masks, dicom_seg)
    _claim(inputs, cases, out)
    ledger = Ledger(out, "infer", tries=0, resume=resume)
    models = partial(_loaded_models, folders, out / "models", settings, device, budget, folds, mirror, cases)
    load = _Loader(partial(_load_models, models, steps, scheme, named_by, check, preview), cases, beside, out / IDS)
    try:
        with counted("case", len(cases)):
            run_cases(cases, load, ledger, _options(out, budget, drawn, load, progress, meter, beside))
    finally:
        release(out)
    done = _tell_done(ledger, cases)
    if scheme is not None and check and done:
        _check(done, ledger, load.segmenter, scheme)
    return _outcome(len(done), len(cases) - len(done), len(lost), ledger)


def _beside(out: Path, scheme: ClassScheme | None, masks: bool, dicom_seg: bool) -> list[SideOutput]:
    """Return what writes more files of each case."""
    writers: list[SideOutput] = [Masks(out)] if masks else []
    if dicom_seg and scheme is not None:
        from labelloop.inference.dicom_seg import Segmentations

        writers.append(Segmentations(out, scheme))
    return writers


def _named_by(dataset: str | Path | None, scheme: ClassScheme | None, needed: bool) -> Dataset | None:
    """Return the data set by which ids are told; refuse what cannot be done without a class scheme."""
    if scheme is None and (needed or dataset):
        raise UserError(
            "previews, checks, data set files and DICOM segmentations need a class scheme for names and rules"
        )
    return load_dataset(dataset, scheme) if dataset and scheme else None


def _options(
    out: Path,
    budget: Budget,
    drawn: ClassScheme | None,
    load: "_Loader",
    progress: bool,
    meter: bool,
    beside: Sequence[SideOutput],
) -> Options:
    return Options(
        read_ahead=budget.max_ram_mb is None,
        previews=out / "previews" if drawn else None,
        draw=partial(_picture, drawn, load) if drawn else None,
        beside=beside,
        discard=_Beside(out).remove,
        progress=progress and sys.stderr.isatty(),
        meter=meter,
    )


def _tell_done(ledger: Ledger, cases: Sequence[InputImage]) -> list[InputImage]:
    """Write the tables of what was found, and tell it; return the cases that are done."""
    extras, summary = ledger.extras(), rows(ledger)
    write_table(ledger.folder / "summary.csv", summary, "summary")
    write_table(ledger.folder / "efficiency.csv", efficiency(ledger), "efficiency")
    log.info("%d of %s done, results in %s", len(extras), count(len(cases), "case"), ledger.folder)
    tell_found_nowhere(summary)
    return [case for case in cases if case.case in extras]


def _check(done: Sequence[InputImage], ledger: Ledger, segmenter: Segmenter, scheme: ClassScheme) -> None:
    from labelloop.inference.anatomy import check_label_maps  # pandas, and the rules

    check_label_maps(done, ledger, segmenter, scheme)


def _outcome(done: int, failed: int, lost: int, ledger: Ledger) -> int:
    """Tell what failed and what was left out; return the exit code."""
    if failed:
        log.warning("%s failed, see %s", count(failed, "case"), ledger.manifest)
    if ledger.lacking:
        log.warning(
            "%s: not all could be made that was asked for, see %s", named(sorted(ledger.lacking)), ledger.manifest
        )
    if lost:
        log.warning("%s left out that cannot be read, see above", count(lost, "input"))
    if not done:
        return NOTHING_USABLE
    return SOME_FAILED if failed or lost or ledger.lacking else ALL_FINE


def tell_found_nowhere(summary: Sequence[Mapping]) -> None:
    """Warn of classes that have no voxel in any case.

    Args:
        summary: rows of the table "summary".
    """
    found: dict[str, float] = {}
    for row in summary:
        found[row["class"]] = found.get(row["class"], 0.0) + row["volume_ml"]
    nowhere = [name for name, volume in found.items() if not volume]
    if nowhere:
        log.warning("found in no case: %s (%d of %s)", ", ".join(nowhere), len(nowhere), count(len(found), "class"))


def _claim(inputs: Path, cases: Sequence[InputImage], out: Path) -> None:
    """Check that nothing is written over what is read or what others wrote, and note the names to be written as ours.

    Raises:
        UserError: see :mod:`labelloop.base.outputs`.
    """
    read = flat(case.files for case in cases)
    folders = {path if path.is_dir() else path.parent for path in read}
    refuse_folder_of_inputs(out, {inputs, *folders})
    if not is_utf8(out):
        raise UserError(f"{shown(out)}: {NAME}")
    names = [f"{case.case}.nii.gz" for case in cases]
    pictures = [f"previews/{case.case}.png" for case in cases]
    tables = [f"{kind}.csv" for kind in TABLES_WRITTEN]
    written = (*names, *pictures, *tables, IDS)
    refuse_overwriting([out / name for name in written], read, claims(out).__contains__)
    claim(out, written)


class _Beside:
    """Files that this folder's calls made, or are to make, of label maps: what is to go with an earlier label map."""

    def __init__(self, out: Path):
        self._out = out

    @cached_property
    def _by_case(self) -> dict[str, list[Path]]:
        """``masks/<case>/...``, ``previews/<case>.png`` and the like."""
        found: dict[str, list[Path]] = {}
        for path in claims(self._out):
            below = path.relative_to(self._out).parts[1:]
            if below:
                case = below[0] if len(below) > 1 else path.stem
                found.setdefault(case, []).append(path)
        return found

    @cached_property
    def _judged(self) -> set[str]:
        """Cases whose label maps the table of verdicts judges."""
        table = self._out / VERDICTS
        return set(read_table(table, "verdicts")["case"]) if table.is_file() else set()

    def remove(self, case: str) -> None:
        """Remove what there is of a case, and the table of verdicts if it judges its label map."""
        verdicts = [self._out / VERDICTS] if case in self._judged else []
        there = [path for path in (*self._by_case.get(case, ()), *verdicts) if path.is_file()]
        for path in there:
            path.unlink()
        if there:
            log.info("%s: removed with its label map: %s", case, named([shown(path) for path in there]))


class _Loader:
    """Loads what segments when it is called, and keeps it as ``segmenter``; tells its classes to ``beside``.

    It writes to ``ids`` what the ids of the label maps mean, as nnU-Net does: whoever scores or checks them reads it.
    """

    def __init__(
        self, load: Callable[[], Segmenter], cases: Sequence[InputImage], beside: Sequence[SideOutput], ids: Path
    ):
        self._load, self._cases, self._beside, self._ids = load, cases, beside, ids

    def __call__(self) -> Segmenter:
        self.segmenter = self._load()
        self._say_ids()
        for writer in self._beside:
            writer.begin(self._cases, self.segmenter.class_ids)
        return self.segmenter

    def _say_ids(self) -> None:
        """Write what the ids mean. Refuse to say something else than what holds for label maps of other cases there.

        A label map without ignored voxels is read alike, whether or not it is said that there may be some.
        """
        from labelloop.inference.relabel import Relabeled

        labels = {"background": BACKGROUND} | dict(self.segmenter.class_ids)
        ignored = {IGNORE: IGNORED} if isinstance(self.segmenter, Relabeled) and self.segmenter.ignores else {}
        out, own = self._ids.parent, {f"{case.case}.nii.gz" for case in self._cases}
        label_maps = [path for path in claims(out) if path.parent == out and path.name.endswith(".nii.gz")]
        others = sorted(path.name for path in label_maps if path.name not in own and path.is_file())
        before = read_json(self._ids).get("labels") if others and self._ids.is_file() else None
        if before is not None:
            ignored |= {IGNORE: before.pop(IGNORE)} if IGNORE in before else {}
        if before is not None and before != labels:
            there, here = (named([f"{value} {name}" for name, value in ids.items()]) for ids in (before, labels))
            raise UserError(
                f"{shown(self._ids)}: says what the ids mean in {count(len(others), 'label map')} of other images "
                f"({named(others)}): {there}. Those of this call are: {here}. Write to another folder (--out), or "
                "segment these images in this call, too, so that all are made anew"
            )
        write_json(self._ids, {"labels": labels | ignored})


def _load_models(
    models_of: "Callable[[], dict[str, Model]]",
    steps: Sequence[Mapping | InferenceStep] | None,
    scheme: ClassScheme | None,
    dataset: Dataset | None,
    check: bool,
    preview: bool,
) -> Segmenter:
    from labelloop.inference.engine import Predictor  # torch: imported while the first image is read
    from labelloop.inference.postprocess import Chain
    from labelloop.inference.relabel import Relabeled

    models = models_of()
    chain = Chain(steps or [{"segment": list(models)}], models, scheme)
    alone = chain.predictor(next(iter(models))) if steps is None and len(models) == 1 else None
    segmenter: Chain | Predictor | Relabeled = alone or chain
    if dataset is not None and scheme is not None:
        segmenter = Relabeled(alone or chain, dataset, scheme)
    if check and scheme is not None:
        _check_scheme(segmenter.classes, scheme)
    if preview and scheme is not None:
        _tell_not_drawn(segmenter.classes, scheme)
    return segmenter


def _loaded_models(
    folders: Mapping[str, Path],
    home: Path,
    settings: Settings | None,
    device: str,
    budget: Budget,
    folds: Sequence[str],
    mirror: bool | None,
    cases: Sequence[InputImage],
) -> "dict[str, Model]":
    """Return the models by name; those of nnU-Net's mirror as nnU-Net does, unless ``mirror`` says otherwise.

    Raises:
        UserError: also when a model takes images of other channels than all cases have.
    """
    from labelloop.inference.engine import Predictor
    from labelloop.inference.nnunet import import_nnunet, is_nnunet, tell_unfit
    from labelloop.inference.postprocess import load_model

    theirs = {name for name, folder in folders.items() if is_nnunet(folder)}
    if folds and len(theirs) < len(folders):
        raise UserError("--folds: only models of nnU-Net's have folds")
    models = {}
    for name, folder in folders.items():
        ours = import_nnunet(folder, home, folds) if name in theirs else folder
        model = load_model(ours, device, settings, budget)
        plan = model.plan
        if isinstance(model, Predictor) and (isinstance(plan, NnunetPlan) if mirror is None else mirror):
            model = model.with_settings(mirror_axes=model.model.mirror_axes)
        _check_channels(name, plan, cases)
        tell_unfit(name, plan, (case.modality for case in cases))
        models[name] = model
    return models


def _take_several(folders: Mapping[str, Path]) -> bool:
    """Say whether models take images of several channels, by their files; what is wrong with these is told later."""
    from labelloop.inference.nnunet import described_nnunet, is_nnunet

    for folder in folders.values():
        description = folder / "model.json"
        if description.is_file():
            plan = read_json(description).get("plan") or {}
            channels = plan.get("channels") if isinstance(plan, dict) else None
        else:
            described = described_nnunet(folder).plan if is_nnunet(folder) else None
            channels = described.channels if described else None
        if channels:
            return True
    return False


def _check_channels(model: str, plan: Plan, cases: Sequence[InputImage]) -> None:
    """Refuse cases none of which has the channels of a model; single ones fail by themselves."""
    if any(len(case.files) == plan.inputs for case in cases):
        return
    listed = f" ({', '.join(plan.channels)})" if plan.channels else ""
    found = f"{count(len(cases[0].files), 'file')}, {named([file.name for file in cases[0].files])}"
    raise UserError(
        f"{model} takes images of {count(plan.inputs, 'channel')}{listed}, and {cases[0].case} has {found}. Give a "
        "folder with <case>_0000 and, of several channels, <case>_0001, ... on one grid, in the order of the model. If "
        "_0000 and _0001 are numbers of cases, rename the files"
    )


def _check_scheme(known: Sequence[str], scheme: ClassScheme) -> None:
    """Refuse to check label maps, before they are made, by a scheme that lacks classes or whose rules are at fault."""
    from labelloop.labels.check import load_rules

    load_rules(scheme)
    unknown = [name for name in known if name not in scheme.ids]
    if unknown:
        raise UserError(f"--check: classes {scheme.name} lack {', '.join(unknown)}; name the models' with --classes")


def _tell_not_drawn(known: Sequence[str], scheme: ClassScheme) -> None:
    """Warn of classes for which a scheme has no color."""
    unknown = [name for name in known if name not in scheme.ids]
    if unknown:
        log.warning("--preview: classes %s lack %s, so these are not drawn", scheme.name, named(unknown))


def _picture(scheme: ClassScheme, load: _Loader, case: InputImage, image: Volume, labels: Volume) -> bytes:
    from labelloop.images.pictures import CT_WINDOW, case_picture
    from labelloop.inference.labelmaps import in_ids_of

    labels = Volume(in_ids_of(labels.array, load.segmenter.class_ids, scheme.ids), labels.geometry)
    return case_picture(image, labels, scheme, window=CT_WINDOW if case.modality == "CT" else None, legend=True)


def _named(folders: Path | Sequence[Path] | Mapping[str, Path]) -> dict[str, Path]:
    if isinstance(folders, Mapping):
        return {name: Path(folder) for name, folder in folders.items()}
    some = [folders] if isinstance(folders, (str, Path)) else list(folders)
    named = {model_name(folder): Path(folder) for folder in some}
    if not named or len(named) < len(some):
        raise UserError(f"model folders must have different names: {', '.join(map(str, some)) or 'none given'}")
    return named
