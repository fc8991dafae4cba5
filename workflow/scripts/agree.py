"""Measure the disagreement of models on one shard."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "agree", labels="pseudo", shard="train-000")

from labelloop.steps.labels import agree

out = Path(snakemake.output[0]).parent
agree(
    models=snakemake.params.models,
    before=snakemake.params.before,
    known=snakemake.params.known,
    classes=snakemake.params.classes,
    shard=snakemake.wildcards.shard,
    results=out.parents[2],
    out=out,
    version=snakemake.params.version,
)
