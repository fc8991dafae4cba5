"""Label sets: transfer, fuse, agree, check, select, and their arrays in network space.

REQUIRED INPUTS: predictions of the models that a label set names, survey tables.
OUTPUTS: {R}/labels/<set>, {R}/prepared/<plan>/labels/<set> and organs/<set>, {R}/prepared/<plan>/objects/<model>
"""


rule transfer:
    """Carry labels from one MR sequence of a patient to the others, and refuse those that do not fit."""
    input:
        unpack(transfer_inputs),
        upright=upright_table,
    output:
        manifest=f"{R}/labels/{{labels}}/transferred/shards/{{shard}}.csv",
        carried=f"{R}/labels/{{labels}}/transferred/confidence/{{shard}}.csv",
        transfers=f"{R}/labels/{{labels}}/transfers/{{shard}}.csv",
    log:
        f"{R}/logs/transfer/{{labels}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/transfer/{{labels}}/{{shard}}.tsv"
    resources:
        mem_mb=memory(6000),
        runtime=minutes(240),
    params:
        number=lambda w: len(run.shards[w.shard]),
        spec=lambda w: run.label_set(w.labels).model_dump(
            mode="json",
            include={"predict", "predict_for", "cases", "clean", "transfer"},
            exclude_none=True,
        ),
        known=lambda w: list(run.model(run.label_set(w.labels).predict[0]).classes),
        cases=lambda w: run.rows(w.shard),
        relatives=lambda w: [
            run.row(case)
            for cases in run.relatives(w.shard).values()
            for case in cases
        ],
        shards=lambda w: list(run.relatives(w.shard)),
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint(),
        groups=run.groups(),
        version=2,
    message:
        "transfer: label set {wildcards.labels}, {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/transfer.py"


rule fuse:
    """Fuse predictions with the truth class by class, truth first, then clean in named, counted steps."""
    input:
        unpack(transferred),
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
    resources:
        mem_mb=memory(6000),
        runtime=minutes(120),
    params:
        number=lambda w: len(run.shards[w.shard]),
        spec=lambda w: run.label_set(w.labels).model_dump(
            mode="json",
            include={
                *("predict", "predict_for", "cases", "classes"),
                *("fuse", "tumor_voxels", "clean", "transfer"),
            },
            exclude_none=True,
        ),
        known=lambda w: {
            m: list(run.model(m).classes) for m in run.label_set(w.labels).predict
        },
        cases=lambda w: run.rows(w.shard),
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint(),
        groups=run.groups(),
        version=3,
    message:
        "fuse: label set {wildcards.labels}, {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/fuse.py"


rule agree:
    """Measure how far the models of a label set disagree, per case and class."""
    input:
        predictions=predictions_of,
        earlier=predictions_before,
    output:
        f"{R}/labels/{{labels}}/disagreement/{{shard}}.csv",
    log:
        f"{R}/logs/agree/{{labels}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/agree/{{labels}}/{{shard}}.tsv"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        number=lambda w: len(run.shards[w.shard]),
        models=lambda w: list(run.label_set(w.labels).predict),
        before=lambda w: run.leading_before(w.labels),
        known=lambda w: {
            m: list(run.model(m).classes)
            for m in (
                *run.label_set(w.labels).predict,
                *run.leading_before(w.labels),
            )
        },
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint(),
        version=3,
    message:
        "agree: label set {wildcards.labels}, {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/agree.py"


rule check:
    """Hold every label map against the rules of anatomy; every verdict has its number and reason."""
    input:
        unpack(thresholds_of),
        unpack(transferred),
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


