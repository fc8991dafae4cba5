"""The front door of labelloop: configuration, the steps, the targets. `snakemake -n` shows the whole chain."""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")


configfile: "config/config.yaml"


# Used with --sdm apptainer only; envs/workflow.Dockerfile says how it is built.
container: "envs/labelloop.sif"


include: "workflow/rules/common.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/cases.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/adapt.smk"
include: "workflow/rules/labels.smk"
include: "workflow/rules/inference.smk"
include: "workflow/rules/report.smk"


rule all:
    """Everything that a recipe leads to: tables, models, label sets, predictions, scores, the report.

    All outputs are named, not only the ends: Snakemake does not miss a file on the way to an end that is there.
    """
    default_target: True
    input:
        expand(rules.survey.output, shard=run.shards),
        rules.collect.output,
        rules.group.output,
        [
            expand(rules.prepare.output, plan=run.images(m), shard=run.train_shards)
            for m in run.used_models
        ],
        [
            expand(
                rules.prepare_labels.output,
                plan=run.images(m),
                arrays=run.arrays(m),
                labels=run.model(m).labels,
                shard=run.train_shards,
            )
            for m in run.used_models
            if m not in run.translators
        ],
        [
            expand(
                rules.cut_objects.output,
                plan=run.images(m),
                bank=run.bank(m),
                shard=run.train_shards,
            )
            for m in run.used_models
            if run.model(m).trainer.cutmix
        ],
        expand(
            rules.train.output,
            model=[m for m in run.used_models if m in run.segmenters],
        ),
        [
            expand(rules.train_slices.output, model=m)
            for m in run.used_models
            if m in run.slice_classifiers
        ],
        rules.upright.output if run.upright else [],
        [
            expand(rules.train_translator.output, model=m)
            for m in run.used_models
            if m in run.translators
        ],
        [expand(rules.structure.output, plan=plan) for plan in run.translations],
        [expand(rules.predict.output, model=m, shard=s) for m, s in run.predictions()],
        expand(rules.transfer.output, labels=run.transferring(), shard=run.train_shards),
        expand(rules.fuse.output, labels=run.used_labels, shard=run.train_shards),
        expand(rules.agree.output, labels=run.compared(), shard=run.train_shards),
        expand(rules.check.output, labels=run.checked(), shard=run.train_shards),
        expand(rules.held_out.output, labels=run.compared(), shard=run.train_shards),
        expand(rules.select.output, labels=run.used_labels),
        expand(rules.infer.output, shard=run.infer_shards),
        rules.summarize.output,
        expand(rules.check_final.output, shard=run.checked_final()),
        expand(rules.evaluate.output, name=run.evaluated()),
        expand(rules.review.output, labels=run.used_labels),
        rules.report.output,
    message:
        "all: everything is there"


if workflow.is_main_process and repair.broken:
    for each in workflow.rules:
        each.set_input(make_broken_anew)
