"""Label sets: the steps of ``workflow/rules/labels.smk``."""

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labelloop.base.classes import BACKGROUND, IGNORED, ClassScheme, load_classes
from labelloop.base.errors import CaseError
from labelloop.base.files import digest
from labelloop.base.shards import Ledger
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.base.wording import count
from labelloop.cases.annotation import PRESENT, UNKNOWN, States, annotated, from_table
from labelloop.cases.usable import UsableCase
from labelloop.images.volume import Geometry, Volume, canonical, read, restore, write
from labelloop.labels.agree import differing
from labelloop.labels.agree import disagreement as compare
from labelloop.labels.calibrate import SCORE, calibrate_held_out
from labelloop.labels.check import check as check_labels
from labelloop.labels.clean import clean
from labelloop.labels.fit import load_fitted, with_fitted
from labelloop.labels.fuse import fuse as fuse_labels
from labelloop.labels.fuse import give_tumor_to_organs, leave_ignored
from labelloop.labels.select import reviewed_states, with_acceptance
from labelloop.labels.select import select as select_classes
from labelloop.labels.settings import HELD_OUT, PSEUDO, SelectSettings, TumorVoxels
from labelloop.review.decisions import Reviews
from labelloop.review.opinion import Opinion, key_of, opinion_of
from labelloop.steps.common import Files, SurveyTables, in_groups, read_many, table_of

log = logging.getLogger(__name__)


def fuse(
    survey: SurveyTables,
    predictions: Sequence[Path],
    spec: dict[str, Any],
    known: dict[str, list[str]],
    classes: str,
    groups: dict[str, dict],
    manifest: Path,
    provenance: Path,
    reviewed: Path,
    reviews: str,
    version: int,
    transferred: Path | None = None,
) -> None:
    """Fuse what reviewers say of one shard, the truth and the predictions, clean, and write label maps and provenance.

    Reviewers go before annotators, and annotators before models, class by class.

    A model without a prediction of a case says nothing of it; the others speak. Where no model does and truth comes
    first, the truth stands alone: its classes are kept, nobody labels the others (source "none").

    Args:
        predictions: manifest of each model in ``spec``, in their order.
        spec: what a recipe says of a label set, without ``check`` and ``select``.
        known: the classes (or class sets) that each model knows.
        manifest, provenance: manifest of the label maps and table, to write.
        reviewed: table of what reviewers say of these cases, to write. reviews: folder of their decisions.
        transferred: manifest of labels that were carried from other sequences, and take the predictions' place.
    """
    scheme, ledger = load_classes(classes), Ledger.of(manifest)
    said = Reviews(reviews, classes=scheme.select(spec["classes"]))
    maps = predictions_of(spec["predict"], predictions, transferred)
    items = in_groups(survey.usable(), spec["cases"], scheme, groups)
    asked = {item.id for item in in_groups(items, spec.get("predict_for") or ("all",), scheme, groups)}
    silent = {case for case in asked if not any(case in files for files in maps.values())}
    asked -= {case for case in silent if any(files.withheld(case) for files in maps.values())}
    truth_stands = {item.id for item in items if truth_counts(spec) and annotated(item.states)}
    for model, files in maps.items():
        alone = [case for case in sorted(asked - silent) if case not in files]
        if alone:
            log.warning("model %s has no prediction of %s; the others label them", model, count(len(alone), "case"))
    lacking = asked & truth_stands & silent
    if lacking:
        log.warning("no prediction of %s: the truth stands alone", ", ".join(sorted(lacking)))
    asked -= lacking
    for item in items:
        if item.id not in asked | truth_stands:
            continue
        truth_key = item.truth_key if truth_counts(spec) else ""
        used = speaking_of(item.id, maps) if item.id in asked else {}
        keys = {m: files.key(item.id) for m, files in used.items()}
        made_from = [version, spec, known, scheme.fingerprint(), truth_key, keys, *item.turned, *key_of(said, item.id)]
        work = partial(_fuse_case, item, spec, known, scheme, used or maps, item.id in asked, said, ledger.folder)
        ledger.run(item.id, digest(made_from), work)
    ledger.close()
    write_table(provenance, table_of(ledger.extras(), "provenance"), "provenance")
    rows = table_of(ledger.extras(), "reviewed")
    write_table(reviewed, rows, "reviewed")
    for row in rows.to_dict("records"):
        if row["problem"]:
            log.warning("%s: what is said of %s is not used: %s", row["case"], row["class"], row["problem"])


