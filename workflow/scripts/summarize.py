"""Join volumes, confidence and run times."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "summarize")

from labelloop.steps.inference import summarize

summarize(
    summaries=snakemake.input.summary,
    efficiencies=snakemake.input.efficiency,
    out=Path(snakemake.output.summary).parent,
)
