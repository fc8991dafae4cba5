"""Decide which cases and classes of a label set are trusted."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "select", labels="pseudo")

from labelloop.steps.labels import select

select(
    spec=snakemake.params.spec,
    classes=snakemake.params.classes,
    annotation=snakemake.input.annotation,
    provenance=snakemake.input.provenance,
    verdicts=snakemake.input.get("verdicts", []),
    disagreements=snakemake.input.get("disagreement", []),
    held_out=snakemake.input.get("held_out", []),
    transfers=snakemake.input.get("transfers", []),
    out=Path(snakemake.output.selected).parent,
)
