"""Predicted quality of labels: known errors in the truth, what is known of each label, and the prediction.

REQUIRED INPUTS: survey tables, predictions of the models that a label set names, its label maps and tables.
OUTPUTS: errors, labels/<set>/evidence, labels/<set>/quality.csv
"""


rule corrupt:
    """Put known errors into the truth, and measure what they look like; once a run."""
    input:
        unpack(surveyed),
    output:
        table=shard_table(paths.errors),
        manifest=manifest_of(paths.errors),
    log:
        paths.log("corrupt", "{shard}"),
    benchmark:
        paths.benchmark("corrupt", "{shard}")
    resources:
        mem_mb=memory(6000),
        runtime=minutes(240),
    params:
        number=lambda w: shards.size(w.shard),
        rules=run.scheme.model_dump(mode="json"),
        version=6,
    message:
        "corrupt: known errors in the labeled of {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/step.py"


rule measure:
    """Measure what is known of the labels that models made, and of predictions for patients that none learned from."""
    input:
        unpack(surveyed),
        relatives=relatives_of,
        maps=manifest_of(paths.labels()),
        provenance=shard_table(paths.labels(), "provenance"),
        predictions=predictions_of,
        transferred=transferred_to,
        learned=learned_by,
        disagreement=shard_table(paths.labels(), "disagreement"),
        reviewed=shard_table(paths.labels(), "reviewed"),
        volumes=volumes_of,
        carried=carried_to,
    output:
        table=shard_table(paths.evidence()),
        manifest=manifest_of(paths.evidence()),
    log:
        paths.log("measure", "{labels}/{shard}"),
    benchmark:
        paths.benchmark("measure", "{labels}/{shard}")
    resources:
        mem_mb=memory(6000),
        runtime=minutes(240),
    params:
        number=lambda w: shards.size(w.shard),
        spec=label_set_spec("predict", "classes", "clean"),
        known=known_classes,
        learned_from=lambda w: run.external.learned_from(w.labels),
        rules=run.scheme.model_dump(mode="json"),
        version=6,
    message:
        "measure: label set {wildcards.labels}, {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/step.py"


rule quality:
    """Learn from labels with a true DSC what that of the others is, with an interval and what lowers it."""
    input:
        cases=expand(paths.survey("cases"), shard=shards.train),
        errors=expand(shard_table(paths.errors), shard=shards.train),
        evidence=lambda w: expand(
            shard_table(paths.evidence(w.labels)), shard=shards.train
        ),
        reviewed=lambda w: expand(
            shard_table(paths.labels(w.labels), "reviewed"), shard=shards.train
        ),
    output:
        table=paths.label_table("quality"),
    log:
        paths.log("quality", "{labels}"),
    benchmark:
        paths.benchmark("quality", "{labels}")
    resources:
        mem_mb=memory(8000),
        runtime=minutes(120),
    params:
        classes=run.chain.classes,
        trigger=trigger(4, run.scheme.fingerprint()),
    message:
        "quality: predicted DSC of the labels of {wildcards.labels}"
    script:
        "../scripts/step.py"
