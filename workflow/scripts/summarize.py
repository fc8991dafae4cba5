"""Join volumes, confidence and run times; write down the inference chain."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "summarize")

from labelloop.steps.inference import summarize

summarize(
    summaries=snakemake.input.summary,
    efficiencies=snakemake.input.efficiency,
    steps=snakemake.params.steps,
    engine=snakemake.params.engine,
    classes=snakemake.params.classes,
    results=Path(snakemake.output.inference).parent,
)