def truth_counts(spec: dict[str, Any]) -> bool:
    """Say whether annotators have a say in a label set. Where they have none, its cases are as if nobody had looked."""
    return spec["fuse"] == "truth_first"


def predictions_of(
    models: Iterable[str], manifests: Iterable[Path], transferred: Path | None = None
) -> dict[str, Files]:
    """Return the predictions of each model on one shard, from a manifest each.

    Args:
        transferred: manifest of labels that were carried: those take the place of the model's own predictions.
    """
    instead = [transferred] if transferred else []
    pairs = zip(models, manifests, strict=True)
    return {model: Files([manifest], "prediction", instead) for model, manifest in pairs}


def speaking_of(case: str, predictions: dict[str, Files]) -> dict[str, Files]:
    """Return the models that have a prediction of a case; all of them when none has, so that the reason is told."""
    return {model: files for model, files in predictions.items() if case in files} or predictions


def _fuse_case(
    item: UsableCase,
    spec: dict[str, Any],
    known: dict[str, list[str]],
    scheme: ClassScheme,
    predictions: dict[str, Files],
    asked: bool,
    reviews: Reviews,
    out: Path,
) -> tuple[Path, dict]:
    cleaned, grid, provenance = fused_map(item, spec, known, scheme, predictions, asked)
    opinion, without = opinion_of(reviews, item, scheme, grid), cleaned.array
    if opinion.states:
        cleaned, grid, provenance = fused_map(item, spec, known, scheme, predictions, asked, opinion)
    path, stored = out / f"{item.id}.nii.gz", item.as_stored(Volume(restore(cleaned.array, grid), grid))
    write(path, stored.array, stored.geometry)
    return path, {"provenance": provenance, "reviewed": opinion.rows(without, cleaned.array, out.name, scheme)}


def fused_map(
    item: UsableCase,
    spec: dict[str, Any],
    known: dict[str, list[str]],
    scheme: ClassScheme,
    predictions: dict[str, Files],
    asked: bool = True,
    opinion: Opinion | None = None,
) -> tuple[Volume, Geometry, list[dict]]:
    """Return the fused and cleaned map of one case (canonical), the grid of its image, and provenance rows.

    Args:
        asked: whether there are predictions that count; if not, the truth stands alone.
        opinion: what reviewers say, on the same grid; it goes before the truth.
    """
    maps = {model: item.label(files.path(item.id)) for model, files in predictions.items()} if asked else {}
    drawn = item.truth(scheme) if truth_counts(spec) else None
    some = next(iter(maps.values()), drawn)
    if some is None:
        raise CaseError("label_missing", item.id, "neither a prediction nor a truth", "Give the case one of them.")
    grid = some.geometry
    truth = _canonical_truth(item, drawn, grid) if drawn else None
    states: States = item.states if drawn else {}
    if opinion:
        truth, states = opinion.over(truth, states, scheme)
    given = [(model, canonical(volume).array) for model, volume in maps.items()]
    geometry = canonical(Volume(np.empty(grid.shape, np.uint8), grid)).geometry
    voters = {model: scheme.select(known[model]) for model in predictions}
    fused, provenance = fuse_labels(
        truth,
        states,
        given,
        scheme,
        scheme.select(spec["classes"]),
        geometry.voxel_ml,
        voters,
        opinion.states if opinion else (),
    )
    if truth is not None:
        how: TumorVoxels = spec.get("tumor_voxels") or "predicted_organ"
        spacing = geometry.spacing_zyx
        fused, given_to = give_tumor_to_organs(
            fused, truth, states, given, scheme, scheme.select(spec["classes"]), how, spacing, voters
        )
        provenance += given_to
    cleaned, counted = clean(fused, geometry, spec["clean"], scheme, states)
    if truth is not None:
        cleaned, left = leave_ignored(cleaned, truth, states, scheme, scheme.select(spec["classes"]), geometry.voxel_ml)
        counted += left
    return Volume(cleaned, geometry), grid, [*provenance, *counted]


def _canonical_truth(item: UsableCase, truth: Volume, geometry: Geometry) -> np.ndarray:
    if difference := truth.geometry.difference(geometry):
        raise CaseError("label_grid", item.case.label, f"label and prediction differ in {difference}", "Predict anew.")
    return canonical(truth).array


