"""Survey, groups and prepared images: the steps of ``workflow/rules/cases.smk``."""

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from labelloop.classes import load_classes
from labelloop.errors import UserError
from labelloop.files import digest
from labelloop.groups import Group, group_cases
from labelloop.plans import Plan
from labelloop.shards import Ledger
from labelloop.steps.common import Rows, as_cases, read_many, surveyed
from labelloop.survey import merge_survey, survey_shard
from labelloop.tables import TABLES, read_table, write_table

log = logging.getLogger(__name__)


def survey(rows: Rows, classes: str, shard: str, out: Path, tested: Path | None = None) -> None:
    """Survey the cases of one shard; write ``<out>/<shard>.{geometry,annotation,quarantine,profiles}.csv``.

    Args:
        tested: table of the images that are tested on; cases with one of them are set aside.
    """
    images = read_table(tested, "tested") if tested else None
    contents: dict[str, str] = {}
    if images is not None:
        contents = dict(zip(images["image_voxels"], images["case"], strict=True))
    survey_shard(as_cases(rows), load_classes(classes), out / shard, contents)


def list_tested(surveys: Sequence[str], out: Path) -> None:
    """Write which images are tested on, from the geometry tables of all test shards."""
    write_table(out, read_many(surveys, "geometry")[list(TABLES["tested"])].drop_duplicates("image_voxels"), "tested")


def collect(rows: Rows, rejected: list[dict[str, str]], shards: list[str], survey_folder: Path, out: Path) -> None:
    """Join the survey tables of all shards; rows of the case table that were refused join the quarantine.

    Raises:
        UserError: when nothing usable is left.
    """
    merge_survey([survey_folder / shard for shard in shards], out, rejected, as_cases(rows))
    usable, aside = read_table(out / "geometry.csv", "geometry"), read_table(out / "quarantine.csv", "quarantine")
    log.info(
        "survey: %d cases usable, %d set aside", len(usable), aside[aside["severity"] == "error"]["case"].nunique()
    )
    if usable.empty:
        reasons = "\n".join(f"  {row.case}: {row.code}: {row.found}" for row in aside.itertuples())
        raise UserError(f"none of {len(rows)} cases can be used:\n{reasons}")
    write_table(out / "cases.csv", [case.model_dump() for case in as_cases(rows)], "cases")


def group(cases: Path, annotation: Path, classes: str, groups: dict[str, dict], out: Path) -> None:
    """Write which groups every surveyed case belongs to."""
    own = {name: Group.model_validate(content) for name, content in groups.items()}
    known = {case.case: case for case in as_cases(read_table(cases, "cases").to_dict("records"))}
    table = group_cases(read_table(annotation, "annotation"), known, load_classes(classes), own)
    write_table(out, table, "groups")
    counts = table["group"].value_counts()
    log.info("groups: %s", ", ".join(f"{name} {counts[name]}" for name in sorted(counts.index)))


def prepare(
    rows: Rows,
    plan: dict[str, Any],
    shard: str,
    survey_folder: Path,
    out: Path,
    version: int,
    translator: Path | None = None,
    device: str = "cpu",
) -> None:
    """Prepare the images of one shard for a plan: ``<out>/<case>.b2nd``.

    Args:
        translator: model that CT goes through, of plans that translate.
    """
    from labelloop.inference.prepare import prepare_image
    from labelloop.training.prepared import write_image_array

    settings = Plan.model_validate(plan)
    translating = _Look(translator, device) if translator else None
    ledger = Ledger(out, shard)
    for item in surveyed(rows, survey_folder, [shard]):
        look = translating if item.case.modality == "CT" else None

        def work(item=item, look=look):
            prepared = prepare_image(item.image(), settings, item.case.modality)
            path = out / f"{item.id}.b2nd"
            array = look.of_mr(prepared.array) if look else prepared.array
            write_image_array(path, array, prepared.frame.as_dict())
            return path, {}

        made_by = [look.key] if look else []
        key = digest([version, item.image_key, settings.images, item.case.modality, *made_by])
        ledger.run(item.id, key, work)
    ledger.close()


class _Look:
    """A translator, loaded when the first CT needs it."""

    def __init__(self, folder: Path, device: str):
        self._folder, self._device = folder, device
        self.key = json.loads((folder / "model.json").read_text(encoding="utf-8"))["weights_sha256"]

    @cached_property
    def _loaded(self):
        from labelloop.adapt.translate import load_generator
        from labelloop.inference.engine import choose_device

        return load_generator(self._folder, choose_device(self._device))

    def of_mr(self, array: np.ndarray) -> np.ndarray:
        """Return a prepared CT with the look of MR."""
        from labelloop.adapt.translate import translate

        network, settings = self._loaded
        return translate(network, array, settings.patch, settings.overlap)
