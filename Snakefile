"""The front door of labelloop: configuration, the steps, the targets. `snakemake -n` shows the whole chain."""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")


configfile: "config/config.yaml"


# What `snakemake --report` tells on its first page.
report: "workflow/report/run.rst"


# Used with --sdm apptainer only; envs/workflow.Dockerfile says how it is built.
container: "envs/labelloop.sif"


include: "workflow/rules/common.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/cases.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/adapt.smk"
include: "workflow/rules/labels.smk"
include: "workflow/rules/quality.smk"
include: "workflow/rules/inference.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/targets.smk"


localrules:
    all,


rule all:
    """Everything that a recipe leads to: all stages and the report."""
    default_target: True
    input:
        (
            before_review(run.waits_for)
            if run.waits_for
            else [
                rules.cases.input,
                rules.models.input,
                rules.labels.input,
                rules.predictions.input,
                rules.scores.input,
                rules.report.output,
            ]
        ),
    message:
        "all: everything is there"


if workflow.is_main_process and repair.broken:
    for each in workflow.rules:
        each.set_input(make_broken_anew)