def agree(
    predictions: Sequence[Path],
    models: list[str],
    before: list[str],
    known: dict[str, list[str]],
    classes: str,
    table: Path,
    manifest: Path,
    version: int,
    earlier: Sequence[Path] = (),
) -> None:
    """Write how far the models of a label set disagree on the cases of one shard, on classes that all know.

    Models that say nothing of a case are left out of it; a case of which fewer than two speak has no row.

    Args:
        predictions, earlier: manifest of each of the models, and of those before.
        models: the models of the label set, the leading one first.
        before: the leading model of the round before, if there was one.
        table, manifest: to write.
    """
    scheme = load_classes(classes)
    maps, old_maps = predictions_of(models, predictions), predictions_of(before, earlier)
    shared = [c for c in scheme.names if all(c in scheme.select(known[m]) for m in models)]
    comparable = [c for c in shared if all(c in scheme.select(known[m]) for m in before)]
    ledger = Ledger.of(manifest)
    for case in dict.fromkeys(read_many(predictions, "manifest")["case"]):
        speaking = speaking_of(case, maps)
        quiet = [files for files in maps.values() if files.withheld(case) or not files.asked(case)]
        if len(speaking) < 2 and quiet:
            continue
        compared = speaking if len(speaking) > 1 else maps

        def work(case=case, compared=compared):
            arrays, old = ([read(files.path(case)).array for files in some.values()] for some in (compared, old_maps))
            both = compare([arrays[0], *old], scheme, comparable) if old and models[0] in compared else []
            steady = {row["class"]: row["pairwise_dice"] for row in both}
            rows = compare(arrays, scheme, shared)
            return None, {"rows": [row | {"stability": steady.get(row["class"])} for row in rows]}

        keys = [[files.key(case) for files in some.values()] for some in (maps, old_maps)]
        ledger.run(case, digest([version, shared, *keys]), work)
    ledger.close()
    write_table(table, table_of(ledger.extras(), "rows"), "disagreement")


def check(
    survey: SurveyTables,
    maps: Path,
    provenance: Path,
    reviewed: Path,
    volumes: Sequence[Path],
    rules: dict[str, Any],
    spec: dict[str, Any],
    table: Path,
    manifest: Path,
    version: int,
    carried: Path | None = None,
    thresholds: Path | None = None,
) -> None:
    """Hold the classes of a label set, in the maps of one shard, against the anatomy rules of the class scheme.

    Of other classes, which may be annotated, the maps say nothing; they get no verdict.

    Args:
        maps: manifest of the label maps.
        provenance: table that fusion wrote: what of a class went to another organ.
        reviewed: table that fusion wrote: what reviewers say is known as what annotators say is.
        volumes: confidence tables of the models: a class that none of them found may really be absent.
        rules: the class scheme. spec: ``classes`` and ``fuse`` of the label set.
        table, manifest: to write.
        carried: volumes of labels that were carried to other sequences, where they took the models' place.
        thresholds: file of fitted thresholds that take the place of the scheme's.
    """
    scheme = ClassScheme.model_validate(rules)
    if thresholds:
        scheme = with_fitted(scheme, load_fitted(thresholds))
    names = scheme.select(spec["classes"])
    made = read_table(provenance, "provenance").set_index(["case", "class"])
    unlooked = set(made.query("step == 'fuse' and source == 'none'").index)
    overlapping = made.query("step == 'overlap'")["voxels_changed"]
    lost = {key: int(number) for key, number in zip(overlapping.index.tolist(), overlapping, strict=True)}
    predicted = volumes_said(volumes, carried).groupby(["case", "class"])["volume_ml"].max()
    known = reviewed_states(read_table(reviewed, "reviewed"))
    files, ledger = Files([maps], "label_map"), Ledger.of(manifest)
    for item in survey.usable():
        if item.id in files:
            found = dict(predicted[item.id]) if item.id in predicted else {}
            said = (item.states if truth_counts(spec) else {}) | known.get(item.id, {})
            states = {name: said.get(name, UNKNOWN) for name in names}
            asked = [c for c in names if c in found or states[c] != UNKNOWN]
            asked = [c for c in asked if (item.id, c) not in unlooked]
            nowhere = [c for c in asked if c in found and not found[c]]
            overlap = {name: n for (case, name), n in lost.items() if case == item.id}
            content = [version, scheme.model_dump(mode="json"), files.key(item.id), item.examination_key, states]
            work = partial(_check_case, item, states, scheme, files, asked, nowhere, overlap)
            ledger.run(item.id, digest([*content, asked, nowhere, overlap]), work)
    ledger.close()
    write_table(table, table_of(ledger.extras(), "rows"), "verdicts")


