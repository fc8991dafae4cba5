"""Label sets: fuse, agree, check, select, and their arrays in network space.

REQUIRED INPUTS: predictions of the models that a label set names, survey tables.
OUTPUTS: {R}/labels/<set>, {R}/prepared/<plan>/labels/<set>
"""


rule fuse:
    """Fuse predictions with the truth class by class, truth first, then clean in named, counted steps."""
    input:
        annotation=f"{R}/survey/{{shard}}.annotation.csv",
        geometry=f"{R}/survey/{{shard}}.geometry.csv",
        predictions=predictions_of,
    output:
        manifest=f"{R}/labels/{{labels}}/shards/{{shard}}.csv",
        provenance=f"{R}/labels/{{labels}}/provenance/{{shard}}.csv",
    log:
        f"{R}/logs/fuse/{{labels}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/fuse/{{labels}}/{{shard}}.tsv"
    retries: 1
    resources:
        mem_mb=memory(6000),
        runtime=minutes(120),
    params:
        number=lambda w: len(run.shards[w.shard]),
        spec=lambda w: run.label_set(w.labels).model_dump(
            mode="json", include={"predict", "cases", "classes", "fuse", "clean"}
        ),
        known=lambda w: {
            m: list(run.model(m).classes) for m in run.label_set(w.labels).predict
        },
        cases=lambda w: run.rows(w.shard),
        classes=run.chain.classes,
        groups=run.groups(),
        version=2,
    message:
        "fuse: label set {wildcards.labels}, {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/fuse.py"


rule agree:
    """Measure how far the models of a label set disagree, per case and class."""
    input:
        predictions=predictions_of,
    output:
        f"{R}/labels/{{labels}}/disagreement/{{shard}}.csv",
    log:
        f"{R}/logs/agree/{{labels}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/agree/{{labels}}/{{shard}}.tsv"
    retries: 1
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        number=lambda w: len(run.shards[w.shard]),
        models=lambda w: list(run.label_set(w.labels).predict),
        known=lambda w: {
            m: list(run.model(m).classes) for m in run.label_set(w.labels).predict
        },
        classes=run.chain.classes,
        version=1,
    message:
        "agree: label set {wildcards.labels}, {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/agree.py"


rule check:
    """Hold every label map against the rules of anatomy; every verdict has its number and reason."""
    input:
        unpack(thresholds_of),
        manifest=f"{R}/labels/{{labels}}/shards/{{shard}}.csv",
        annotation=f"{R}/survey/{{shard}}.annotation.csv",
        provenance=f"{R}/labels/{{labels}}/provenance/{{shard}}.csv",
        volumes=volumes_of,
    output:
        f"{R}/labels/{{labels}}/verdicts/{{shard}}.csv",
    log:
        f"{R}/logs/check/{{labels}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/check/{{labels}}/{{shard}}.tsv"
    retries: 1
    resources:
        mem_mb=memory(4000),
        runtime=minutes(120),
    params:
        number=lambda w: len(run.shards[w.shard]),
        cases=lambda w: run.rows(w.shard),
        rules=run.scheme.model_dump(mode="json"),
        classes=lambda w: list(run.label_set(w.labels).classes),
        version=2,
    message:
        "check: label set {wildcards.labels}, {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/check.py"


rule select:
    """Decide which cases and classes of a label set are trusted, and say why not."""
    input:
        unpack(label_set_tables),
    output:
        selected=f"{R}/labels/{{labels}}/selected.csv",
        provenance=f"{R}/labels/{{labels}}/provenance.csv",
        verdicts=f"{R}/labels/{{labels}}/verdicts.csv",
        disagreement=f"{R}/labels/{{labels}}/disagreement.csv",
    log:
        f"{R}/logs/select/{{labels}}.log",
    benchmark:
        f"{R}/benchmarks/select/{{labels}}.tsv"
    retries: 1
    resources:
        mem_mb=memory(4000),
        runtime=minutes(30),
    params:
        spec=lambda w: run.label_set(w.labels).model_dump(
            mode="json", include={"classes", "select"}
        ),
        classes=run.chain.classes,
        version=1,
    message:
        "select: trusted cases and classes of label set {wildcards.labels}"
    script:
        "../scripts/select_classes.py"


rule prepare_labels:
    """Bring the labels of a shard into network space, on the grids of the prepared images."""
    input:
        label_source,
        images=f"{R}/prepared/{{plan}}/shards/{{shard}}.csv",
    output:
        manifest=f"{R}/prepared/{{plan}}/labels/{{labels}}/shards/{{shard}}.csv",
    log:
        f"{R}/logs/prepare_labels/{{plan}}/{{labels}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/prepare_labels/{{plan}}/{{labels}}/{{shard}}.tsv"
    retries: 1
    resources:
        mem_mb=memory(6000),
        runtime=minutes(120),
    params:
        number=lambda w: len(run.shards[w.shard]),
        cases=lambda w: run.rows(w.shard),
        classes=run.chain.classes,
        version=1,
    message:
        "prepare: {params.number} labels ({wildcards.labels}) of shard {wildcards.shard} for plan {wildcards.plan}"
    script:
        "../scripts/prepare_labels.py"
