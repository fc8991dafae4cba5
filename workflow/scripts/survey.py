"""Survey one shard."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "survey", shard="train-000")

from labelloop.steps.cases import survey

survey(
    rows=snakemake.params.cases,
    classes=snakemake.params.classes,
    shard=snakemake.wildcards.shard,
    out=Path(snakemake.output.geometry).parent,
    tested=Path(snakemake.input.tested) if snakemake.input.tested else None,
)
