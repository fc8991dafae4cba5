"""Survey, groups and prepared images: the steps of ``workflow/rules/cases.smk``."""

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from labelloop.base.classes import load_classes
from labelloop.base.errors import UserError
from labelloop.base.files import digest
from labelloop.base.paths import model_of
from labelloop.base.shards import Ledger
from labelloop.base.tables import TABLES, read_table, write_table
from labelloop.cases.groups import Group, group_cases
from labelloop.cases.survey import merge_survey, survey_shard
from labelloop.networks.nnunet_plan import parse_plan, unfit_for
from labelloop.steps.common import SurveyTables, as_cases, read_cases, read_many

log = logging.getLogger(__name__)


def survey(
    rows: Sequence[dict[str, str]],
    classes: str,
    cases: Path,
    geometry: Path,
    annotation: Path,
    quarantine: Path,
    profiles: Path,
    manifest: Path,
    tested: Path | None = None,
) -> None:
    """Survey the cases of one shard, and write down its rows of the case table, which all later steps read.

    Args:
        rows: the shard's rows of the case table.
        cases, geometry, annotation, quarantine, profiles: tables to write.
        manifest: manifest to write; it lists no files.
        tested: table of the images that are tested on; cases with one of them are set aside.
    """
    images = read_table(tested, "tested") if tested else None
    contents: dict[str, str] = {}
    if images is not None:
        contents = dict(zip(images["image_voxels"], images["case"], strict=True))
    found = survey_shard(as_cases(rows), load_classes(classes), Ledger.of(manifest), contents)
    write_table(cases, [case.model_dump() for case in as_cases(rows)], "cases")
    write_table(geometry, found["geometry"], "geometry")
    write_table(annotation, found["annotation"], "annotation")
    write_table(quarantine, found["quarantine"], "quarantine")
    write_table(profiles, found["profiles"], "profiles")


def tested(surveys: Sequence[Path], table: Path) -> None:
    """Write which images are tested on, from the geometry tables of all test shards."""
    images = read_many(surveys, "geometry")[list(TABLES["tested"])]
    write_table(table, images.drop_duplicates("image_voxels"), "tested")


def collect(
    rejected: list[dict[str, str]],
    shard_cases: Sequence[Path],
    shard_geometry: Sequence[Path],
    shard_annotation: Sequence[Path],
    shard_quarantine: Sequence[Path],
    shard_profiles: Sequence[Path],
    cases: Path,
    geometry: Path,
    annotation: Path,
    quarantine: Path,
) -> None:
    """Join the survey tables of all shards; rows of the case table that were refused join the quarantine.

    Raises:
        UserError: when nothing usable is left.
    """
    rows = read_many(shard_cases, "cases")
    tables = {"geometry": shard_geometry, "annotation": shard_annotation}
    tables |= {"quarantine": shard_quarantine, "profiles": shard_profiles}
    merged = merge_survey(tables, rejected, as_cases(rows.to_dict("records")))
    for kind, path in (("geometry", geometry), ("annotation", annotation), ("quarantine", quarantine)):
        write_table(path, merged[kind], kind)
    usable, aside = merged["geometry"], read_table(quarantine, "quarantine")
    log.info(
        "survey: %d cases usable, %d set aside", len(usable), aside[aside["severity"] == "error"]["case"].nunique()
    )
    if usable.empty:
        reasons = "\n".join(f"  {row.case}: {row.code}: {row.found}" for row in aside.itertuples())
        raise UserError(f"none of {len(rows)} cases can be used:\n{reasons}")
    write_table(cases, rows, "cases")


def group(cases: Path, annotation: Path, classes: str, groups: dict[str, dict], table: Path) -> None:
    """Write which groups every surveyed case belongs to."""
    own = {name: Group.model_validate(content) for name, content in groups.items()}
    known = {case.case: case for case in read_cases([cases])}
    found = group_cases(read_table(annotation, "annotation"), known, load_classes(classes), own)
    write_table(table, found, "groups")
    counts = found["group"].value_counts()
    log.info("groups: %s", ", ".join(f"{name} {counts[name]}" for name in sorted(counts.index)))


def prepare(
    survey: SurveyTables,
    plan: dict[str, Any],
    manifest: Path,
    version: int,
    translator: Sequence[Path] = (),
    device: str = "cpu",
) -> None:
    """Prepare the images of one shard for a plan: ``<case>.b2nd``, beside the manifest.

    Args:
        manifest: manifest to write.
        translator: files of the model that CT goes through, of plans that translate.
    """
    from labelloop.inference.prepare import prepare_image
    from labelloop.inference.prepared import write_image_array

    settings, items = parse_plan(plan), survey.usable()
    for words in unfit_for(settings, (item.case.modality for item in items)):
        log.warning("the plan, of a model of nnU-Net's, %s", words)
    translating = _Translation(model_of(translator[0]), device) if translator else None
    ledger = Ledger.of(manifest)
    for item in items:
        look = translating if item.case.modality == "CT" else None

        def work(item=item, look=look):
            prepared = prepare_image(item.all_channels(), settings, item.case.modality)
            path = ledger.folder / f"{item.id}.b2nd"
            array = look.of_mr(prepared.array[0]) if look else prepared.array
            write_image_array(path, array, prepared.frame.as_dict())
            return path, {}

        made_by = [look.key] if look else []
        key = digest([version, item.image_key, settings.images, item.case.modality, *made_by])
        ledger.run(item.id, key, work)
    ledger.close()


class _Translation:
    """A translator, loaded when the first CT needs it."""

    def __init__(self, folder: Path, device: str):
        self._folder, self._device = folder, device
        self.key = json.loads((folder / "model.json").read_text(encoding="utf-8"))["weights_sha256"]

    @cached_property
    def _loaded(self):
        from labelloop.inference.engine import choose_device
        from labelloop.inference.translate import load_generator

        return load_generator(self._folder, choose_device(self._device))

    def of_mr(self, array: np.ndarray) -> np.ndarray:
        """Return a prepared CT with the look of MR."""
        from labelloop.inference.translate import translate

        network, settings = self._loaded
        return translate(network, array, settings.patch, settings.overlap)
