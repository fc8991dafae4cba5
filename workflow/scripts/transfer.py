"""Carry labels from one MR sequence to the others, for one shard."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "transfer", labels="transferred", shard="train-000")

from labelloop.steps.transfer import transfer

out = Path(snakemake.output.manifest).parents[1]
transfer(
    rows=snakemake.params.cases,
    relatives=snakemake.params.relatives,
    spec=snakemake.params.spec,
    known=snakemake.params.known,
    classes=snakemake.params.classes,
    groups=snakemake.params.groups,
    shard=snakemake.wildcards.shard,
    shards=snakemake.params.shards,
    results=out.parents[2],
    out=out,
    version=snakemake.params.version,
)
