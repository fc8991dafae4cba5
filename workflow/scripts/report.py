"""Write the report page."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "report")

from labelloop.steps.report import report

report(
    rows=snakemake.params.cases,
    results=Path(snakemake.output.page).parents[1],
    recipe=snakemake.params.recipe,
    chain=snakemake.params.chain,
    graph=snakemake.params.graph,
    classes=snakemake.params.classes,
    evaluated=snakemake.params.evaluated,
    models=snakemake.params.models,
    labels=snakemake.params.labels,
    translations=snakemake.params.translations,
    out=Path(snakemake.output.page),
    attention=Path(snakemake.output.attention),
)
