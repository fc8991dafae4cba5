"""The front door of labelloop: configuration, the steps, the targets. `snakemake -n` shows the whole chain."""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")


configfile: "config/config.yaml"


# One pinned environment for all rules; build it from envs/Dockerfile and run with --sdm apptainer.
container: "envs/labelloop.sif"


include: "workflow/rules/common.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/cases.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/labels.smk"
include: "workflow/rules/inference.smk"
include: "workflow/rules/report.smk"


rule all:
    """Everything that a recipe leads to: tables, models, label sets, predictions, scores, the report."""
    default_target: True
    input:
        f"{R}/report/index.html",
        f"{R}/predictions/summary.csv",
        expand("{r}/evaluation/{name}.csv", r=R, name=run.evaluated()),