def volumes_said(volumes: Sequence[Path], carried: Path | None) -> pd.DataFrame:
    """Return the rows of the models' confidence tables; of a case that labels were carried to, those of these."""
    predicted = read_many(volumes, "confidence")
    own = read_table(carried, "confidence") if carried else predicted.head(0)
    if not own.empty:
        predicted = pd.concat([predicted[~predicted["case"].isin(own["case"])], own])
    return predicted


def _check_case(
    item: UsableCase,
    states: States,
    scheme: ClassScheme,
    files: Files,
    asked: list[str],
    nowhere: list[str],
    overlap: dict[str, int],
) -> tuple[None, dict]:
    labels, image = canonical(item.label(files.path(item.id))), canonical(item.image())
    found = check_labels(
        labels.array,
        labels.geometry,
        states,
        scheme,
        image.array,
        item.case.modality,
        item.case.surgery_names,
        nowhere,
        asked,
        overlap,
    )
    return None, {"rows": [row for row in found if row["class"] in states]}


def select(
    annotation: Sequence[Path],
    shard_provenance: Sequence[Path],
    shard_reviewed: Sequence[Path],
    spec: dict[str, Any],
    classes: str,
    selected: Path,
    provenance: Path,
    reviewed: Path,
    verdicts: Path,
    disagreement: Path,
    held_out: Path,
    calibration: Path,
    transfers: Path,
    shard_verdicts: Sequence[Path] = (),
    shard_disagreement: Sequence[Path] = (),
    shard_held_out: Sequence[Path] = (),
    shard_transfers: Sequence[Path] = (),
    calibrated: Path | None = None,
    quality: Path | None = None,
) -> None:
    """Decide which cases and classes of a label set are trusted; join the shards' tables on the way.

    Args:
        annotation: the survey's tables of all shards.
        spec: ``classes``, ``fuse`` and ``select`` of a label set.
        selected, provenance, reviewed, verdicts, disagreement, held_out, calibration, transfers: tables to write.
        calibrated: table of thresholds that was made elsewhere, where the label set names one.
        quality: table of predicted quality, where the label set asks for it.
    """
    scheme = load_classes(classes)
    names, settings = scheme.select(spec["classes"]), selection(spec, scheme)
    joined = {"provenance": shard_provenance, "verdicts": shard_verdicts, "disagreement": shard_disagreement}
    joined |= {"reviewed": shard_reviewed, "held_out": shard_held_out, "transfers": shard_transfers}
    tables = {kind: read_many(paths, kind) if paths else empty_table(kind) for kind, paths in joined.items()}
    predicted = read_table(quality, "quality") if quality else empty_table("quality")
    tables["held_out"] = _with_quality(tables["held_out"], predicted)
    tables["calibration"] = _calibration(settings, tables["held_out"], names, calibrated)
    out = {"provenance": provenance, "verdicts": verdicts, "disagreement": disagreement}
    out |= {"reviewed": reviewed, "held_out": held_out, "transfers": transfers, "calibration": calibration}
    given = read_many(annotation, "annotation")
    given = given if truth_counts(spec) else given.assign(state=UNKNOWN)
    pseudo = predicted[predicted["map"] == PSEUDO]

    def decide(
        made: pd.DataFrame, judged: pd.DataFrame, foreseen: pd.DataFrame, said: pd.DataFrame | None = None
    ) -> pd.DataFrame:
        agreement, limits = tables["disagreement"], tables["calibration"]
        return select_classes(given, made, judged, agreement, settings, names, limits, said, foreseen)

    evidence = tables["provenance"], tables["verdicts"], pseudo
    tables["reviewed"] = with_acceptance(tables["reviewed"], *evidence, decide)
    for kind, table in tables.items():
        write_table(out[kind], table, kind)
    chosen = decide(*evidence, tables["reviewed"])
    write_table(selected, chosen, "selected")
    counts = chosen["decision"].value_counts()
    log.info("select: %s", ", ".join(f"{name} {counts[name]}" for name in sorted(counts.index)))


