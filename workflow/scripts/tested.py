"""List the images that are tested on."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "tested")

from labelloop.steps.cases import list_tested

list_tested(list(snakemake.input), Path(snakemake.output[0]))
