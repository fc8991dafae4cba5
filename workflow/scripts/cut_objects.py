"""Cut the tumor objects of one shard."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "cut_objects", plan="fine", bank="student", shard="train-000")

from labelloop.steps.labels import cut_objects

prepared = Path(snakemake.input.images).parents[1]
cut_objects(
    rows=snakemake.params.cases,
    settings=snakemake.params.settings,
    classes=snakemake.params.classes,
    labels=snakemake.params.labels,
    spacing_mm=snakemake.params.spacing_mm,
    shard=snakemake.wildcards.shard,
    results=prepared.parents[1],
    prepared=prepared,
    bank=Path(snakemake.output.manifest).parents[1],
    version=snakemake.params.version,
)