def trust(
    maps: Path,
    selected: Path,
    spec: dict[str, Any],
    known: dict[str, list[str]],
    classes: str,
    manifest: Path,
    version: int,
    predictions: Sequence[Path] = (),
    transferred: Path | None = None,
) -> None:
    """Write the label maps of one shard with nothing in them but what is trusted: what a student learns from.

    A case of which nothing is trusted has no map. Ignored voxels stay ignored.

    Args:
        maps: manifest of the label maps. selected: which classes of a case are trusted.
        spec: ``predict`` of the label set. known: the classes (or class sets) that each of these models knows.
        manifest: to write; the maps go beside it.
        predictions, transferred: as :func:`fuse` takes them, where voxels on which the models differ are ignored.
    """
    scheme, files, ledger = load_classes(classes), Files([maps], "label_map"), Ledger.of(manifest)
    table = read_table(selected, "selected")
    chosen, accepted = from_table(table), from_table(table[table["decision"] == "accepted"])
    made = predictions_of(spec["predict"], predictions, transferred) if predictions else {}
    ids = {model: {scheme.ids[name] for name in scheme.select(known[model])} for model in made}
    for case in sorted(set(read_table(maps, "manifest")["case"]) & chosen.keys()):
        if case not in files:
            continue
        present = sorted(name for name, state in chosen[case].items() if state == PRESENT)
        of_models = sorted(annotated(accepted.get(case, {})))
        compared = {model: one for model, one in made.items() if case in one} if of_models else {}
        kept = present if annotated(chosen[case]) else None
        keys = [[model, one.key(case), sorted(ids[model])] for model, one in compared.items()]
        work = partial(_trust_case, files.path(case), case, kept, of_models, compared, ids, scheme, ledger.folder)
        content = [version, files.key(case), scheme.fingerprint(), present, kept is not None, of_models, keys]
        ledger.run(case, digest(content), work)
    ledger.close()


def _trust_case(
    source: Path,
    case: str,
    present: list[str] | None,
    of_models: list[str],
    predictions: dict[str, Files],
    known: dict[str, set[int]],
    scheme: ClassScheme,
    out: Path,
) -> tuple[Path | None, dict]:
    if present is None:
        return None, {}
    labels, path = read(source), out / f"{case}.nii.gz"
    kept = np.isin(labels.array, [IGNORED, *(scheme.ids[name] for name in present)])
    trusted = np.where(kept, labels.array, np.uint8(BACKGROUND))
    if len(predictions) > 1:
        asked = [scheme.ids[name] for name in of_models]
        given = [read(files.path(case)).array for files in predictions.values()]
        differ = differing(given, [known[model] for model in predictions], asked)
        drawn = [scheme.ids[name] for name in present if name not in of_models]
        trusted[differ & ~np.isin(trusted, drawn)] = IGNORED
    write(path, trusted, labels.geometry)
    return path, {}


def selection(spec: dict[str, Any], scheme: ClassScheme) -> SelectSettings:
    """Return the selection settings of a label set, class sets replaced by classes."""
    settings = SelectSettings.model_validate(spec["select"])
    return settings.model_copy(update={"absent_if_not_found": scheme.select(settings.absent_if_not_found)})


def _calibration(
    settings: SelectSettings, held_out: pd.DataFrame, classes: Sequence[str], calibrated: Path | None
) -> pd.DataFrame:
    """Return the thresholds: those of a table made elsewhere, or calibrated here; none when none are asked for."""
    if settings.target_dsc is None:
        return empty_table("calibration")
    if calibrated:
        return read_table(calibrated, "calibration")
    score = "quality" if settings.score == "quality" else SCORE
    return calibrate_held_out(held_out, settings.target_dsc, settings.confidence, classes, score)


def _with_quality(held_out: pd.DataFrame, quality: pd.DataFrame) -> pd.DataFrame:
    """Return the table of held-out labels with what is predicted of them."""
    mine = quality[quality["map"] == HELD_OUT].set_index(["case", "class"])["dsc"]
    keys = pd.MultiIndex.from_frame(held_out[["case", "class"]])
    return held_out.assign(quality=mine.reindex(keys).to_numpy(float))


def empty_table(kind: str) -> pd.DataFrame:
    """Return a table of a kind without rows."""
    return pd.DataFrame(columns=list(TABLES[kind]))
