"""Hold the final label maps of one shard against anatomy."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "check_final", shard="test-000")

from labelloop.steps.inference import check_final

check_final(
    rows=snakemake.params.cases,
    scheme=snakemake.params.rules,
    summary=snakemake.input.summary,
    shard=snakemake.wildcards.shard,
    results=Path(snakemake.input.geometry).parents[1],
    version=snakemake.params.version,
)
