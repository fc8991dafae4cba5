"""Train one model."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "train", model="teacher")

from labelloop.gpu_lease import lease_gpus
from labelloop.resources import loader_workers
from labelloop.steps.models import train

objects = snakemake.input.get("objects")
cards = max(1, snakemake.resources.gpu)

with lease_gpus(snakemake.resources.device, cards):
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
        bank=Path(objects[0]).parents[1] if objects else None,
        device=snakemake.resources.device,
        deterministic=snakemake.params.deterministic,
        workers=loader_workers(snakemake.resources.workers, snakemake.threads // cards),
        cards=cards,
        stage=snakemake.resources.get("stage"),
    )
