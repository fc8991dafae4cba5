"""From CT to MR: which end is up, the translator, what it makes of CT: the steps of ``workflow/rules/adapt.smk``."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.files import atomic, digest
from labelloop.base.paths import ALIGNED, folder_of, model_of
from labelloop.base.shards import Ledger
from labelloop.base.tables import read_table, write_table
from labelloop.cases.table import Case
from labelloop.cases.usable import UsableCase
from labelloop.images.scan import read_surveyed
from labelloop.images.volume import RAS, Geometry, Volume
from labelloop.inference.settings import Device
from labelloop.networks.plans import Plan
from labelloop.networks.settings import UPRIGHT_BY, TranslatorSettings
from labelloop.recipe import ModelSpec
from labelloop.run.resources import Workers, loader_workers
from labelloop.steps.common import Files, SurveyTables, in_groups, read_cases, read_many, table_of
from labelloop.training.settings import Determinism, settings_of

log = logging.getLogger(__name__)
ALIGNMENT_VERSION = 1
"""Raised when the same two images are aligned otherwise."""
SHOWN = 3
"""CTs that are shown: the one whose labels fit worst, the middle one, the best; beside each a real MR."""
BLACK, WHITE = -1.0, 1.0


def detect_upside_down(survey: SurveyTables, table: Path, manifest: Path, version: int) -> None:
    """Write which images of one shard are stored upside down, of those that can tell: CT, and some MR sequences."""
    from labelloop.cases.body import judge_upright
    from labelloop.networks.grey import to_grey

    ledger = Ledger.of(manifest)
    for item in survey.usable():
        if item.case.modality != "CT" and item.case.sequence not in UPRIGHT_BY:
            continue

        def work(item=item):
            stored, modality = read_surveyed(item.case.images[0]), item.case.modality
            return None, asdict(judge_upright(Volume(to_grey(stored.array, modality), stored.geometry), modality))

        ledger.run(item.id, digest([version, item.image_sha256, item.case.modality]), work)
    ledger.close()
    found = [{"case": case, "decided_by": case, "reason": "", **extra} for case, extra in ledger.extras().items()]
    write_table(table, found, "upright")


def upright(cases: Path, geometry: Path, detected: Sequence[Path], table: Path) -> None:
    """Decide which cases are stored upside down: each CT by itself, MR by the image of its patient that tells best.

    Args:
        cases, geometry: tables of all cases, and of the usable ones.
        detected: tables of :func:`detect_upside_down`.
    """
    usable = set(read_table(geometry, "geometry")["case"])
    asked = [case for case in read_cases([cases]) if case.case in usable]
    deciding = {row["case"]: row for row in read_many(detected, "upright").to_dict("records")}
    found = pd.DataFrame([_decided(case, asked, deciding) for case in asked])
    write_table(table, found, "upright")
    log.info("upright: %d of %d cases are stored upside down", (found["upside_down"] == "True").sum(), len(found))


def _decided(case: Case, cases: Sequence[Case], deciding: Mapping[str, dict]) -> dict[str, Any]:
    """Return the row of a case in the ``upright`` table."""
    if case.modality == "CT":
        by = case.case if case.case in deciding else None
        reason = "" if by else "the image could not be judged"
    else:
        of_patient = {c.sequence: c.case for c in cases if c.patient == case.patient and c.case in deciding}
        by = next((of_patient[name] for name in UPRIGHT_BY if name in of_patient), None)
        reason = "" if by else f"the patient has no image that tells which end is up: {', '.join(UPRIGHT_BY)}"
    if by:
        return deciding[by] | {"case": case.case}
    nothing = {"decided_by": "", "dark_low": None, "dark_high": None}
    return {"case": case.case, "upside_down": "False", "reason": reason, **nothing}


def train_translator(
    survey: SurveyTables,
    images: Sequence[Path],
    name: str,
    spec: dict[str, Any],
    plan: dict[str, Any],
    classes: str,
    groups: dict[str, dict],
    model: Path,
    device: Device,
    deterministic: Determinism,
    workers: Workers,
    threads: int,
    stage: str | None = None,
    licenses: dict[str, dict[str, str]] | None = None,
) -> None:
    """Train a translator on prepared images: CT to the look of MR.

    Args:
        images: manifests of the prepared images of the model's plan.
        model: the model's ``model.json``, to write with what lies beside it.
        stage: folder on this node's own disk for a copy of them (see ``training.staging``).
        licenses: of the data sets that it learns from, for ``model.json``.

    Raises:
        UserError: when no CT, no MR or not the reference is left to learn from.
    """
    from labelloop.training.translator import LOOKS, GreyCase, TranslatorJob
    from labelloop.training.translator import train_translator as train

    asked, prepared_by = ModelSpec.model_validate(spec), Plan.model_validate(plan)
    files = Files(images, "prepared_image")
    usable = in_groups(survey.usable(), asked.cases, load_classes(classes), groups)
    cases = {item.id: item for item in usable if item.id in files}
    settings = settings_of(asked.trainer, TranslatorSettings)
    boxes: dict[str, tuple[tuple[int, int], ...] | None] = dict.fromkeys(cases)
    if settings.reference:
        found = aligned(cases, settings.reference, files, prepared_by, model_of(model) / ALIGNED)
        boxes = dict(found.items())
    looks = {
        look: tuple(
            GreyCase(case, files.path(case), files.key(case), box)
            for case, box in boxes.items()
            if cases[case].case.modality == look.upper()
        )
        for look in LOOKS
    }
    log.info("translator %s: %s", name, ", ".join(f"{len(looks[look])} {look.upper()}" for look in LOOKS))
    train(
        TranslatorJob(
            name=name,
            folder=model_of(model),
            plan=prepared_by,
            settings=settings,
            device=device,
            deterministic=deterministic,
            workers=loader_workers(workers, threads),
            stage=stage,
            licenses=licenses or {},
            **looks,
        )
    )


def aligned(
    cases: Iterable[str], reference: str, files: Files, plan: Plan, out: Path
) -> dict[str, tuple[tuple[int, int], ...]]:
    """Align cases with one of them by translation of body masks (He, section 2.1); return what lies in its box.

    Each transform is saved as ``<out>/<case>.json``; those that are there are not sought again. A case that cannot be
    aligned is set aside.

    Raises:
        UserError: when the reference is none of the cases.
    """
    from labelloop.labels.registration import check_reference, part_within, register

    cases = sorted(cases)
    fixed = _body(files.path(check_reference(reference, cases)), plan)
    ledger = Ledger(out, "all")
    for case in cases:

        def work(case=case):
            moving, path = _body(files.path(case), plan), out / f"{case}.json"
            transform = register(fixed, moving, "translation", "masks")
            box = part_within(transform, moving.geometry, fixed.geometry)
            transform.save(path, reference=reference, box=box)
            return path, {"box": box}

        ledger.run(case, digest([ALIGNMENT_VERSION, files.key(reference), files.key(case), plan.spacing_mm]), work)
    ledger.close()
    return {case: tuple(tuple(side) for side in extra["box"]) for case, extra in ledger.extras().items()}


def _body(path: Path, plan: Plan) -> Volume:
    """Return the mask of the body in a prepared image."""
    from labelloop.cases.body import body_mask
    from labelloop.networks.grey import from_network

    seen = _prepared(path, plan)
    return Volume(body_mask(Volume(from_network(seen.array), seen.geometry)), seen.geometry)


def _prepared(path: Path, plan: Plan) -> Volume:
    """Return a prepared image as a canonical volume whose first voxel lies at the origin."""
    from labelloop.inference.prepared import open_image

    array = open_image(path).array[0]
    return Volume(array, _grid(array, plan))


def _grid(array: np.ndarray, plan: Plan) -> Geometry:
    return Geometry(array.shape[::-1], plan.spacing_mm[::-1], direction=tuple(RAS.ravel().tolist()))


def structure(
    survey: SurveyTables,
    plan: dict[str, Any],
    classes: str,
    learned: Path,
    images: Sequence[Path],
    source: Sequence[Path],
    labels: Sequence[Path],
    table: Path,
    picture: Path,
    manifest: Path,
    version: int,
) -> None:
    """Ask whether the labels of each labeled CT still fit its translation, and draw CT, translation and real MR.

    Args:
        learned: table of the cases that the translator was trained with.
        images, source: manifests of the prepared images of a plan that translates, and of the translator's plan.
        labels: manifests of the prepared truth of the plan that translates.
        table, picture, manifest: table of kind "structure", PNG and manifest, to write.
    """
    shown, scheme = Plan.model_validate(plan), load_classes(classes)
    fakes, real = (Files(manifests, "prepared_image") for manifests in (images, source))
    truth = Files(labels, "prepared_label")
    items = [item for item in survey.usable() if item.id in fakes and item.id in real]
    ct = [item for item in items if item.case.modality == "CT"]
    ledger = Ledger.of(manifest)
    for item in ct:
        if item.id in truth:
            key = digest([version, fakes.key(item.id), truth.key(item.id)])
            ledger.run(item.id, key, partial(_fit, item.id, fakes, truth, shown))
    ledger.close()
    found = table_of(ledger.extras(), "rows")
    write_table(table, found, "structure")
    wrong = sorted(found.loc[~found["fits"], "case"]) if len(found) else []
    if wrong:
        log.warning("%s: labels do not fit the translation of %s", folder_of(images[0]).name, ", ".join(wrong))
    known = set(read_table(learned, "training_cases")["case"])
    mr = [item.id for item in items if item.case.modality == "MR" and item.id in known]
    panels = _panels(_telling(found, ct), mr, {"CT": real, "fake": fakes, "MR": real}, truth, shown, scheme)
    with atomic(picture) as temporary:
        temporary.write_bytes(panels)


def _fit(case: str, fakes: Files, labels: Files, plan: Plan) -> tuple[None, dict]:
    from labelloop.inference.structure import structure_fit

    label = _label(case, labels, plan)
    if not label.array.any():
        return None, {"rows": []}
    found = structure_fit(_prepared(fakes.path(case), plan), label)
    return None, {"rows": [{"information": found.information, "shifted": found.shifted, "fits": found.fits}]}


def _label(case: str, labels: Files, plan: Plan) -> Volume:
    from labelloop.inference.prepared import open_label

    array = open_label(labels.path(case)).array[0]
    return Volume(array, _grid(array, plan))


def _telling(table: pd.DataFrame, ct: Sequence[UsableCase]) -> list[str]:
    """Return the CTs to show: those whose labels fit worst, middling and best; any, when no CT has labels."""
    if table.empty:
        return sorted(item.id for item in ct)[:SHOWN]
    ordered = table.assign(margin=table["information"] - table["shifted"]).sort_values(["margin", "case"])["case"]
    places = dict.fromkeys(np.linspace(0, len(ordered) - 1, SHOWN).round().astype(int))
    return [ordered.iloc[place] for place in places]


def _panels(
    ct: Sequence[str],
    mr: Sequence[str],
    files: Mapping[str, Files],
    labels: Files,
    plan: Plan,
    scheme: ClassScheme,
) -> bytes:
    """Return a PNG: in each row a CT, its translation with the outlines of the same labels, and a real MR."""
    from labelloop.images.pictures import case_picture, contact_sheet

    def drawn(look: str, case: str) -> tuple[str, bytes]:
        image = _prepared(files[look].path(case), plan)
        label = (
            _label(case, labels, plan) if case in labels else Volume(np.zeros_like(image.array, int), image.geometry)
        )
        title = {"CT": f"{case}: CT", "fake": f"{case}: translated", "MR": f"{case}: real MR"}[look]
        return title, case_picture(image, label, scheme, window=(BLACK, WHITE), focus=(), panel_width=360)

    tiles = []
    for number, case in enumerate(ct):
        tiles += [drawn("CT", case), drawn("fake", case), drawn("MR", sorted(mr)[number * len(mr) // len(ct)])]
    return contact_sheet(tiles, columns=3, cell=560)
