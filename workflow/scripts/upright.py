"""Decide which cases are stored upside down."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "upright")

from labelloop.steps.adapt import upright

upright(
    rows=snakemake.params.cases,
    judged=snakemake.input.judged,
    geometry=Path(snakemake.input.geometry),
    out=Path(snakemake.output[0]),
)
