"""Stages that can be asked for by name, as `snakemake labels`: cases, models, labels, predictions, scores, trusted.

`report` (report.smk) and `all` (Snakefile) are the other two; `all` asks for all of them but `trusted`.
All outputs of a stage are named, not only its ends: Snakemake does not miss a file on the way to an end that is there.
"""


localrules:
    cases,
    models,
    labels,
    trusted,
    predictions,
    scores,


rule cases:
    """Read every scan once: the tables of cases, what is annotated, groups, and what was set aside with its reason."""
    input:
        expand(rules.survey.output, shard=shards.all),
        rules.collect.output,
        rules.group.output,
        rules.upright.output if wiring.upright else [],
    message:
        "cases: every scan is known"


rule models:
    """Train all models of the recipe, and make the label sets that they learn from."""
    input:
        [
            expand(rules.prepare.output, plan=wiring.images(m), shard=shards.train)
            for m in wiring.used_models
        ],
        [
            expand(
                rules.prepare_labels.output,
                plan=wiring.images(m),
                arrays=wiring.arrays(m),
                labels=wiring.model(m).labels,
                shard=shards.train,
            )
            for m in wiring.used_models
            if m not in wiring.translators
        ],
        [
            expand(
                rules.cut_objects.output,
                plan=wiring.images(m),
                bank=wiring.bank(m),
                shard=shards.train,
            )
            for m in wiring.used_models
            if wiring.cutmix(m)
        ],
        expand(
            rules.train.output,
            model=[m for m in wiring.used_models if m in wiring.segmenters],
        ),
        [
            expand(rules.train_slices.output, model=m)
            for m in wiring.used_models
            if m in wiring.slice_classifiers
        ],
        [
            expand(rules.train_translator.output, model=m)
            for m in wiring.used_models
            if m in wiring.translators
        ],
        [expand(rules.structure.output, plan=plan) for plan in wiring.translations],
    message:
        "models: all are trained"


rule labels:
    """Make all label sets, fused, checked and selected, with the models that they need; queue what is doubtful for review."""
    input:
        [expand(rules.predict.output, model=m, shard=s) for m, s in run.predictions()],
        expand(
            rules.transfer.output,
            labels=wiring.label_sets_transferred,
            shard=shards.train,
        ),
        expand(rules.fuse.output, labels=wiring.used_label_sets, shard=shards.train),
        expand(
            rules.agree.output,
            labels=wiring.label_sets_of_several_models,
            shard=shards.train,
        ),
        expand(rules.check.output, labels=wiring.label_sets_checked, shard=shards.train),
        expand(
            rules.held_out.output,
            labels=wiring.label_sets_of_several_models,
            shard=shards.train,
        ),
        expand(rules.select.output, labels=wiring.used_label_sets),
        expand(rules.review.output, labels=wiring.used_label_sets),
    message:
        "labels: all label sets are selected"


rule trusted:
    """Show what is trusted of all label sets as label maps. Asked for by name alone: they are as large as the sets."""
    input:
        expand(rules.trust.output, labels=wiring.used_label_sets, shard=shards.train),
    message:
        "trusted: label maps in which refused classes are blank are there"


rule predictions:
    """Make the final label maps, with their volumes and run times, and all that they need."""
    input:
        expand(rules.infer.output, shard=shards.final),
        rules.summarize.output,
        expand(rules.check_final.output, shard=run.checked_shards()),
    message:
        "predictions: the final label maps are there"


rule scores:
    """Score the test cases against their truth, with all that this needs."""
    input:
        expand(rules.evaluate.output, name=run.evaluated()),
    message:
        "scores: the test cases are scored"
