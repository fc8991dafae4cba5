"""Write the review queue of a label set."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "review", labels="pseudo")

from labelloop.steps.report import review

review(
    rows=snakemake.params.cases,
    classes=snakemake.params.classes,
    manifests=snakemake.input.manifests,
    labels=Path(snakemake.input.selected).parent,
    out=Path(snakemake.output.table),
    pictures=Path(snakemake.output.pictures),
    limit=snakemake.params.limit,
)
