"""Prepare the images of one shard for a plan."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "prepare", plan="fine", shard="train-000")

from labelloop.steps.cases import prepare

prepare(
    rows=snakemake.params.cases,
    plan=snakemake.params.plan,
    shard=snakemake.wildcards.shard,
    survey_folder=Path(snakemake.input.geometry).parent,
    out=Path(snakemake.output.manifest).parents[1],
    version=snakemake.params.version,
)
