"""Write the report page."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "report")

from labelloop.steps.report import report

report(
    rows=snakemake.params.cases,
    results=Path(snakemake.output[0]).parents[1],
    recipe=snakemake.params.recipe,
    graph=snakemake.params.graph,
    classes=snakemake.params.classes,
    evaluated=snakemake.params.evaluated,
    models=snakemake.params.models,
    labels=snakemake.params.labels,
    translations=snakemake.params.translations,
    out=Path(snakemake.output[0]),
)
