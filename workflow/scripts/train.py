"""Train one model."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "train", model="teacher")

from labelloop.gpu_lease import lease_gpus
from labelloop.steps.models import train

with lease_gpus(snakemake.resources.device, snakemake.resources.gpu):
    train(
        rows=snakemake.params.cases,
        name=snakemake.wildcards.model,
        spec=snakemake.params.spec,
        plan=snakemake.params.plan,
        classes=snakemake.params.classes,
        groups=snakemake.params.groups,
        shards=[Path(manifest).stem for manifest in snakemake.input.images],
        results=Path(snakemake.output.model).parents[2],
        images=Path(snakemake.input.images[0]).parents[1],
        labels=Path(snakemake.input.labels[0]).parents[1],
        learned=snakemake.input.get("learned", []),
        objects=snakemake.input.get("objects", []),
        device=snakemake.resources.device,
        deterministic=snakemake.params.deterministic,
        workers=snakemake.resources.workers,
        threads=snakemake.threads,
        cards=snakemake.resources.gpu,
        stage=snakemake.resources.get("stage"),
    )
