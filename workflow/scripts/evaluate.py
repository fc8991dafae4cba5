"""Score label maps of the test cases."""

from pathlib import Path

from labelloop.scripting import job

snakemake = job(globals(), "evaluate", name="final")

from labelloop.steps.inference import evaluate

evaluate(
    rows=snakemake.params.cases,
    manifests=snakemake.input.manifests,
    survey_folder=Path(snakemake.input.annotation[0]).parent,
    classes=snakemake.params.classes,
    known=snakemake.params.known,
    rules=snakemake.params.rules,
    out=Path(snakemake.output.scores),
    lesions=Path(snakemake.output.lesions),
    version=snakemake.params.version,
)
