"""Judge pseudo-labels of held-out cases of one shard, and hold them against their truth."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "held_out", labels="pseudo", shard="train-000")

from labelloop.steps.held_out import held_out

labels = Path(snakemake.output[0]).parents[1]
held_out(
    rows=snakemake.params.cases,
    spec=snakemake.params.spec,
    known=snakemake.params.known,
    scheme=snakemake.params.rules,
    learned=snakemake.input.learned,
    patients=snakemake.params.patients,
    agreement=snakemake.input.disagreement,
    volumes=snakemake.input.volumes,
    thresholds=snakemake.input.get("thresholds"),
    shard=snakemake.wildcards.shard,
    results=labels.parents[1],
    labels=labels,
    version=snakemake.params.version,
)
