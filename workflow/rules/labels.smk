"""Label sets: transfer, fuse, agree, check, select, and their arrays in network space.

REQUIRED INPUTS: predictions of the models that a label set names, survey tables.
OUTPUTS: labels/<set>, prepared/<plan>/labels/<set> and organs/<set>, prepared/<plan>/objects/<model>
"""


rule transfer:
    """Carry labels from one MR sequence of a patient to the others, and refuse those that do not fit."""
    input:
        unpack(transfer_inputs),
    output:
        manifest=manifest_of(paths.transferred()),
        carried=shard_table(paths.transferred(), "confidence"),
        transfers=shard_table(paths.labels(), "transfers"),
    log:
        paths.log("transfer", "{labels}/{shard}"),
    benchmark:
        paths.benchmark("transfer", "{labels}/{shard}")
    resources:
        mem_mb=memory(6000),
        runtime=minutes(240),
    params:
        number=lambda w: shards.size(w.shard),
        spec=label_set_spec(
            "predict", "predict_for", "cases", "clean", "transfer", exclude_none=True
        ),
        known=lambda w: wiring.classes(wiring.label_set(w.labels).predict[0]),
        classes=run.chain.classes,
        groups=wiring.groups(),
        trigger=trigger(run.scheme.fingerprint()),
        version=3,
    message:
        "transfer: label set {wildcards.labels}, {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/step.py"


rule fuse:
    """Fuse predictions with the truth class by class, reviewers first, then truth; clean in named, counted steps."""
    input:
        unpack(surveyed),
        predictions=predictions_of,
        transferred=transferred_to,
    output:
        manifest=manifest_of(paths.labels()),
        provenance=shard_table(paths.labels(), "provenance"),
        reviewed=shard_table(paths.labels(), "reviewed"),
    log:
        paths.log("fuse", "{labels}/{shard}"),
    benchmark:
        paths.benchmark("fuse", "{labels}/{shard}")
    resources:
        mem_mb=memory(6000),
        runtime=minutes(120),
    params:
        number=lambda w: shards.size(w.shard),
        spec=label_set_spec(
            *("predict", "predict_for", "cases", "classes"),
            *("fuse", "tumor_voxels", "clean", "transfer"),
            exclude_none=True,
        ),
        known=known_classes,
        classes=run.chain.classes,
        groups=wiring.groups(),
        reviews=lambda w: str(run.reviews(w.labels).folder),
        trigger=lambda w: trigger(
            run.scheme.fingerprint(), *run.reviewed(w.labels, w.shard)
        ),
        version=5,
    message:
        "fuse: label set {wildcards.labels}, {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/step.py"


rule agree:
    """Measure how far the models of a label set disagree, per case and class."""
    input:
        predictions=predictions_of,
        earlier=predictions_before,
    output:
        table=shard_table(paths.labels(), "disagreement"),
        manifest=manifest_of(f"{paths.labels()}/disagreement"),
    log:
        paths.log("agree", "{labels}/{shard}"),
    benchmark:
        paths.benchmark("agree", "{labels}/{shard}")
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        number=lambda w: shards.size(w.shard),
        models=lambda w: list(wiring.label_set(w.labels).predict),
        before=lambda w: wiring.leading_model_before(w.labels),
        known=lambda w: known_classes(w)
        | {m: wiring.classes(m) for m in wiring.leading_model_before(w.labels)},
        classes=run.chain.classes,
        trigger=trigger(run.scheme.fingerprint()),
        version=3,
    message:
        "agree: label set {wildcards.labels}, {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/step.py"


rule check:
    """Hold every label map against the rules of anatomy; every verdict has its number and reason."""
    input:
        unpack(surveyed),
        maps=manifest_of(paths.labels()),
        provenance=shard_table(paths.labels(), "provenance"),
        reviewed=shard_table(paths.labels(), "reviewed"),
        volumes=volumes_of,
        carried=carried_to,
        thresholds=thresholds_of,
    output:
        table=shard_table(paths.labels(), "verdicts"),
        manifest=manifest_of(f"{paths.labels()}/verdicts"),
    log:
        paths.log("check", "{labels}/{shard}"),
    benchmark:
        paths.benchmark("check", "{labels}/{shard}")
    resources:
        mem_mb=memory(4000),
        runtime=minutes(120),
    params:
        number=lambda w: shards.size(w.shard),
        rules=run.scheme.model_dump(mode="json"),
        spec=label_set_spec("classes", "fuse"),
        version=9,
    message:
        "check: label set {wildcards.labels}, {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/step.py"


