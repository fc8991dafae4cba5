"""Fuse and clean the label maps of one shard."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "fuse", labels="pseudo", shard="train-000")

from labelloop.steps.labels import fuse

fuse(
    rows=snakemake.params.cases,
    spec=snakemake.params.spec,
    known=snakemake.params.known,
    classes=snakemake.params.classes,
    groups=snakemake.params.groups,
    shard=snakemake.wildcards.shard,
    results=Path(snakemake.input.geometry).parents[1],
    out=Path(snakemake.output.manifest).parents[1],
    version=snakemake.params.version,
)
