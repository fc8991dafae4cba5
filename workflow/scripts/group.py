"""Name the groups of every case."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "group")

from labelloop.steps.cases import group

group(
    cases=Path(snakemake.input.cases),
    annotation=Path(snakemake.input.annotation),
    classes=snakemake.params.classes,
    groups=snakemake.params.groups,
    out=Path(snakemake.output[0]),
)