rule held_out:
    """Let labeled cases of patients that no model learned from go the way of unlabeled ones, then see their truth."""
    input:
        unpack(thresholds_of),
        predictions=predictions_of,
        learned=learned_by,
        disagreement=f"{R}/labels/{{labels}}/disagreement/{{shard}}.csv",
        annotation=f"{R}/survey/{{shard}}.annotation.csv",
        geometry=f"{R}/survey/{{shard}}.geometry.csv",
        volumes=volumes_of,
    output:
        f"{R}/labels/{{labels}}/held_out/{{shard}}.csv",
    log:
        f"{R}/logs/held_out/{{labels}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/held_out/{{labels}}/{{shard}}.tsv"
    resources:
        mem_mb=memory(6000),
        runtime=minutes(120),
    params:
        number=lambda w: len(run.shards[w.shard]),
        spec=lambda w: run.label_set(w.labels).model_dump(
            mode="json",
            include={"predict", "classes", "clean", "check", "select"},
        ),
        known=lambda w: {
            m: list(run.model(m).classes) for m in run.label_set(w.labels).predict
        },
        cases=lambda w: run.rows(w.shard),
        patients=lambda w: {
            case.case: case.patient
            for cases in run.relatives(w.shard).values()
            for case in cases
        },
        rules=run.scheme.model_dump(mode="json"),
        version=1,
    message:
        "held_out: label set {wildcards.labels}, labeled cases of shard {wildcards.shard} of patients that no model learned from"
    script:
        "../scripts/held_out.py"


rule select:
    """Decide which cases and classes of a label set are trusted, and say why not."""
    input:
        unpack(label_set_tables),
    output:
        selected=report(
            f"{R}/labels/{{labels}}/selected.csv",
            caption="../report/selected.rst",
            category="Labels",
            labels={"label set": "{labels}", "table": "trusted or not"},
        ),
        provenance=f"{R}/labels/{{labels}}/provenance.csv",
        verdicts=f"{R}/labels/{{labels}}/verdicts.csv",
        disagreement=f"{R}/labels/{{labels}}/disagreement.csv",
        held_out=f"{R}/labels/{{labels}}/held_out.csv",
        calibration=report(
            f"{R}/labels/{{labels}}/calibration.csv",
            caption="../report/calibration.rst",
            category="Labels",
            labels={"label set": "{labels}", "table": "calibration"},
        ),
        transfers=f"{R}/labels/{{labels}}/transfers.csv",
    log:
        f"{R}/logs/select/{{labels}}.log",
    benchmark:
        f"{R}/benchmarks/select/{{labels}}.tsv"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(30),
    params:
        spec=lambda w: run.label_set(w.labels).model_dump(
            mode="json", include={"classes", "select"}
        ),
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint(),
        version=3,
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
        manifest=f"{R}/prepared/{{plan}}/{{arrays}}/{{labels}}/shards/{{shard}}.csv",
    log:
        f"{R}/logs/prepare_labels/{{plan}}/{{arrays}}/{{labels}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/prepare_labels/{{plan}}/{{arrays}}/{{labels}}/{{shard}}.tsv"
    resources:
        mem_mb=memory(6000),
        runtime=minutes(120),
    params:
        number=lambda w: len(run.shards[w.shard]),
        cases=lambda w: run.rows(w.shard),
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint(),
        version=1,
    message:
        "prepare: {params.number} {wildcards.arrays} ({wildcards.labels}) of shard {wildcards.shard} for plan {wildcards.plan}"
    script:
        "../scripts/prepare_labels.py"


rule cut_objects:
    """Cut tumors with their surroundings out of a shard's prepared images, for trainings that paste them (CutMix)."""
    input:
        unpack(objects_inputs),
    output:
        manifest=f"{R}/prepared/{{plan}}/objects/{{bank}}/shards/{{shard}}.csv",
        index=f"{R}/prepared/{{plan}}/objects/{{bank}}/index/{{shard}}.csv",
    log:
        f"{R}/logs/cut_objects/{{plan}}/{{bank}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/cut_objects/{{plan}}/{{bank}}/{{shard}}.tsv"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        number=lambda w: len(run.shards[w.shard]),
        cases=lambda w: run.rows(w.shard),
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint(),
        labels=lambda w: run.model(w.bank).labels,
        settings=lambda w: run.model(w.bank).trainer.cutmix.cut.model_dump(mode="json"),
        spacing_mm=lambda w: run.chain.plans[w.plan].spacing_mm,
        version=1,
    message:
        "cut tumors: {params.labels}, {params.number} cases of shard {wildcards.shard} for plan {wildcards.plan}"
    script:
        "../scripts/cut_objects.py"
