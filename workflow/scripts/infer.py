"""Run the inference chain over one shard."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "infer", shard="test-000")

from labelloop.gpu_lease import lease_gpus
from labelloop.steps.inference import infer

results = Path(snakemake.input.geometry).parents[1]

with lease_gpus(snakemake.resources.device):
    infer(
        rows=snakemake.params.cases,
        steps=snakemake.params.steps,
        engine=snakemake.params.engine,
        classes=snakemake.params.classes,
        shard=snakemake.wildcards.shard,
        results=results,
        device=snakemake.resources.device,
        deterministic=bool(snakemake.resources.deterministic),
        meter=bool(snakemake.resources.meter),
    )
