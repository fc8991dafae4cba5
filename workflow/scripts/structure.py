"""Ask whether labels of CT fit their translations, and draw these."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "structure", plan="fake")

from labelloop.steps.adapt import structure

structure(
    rows=snakemake.params.cases,
    plan=snakemake.params.plan,
    classes=snakemake.params.classes,
    translator=Path(snakemake.input.model).parent,
    shards=[Path(manifest).stem for manifest in snakemake.input.images],
    results=Path(snakemake.output.table).parents[2],
    images=Path(snakemake.input.images[0]).parents[1],
    source=Path(snakemake.input.source[0]).parents[1],
    out=Path(snakemake.output.table),
    picture=Path(snakemake.output.picture),
    version=snakemake.params.version,
)
