"""Train one translator."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "train_translator", model="to_t1w")

from labelloop.gpu_lease import lease_gpus
from labelloop.resources import loader_workers
from labelloop.steps.adapt import train_translator

with lease_gpus(snakemake.resources.device):
    train_translator(
        rows=snakemake.params.cases,
        name=snakemake.wildcards.model,
        spec=snakemake.params.spec,
        plan=snakemake.params.plan,
        classes=snakemake.params.classes,
        groups=snakemake.params.groups,
        shards=[Path(manifest).stem for manifest in snakemake.input.images],
        results=Path(snakemake.output.model).parents[2],
        images=Path(snakemake.input.images[0]).parents[1],
        device=snakemake.resources.device,
        deterministic=snakemake.params.deterministic,
        workers=loader_workers(snakemake.resources.workers, snakemake.threads),
        stage=snakemake.resources.get("stage"),
    )
