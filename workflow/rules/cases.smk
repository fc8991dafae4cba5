"""Survey, groups and prepared images.

REQUIRED INPUTS: the case table and the files that it names.
OUTPUTS: cases.csv annotation.csv geometry.csv quarantine.csv groups.csv, survey, prepared/<plan>
"""

from labelloop.cases.table import SURVEY_VERSION


rule survey:
    """Read every image and label of a shard once: geometry, annotation states, cases set aside with reasons."""
    input:
        lambda w: shards.files(w.shard),
        tested=tested_images,
    output:
        cases=paths.survey("cases"),
        geometry=paths.survey("geometry"),
        annotation=paths.survey("annotation"),
        quarantine=paths.survey("quarantine"),
        profiles=paths.survey("profiles"),
        manifest=manifest_of(paths.surveyed),
    log:
        paths.log("survey", "{shard}"),
    benchmark:
        paths.benchmark("survey", "{shard}")
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        number=lambda w: shards.size(w.shard),
        rows=lambda w: shards.rows(w.shard),
        classes=run.chain.classes,
        trigger=lambda w: trigger(
            SURVEY_VERSION,
            run.scheme.fingerprint(),
            shards.datasets(w.shard),
            shards.stamps(w.shard),
        ),
    message:
        "survey: {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/step.py"


if shards.test:

    rule tested:
        """List the voxels of all images that are tested on, so that no train shard learns from them."""
        input:
            surveys=expand(paths.survey("geometry"), shard=shards.test),
        output:
            table=paths.tested,
        log:
            paths.log("tested"),
        benchmark:
            paths.benchmark("tested")
        resources:
            mem_mb=memory(2000),
            runtime=minutes(10),
        message:
            "tested: images of all test shards"
        script:
            "../scripts/step.py"


rule collect:
    """Join the shards' survey tables."""
    input:
        shard_cases=expand(paths.survey("cases"), shard=shards.all),
        shard_geometry=expand(paths.survey("geometry"), shard=shards.all),
        shard_annotation=expand(paths.survey("annotation"), shard=shards.all),
        shard_quarantine=expand(paths.survey("quarantine"), shard=shards.all),
        shard_profiles=expand(paths.survey("profiles"), shard=shards.all),
    output:
        cases=paths.table("cases"),
        geometry=paths.table("geometry"),
        annotation=paths.table("annotation"),
        quarantine=report(
            paths.table("quarantine"),
            caption="../report/set_aside.rst",
            category="Cases",
            labels={"table": "set aside"},
        ),
    log:
        paths.log("collect"),
    benchmark:
        paths.benchmark("collect")
    resources:
        mem_mb=memory(2000),
        runtime=minutes(10),
    params:
        rejected=run.rejected,
        trigger=trigger(1),
    message:
        "collect: survey tables of all shards"
    script:
        "../scripts/step.py"


rule group:
    """Name the groups that every case belongs to."""
    input:
        cases=paths.table("cases"),
        annotation=paths.table("annotation"),
    output:
        table=paths.table("groups"),
    log:
        paths.log("group"),
    benchmark:
        paths.benchmark("group")
    resources:
        mem_mb=memory(2000),
        runtime=minutes(10),
    params:
        classes=run.chain.classes,
        groups=wiring.groups(),
        trigger=trigger(1, run.scheme.fingerprint()),
    message:
        "group: cases by what is annotated"
    script:
        "../scripts/step.py"


rule prepare:
    """Bring the images of a shard into network space, once per plan, for all models, label sets and rounds."""
    input:
        unpack(surveyed),
        translator=translator_of,
    output:
        manifest=manifest_of(paths.prepared()),
    log:
        paths.log("prepare", "{plan}/{shard}"),
    benchmark:
        paths.benchmark("prepare", "{plan}/{shard}")
    threads: lambda w: 4 if run.chain.plans[w.plan].translate else 1
    resources:
        gpu=lambda w: GPUS if run.chain.plans[w.plan].translate else 0,
        mem_mb=memory(8000),
        runtime=minutes(120),
        device=run.config.device,
    params:
        number=lambda w: shards.size(w.shard),
        plan=lambda w: run.chain.plans[w.plan].model_dump(mode="json"),
        version=1,
    message:
        "prepare: {params.number} images of shard {wildcards.shard} for plan {wildcards.plan}"
    script:
        "../scripts/step.py"
