"""Let one model label one shard."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "predict", model="teacher", shard="train-000")

from labelloop.gpu_lease import lease_gpus
from labelloop.steps.models import predict

model = Path(snakemake.input.model).parent

with lease_gpus(snakemake.resources.device):
    predict(
        rows=snakemake.params.cases,
        model=model,
        shard=snakemake.wildcards.shard,
        survey_folder=Path(snakemake.input.geometry).parent,
        engine=snakemake.params.engine,
        device=snakemake.resources.device,
        deterministic=bool(snakemake.resources.deterministic),
    )
