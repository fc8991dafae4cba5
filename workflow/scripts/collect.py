"""Join the survey tables of all shards."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "collect")

from labelloop.steps.cases import collect

collect(
    rows=snakemake.params.cases,
    rejected=snakemake.params.rejected,
    shards=snakemake.params.shards,
    survey_folder=Path(snakemake.input[0]).parent,
    out=Path(snakemake.output.cases).parent,
)
