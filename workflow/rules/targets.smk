"""Stages that can be asked for by name, as `snakemake labels`: cases, models, labels, predictions, scores.

`report` (report.smk) and `all` (Snakefile) are the other two. All outputs of a stage are named, not only its ends:
Snakemake does not miss a file on the way to an end that is there.
"""


localrules:
    cases,
    models,
    labels,
    predictions,
    scores,


rule cases:
    """Read every scan once: the tables of cases, what is annotated, groups, and what was set aside with its reason."""
    input:
        expand(rules.survey.output, shard=run.shards),
        rules.collect.output,
        rules.group.output,
        rules.upright.output if run.upright else [],
    message:
        "cases: every scan is known"


rule models:
    """Train all models of the recipe, and make the label sets that they learn from."""
    input:
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
            if run.cutmix(m)
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
        [
            expand(rules.train_translator.output, model=m)
            for m in run.used_models
            if m in run.translators
        ],
        [expand(rules.structure.output, plan=plan) for plan in run.translations],
    message:
        "models: all are trained"


rule labels:
    """Make all label sets, fused, checked and selected, with the models that they need; queue what is doubtful for review."""
    input:
        [expand(rules.predict.output, model=m, shard=s) for m, s in run.predictions()],
        expand(rules.transfer.output, labels=run.transferring(), shard=run.train_shards),
        expand(rules.fuse.output, labels=run.used_labels, shard=run.train_shards),
        expand(rules.agree.output, labels=run.compared(), shard=run.train_shards),
        expand(rules.check.output, labels=run.checked(), shard=run.train_shards),
        expand(rules.held_out.output, labels=run.compared(), shard=run.train_shards),
        expand(rules.select.output, labels=run.used_labels),
        expand(rules.review.output, labels=run.used_labels),
    message:
        "labels: all label sets are selected"


rule predictions:
    """Make the final label maps, with their volumes and run times, and all that they need."""
    input:
        expand(rules.infer.output, shard=run.infer_shards),
        rules.summarize.output,
        expand(rules.check_final.output, shard=run.checked_final()),
    message:
        "predictions: the final label maps are there"


rule scores:
    """Score the test cases against their truth, with all that this needs."""
    input:
        expand(rules.evaluate.output, name=run.evaluated()),
    message:
        "scores: the test cases are scored"
