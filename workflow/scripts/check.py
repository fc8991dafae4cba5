"""Hold the label maps of one shard against anatomy."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "check", labels="pseudo", shard="train-000")

from labelloop.steps.labels import check

labels = Path(snakemake.input.manifest).parents[1]
check(
    rows=snakemake.params.cases,
    scheme=snakemake.params.rules,
    classes=snakemake.params.classes,
    volumes=snakemake.input.volumes,
    carried=snakemake.input.get("carried"),
    provenance=snakemake.input.provenance,
    thresholds=snakemake.input.get("thresholds"),
    shard=snakemake.wildcards.shard,
    results=labels.parents[1],
    labels=labels,
    version=snakemake.params.version,
)
