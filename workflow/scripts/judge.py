"""Look which images of one shard are stored upside down."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "judge", shard="train-000")

from labelloop.steps.adapt import judge

judge(
    rows=snakemake.params.cases,
    shard=snakemake.wildcards.shard,
    survey_folder=Path(snakemake.input.geometry).parent,
    out=Path(snakemake.output[0]).parent,
    version=snakemake.params.version,
)
