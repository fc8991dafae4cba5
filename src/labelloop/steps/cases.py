"""Survey, groups and prepared images: the steps of ``workflow/rules/cases.smk``."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from labelloop.classes import load_classes
from labelloop.errors import UserError
from labelloop.files import digest
from labelloop.groups import Group, group_cases
from labelloop.plans import Plan
from labelloop.shards import Ledger
from labelloop.steps.common import Rows, as_cases, surveyed
from labelloop.survey import merge_survey, survey_shard
from labelloop.tables import read_table, write_table

log = logging.getLogger(__name__)


def survey(rows: Rows, classes: str, shard: str, out: Path) -> None:
    """Survey the cases of one shard; write ``<out>/<shard>.{geometry,annotation,quarantine}.csv``."""
    survey_shard(as_cases(rows), load_classes(classes), out / shard)


def collect(rows: Rows, rejected: list[dict[str, str]], shards: list[str], survey_folder: Path, out: Path) -> None:
    """Join the survey tables of all shards; rows of the case table that were refused join the quarantine.

    Raises:
        UserError: when nothing usable is left.
    """
    merge_survey([survey_folder / shard for shard in shards], out, rejected)
    usable, aside = read_table(out / "geometry.csv", "geometry"), read_table(out / "quarantine.csv", "quarantine")
    log.info(
        "survey: %d cases usable, %d set aside", len(usable), aside[aside["severity"] == "error"]["case"].nunique()
    )
    if usable.empty:
        reasons = "\n".join(f"  {row.case}: {row.code}: {row.found}" for row in aside.itertuples())
        raise UserError(f"none of {len(rows)} cases can be used:\n{reasons}")
    write_table(out / "cases.csv", pd.DataFrame([case.model_dump() for case in as_cases(rows)]), "cases")


def group(cases: Path, annotation: Path, classes: str, groups: dict[str, dict], out: Path) -> None:
    """Write which groups every surveyed case belongs to."""
    own = {name: Group.model_validate(content) for name, content in groups.items()}
    known = {case.case: case for case in as_cases(read_table(cases, "cases").to_dict("records"))}
    table = group_cases(read_table(annotation, "annotation"), known, load_classes(classes), own)
    write_table(out, table, "groups")
    counts = table["group"].value_counts()
    log.info("groups: %s", ", ".join(f"{name} {counts[name]}" for name in sorted(counts.index)))


def prepare(rows: Rows, plan: dict[str, Any], shard: str, survey_folder: Path, out: Path, version: int) -> None:
    """Prepare the images of one shard for a plan: ``<out>/<case>.b2nd``."""
    from labelloop.inference.prepare import prepare_image
    from labelloop.training.prepared import write_image_array
    from labelloop.volume import read

    settings = Plan.model_validate(plan)
    ledger = Ledger(out, shard)
    for item in surveyed(rows, survey_folder, [shard]):

        def work(item=item):
            prepared = prepare_image(read(item.case.image), settings, item.case.modality)
            path = out / f"{item.id}.b2nd"
            write_image_array(path, prepared.array, prepared.frame.as_dict())
            return path, {}

        ledger.run(item.id, digest([version, item.image_sha256, settings.images, item.case.modality]), work)
    ledger.close()