rule held_out:
    """Let labeled cases of patients that no model learned from go the way of unlabeled ones, then see their truth."""
    input:
        unpack(surveyed),
        relatives=relatives_of,
        predictions=predictions_of,
        transferred=transferred_to,
        learned=learned_by,
        disagreement=shard_table(paths.labels(), "disagreement"),
        reviewed=shard_table(paths.labels(), "reviewed"),
        volumes=volumes_of,
        carried=carried_to,
        thresholds=thresholds_of,
    output:
        table=shard_table(paths.labels(), "held_out"),
        manifest=manifest_of(f"{paths.labels()}/held_out"),
    log:
        paths.log("held_out", "{labels}/{shard}"),
    benchmark:
        paths.benchmark("held_out", "{labels}/{shard}")
    resources:
        mem_mb=memory(6000),
        runtime=minutes(120),
    params:
        number=lambda w: shards.size(w.shard),
        spec=label_set_spec("predict", "classes", "clean", "check", "select"),
        known=known_classes,
        learned_from=lambda w: run.external.learned_from(w.labels),
        rules=run.scheme.model_dump(mode="json"),
        version=6,
    message:
        "held_out: label set {wildcards.labels}, labeled cases of shard {wildcards.shard} of patients that no model learned from"
    script:
        "../scripts/step.py"


rule select:
    """Decide which cases and classes of a label set are trusted, and say why not."""
    input:
        unpack(label_set_tables),
    output:
        selected=report(
            paths.label_table("selected"),
            caption="../report/selected.rst",
            category="Labels",
            labels={"label set": "{labels}", "table": "trusted or not"},
        ),
        provenance=paths.label_table("provenance"),
        reviewed=paths.label_table("reviewed"),
        verdicts=paths.label_table("verdicts"),
        disagreement=paths.label_table("disagreement"),
        held_out=paths.label_table("held_out"),
        calibration=report(
            paths.label_table("calibration"),
            caption="../report/calibration.rst",
            category="Labels",
            labels={"label set": "{labels}", "table": "calibration"},
        ),
        transfers=paths.label_table("transfers"),
    log:
        paths.log("select", "{labels}"),
    benchmark:
        paths.benchmark("select", "{labels}")
    resources:
        mem_mb=memory(4000),
        runtime=minutes(30),
    params:
        spec=label_set_spec("classes", "fuse", "select"),
        classes=run.chain.classes,
        trigger=trigger(6, run.scheme.fingerprint()),
    message:
        "select: trusted cases and classes of label set {wildcards.labels}"
    script:
        "../scripts/step.py"


rule trust:
    """Write what of a shard's label maps is trusted: maps in which refused classes are blank."""
    input:
        unpack(compared_voxels),
        maps=manifest_of(paths.labels()),
        selected=paths.label_table("selected"),
    output:
        manifest=manifest_of(paths.trusted()),
    log:
        paths.log("trust", "{labels}/{shard}"),
    benchmark:
        paths.benchmark("trust", "{labels}/{shard}")
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        number=lambda w: shards.size(w.shard),
        spec=label_set_spec("predict"),
        known=known_classes,
        classes=run.chain.classes,
        trigger=trigger(run.scheme.fingerprint()),
        version=2,
    message:
        "trust: label set {wildcards.labels}, what is learned from of {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/step.py"


rule prepare_labels:
    """Bring the labels of a shard into network space, on the grids of the prepared images."""
    input:
        unpack(surveyed),
        images=manifest_of(paths.prepared()),
        maps=label_maps,
    output:
        manifest=manifest_of(paths.arrays()),
    log:
        paths.log("prepare_labels", "{plan}/{arrays}/{labels}/{shard}"),
    benchmark:
        paths.benchmark("prepare_labels", "{plan}/{arrays}/{labels}/{shard}")
    resources:
        mem_mb=memory(6000),
        runtime=minutes(120),
    params:
        number=lambda w: shards.size(w.shard),
        classes=run.chain.classes,
        arrays=lambda w: w.arrays,
        trigger=trigger(run.scheme.fingerprint()),
        version=1,
    message:
        "prepare: {params.number} {wildcards.arrays} ({wildcards.labels}) of shard {wildcards.shard} for plan {wildcards.plan}"
    script:
        "../scripts/step.py"


rule cut_objects:
    """Cut tumors with their surroundings out of a shard's prepared images, for trainings that paste them (CutMix)."""
    input:
        unpack(objects_inputs),
    output:
        manifest=manifest_of(paths.objects()),
        index=shard_table(paths.objects(), "index"),
    log:
        paths.log("cut_objects", "{plan}/{bank}/{shard}"),
    benchmark:
        paths.benchmark("cut_objects", "{plan}/{bank}/{shard}")
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        number=lambda w: shards.size(w.shard),
        classes=run.chain.classes,
        trigger=trigger(run.scheme.fingerprint()),
        settings=lambda w: wiring.cutmix(w.bank).cut.model_dump(mode="json"),
        spacing_mm=lambda w: run.chain.plans[w.plan].spacing_mm,
        version=1,
    message:
        "cut tumors that {wildcards.bank} pastes: {params.number} cases of shard {wildcards.shard} for plan {wildcards.plan}"
    script:
        "../scripts/step.py"
