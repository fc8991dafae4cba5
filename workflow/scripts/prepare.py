"""Prepare the images of one shard for a plan."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "prepare", plan="fine", shard="train-000")

from labelloop.gpu_lease import lease_gpus
from labelloop.steps.cases import prepare

translator = snakemake.input.get("translator")

with lease_gpus(snakemake.resources.device if translator else "cpu"):
    prepare(
        rows=snakemake.params.cases,
        plan=snakemake.params.plan,
        shard=snakemake.wildcards.shard,
        survey_folder=Path(snakemake.input.geometry).parent,
        out=Path(snakemake.output.manifest).parents[1],
        version=snakemake.params.version,
        translator=Path(translator[0]).parent if translator else None,
        device=snakemake.resources.device,
    )
