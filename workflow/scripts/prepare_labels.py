"""Prepare the labels of one shard for a plan."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "prepare_labels", plan="fine", arrays="labels", labels="truth", shard="train-000")

from labelloop.steps.labels import prepare_labels

prepared = Path(snakemake.input.images).parents[1]
prepare_labels(
    rows=snakemake.params.cases,
    classes=snakemake.params.classes,
    labels=snakemake.wildcards.labels,
    shard=snakemake.wildcards.shard,
    results=prepared.parents[1],
    prepared=prepared,
    version=snakemake.params.version,
    arrays=snakemake.wildcards.arrays,
)
