"""Survey, groups and prepared images.

REQUIRED INPUTS: the case table and the files that it names.
OUTPUTS: {R}/cases.csv annotation.csv geometry.csv quarantine.csv groups.csv, {R}/survey, {R}/prepared/<plan>
"""


rule survey:
    """Read every image and label of a shard once: geometry, annotation states, cases set aside with reasons."""
    input:
        lambda w: run.files(w.shard),
        tested=tested_images,
    output:
        geometry=f"{R}/survey/{{shard}}.geometry.csv",
        annotation=f"{R}/survey/{{shard}}.annotation.csv",
        quarantine=f"{R}/survey/{{shard}}.quarantine.csv",
        profiles=f"{R}/survey/{{shard}}.profiles.csv",
    log:
        f"{R}/logs/survey/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/survey/{{shard}}.tsv"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        number=lambda w: len(run.shards[w.shard]),
        cases=lambda w: run.rows(w.shard),
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint(),
        datasets=lambda w: run.datasets(w.shard),
        files=lambda w: run.stamps(w.shard),
        version=1,
    message:
        "survey: {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/survey.py"


if run.test_shards:

    rule tested:
        """List the voxels of all images that are tested on, so that no train shard learns from them."""
        input:
            expand("{r}/survey/{shard}.geometry.csv", r=R, shard=run.test_shards),
        output:
            f"{R}/survey/tested.csv",
        log:
            f"{R}/logs/tested/all.log",
        benchmark:
            f"{R}/benchmarks/tested/all.tsv"
        resources:
            mem_mb=memory(2000),
            runtime=minutes(10),
        message:
            "tested: images of all test shards"
        script:
            "../scripts/tested.py"


rule collect:
    """Join the shards' survey tables."""
    input:
        expand(
            "{r}/survey/{shard}.{table}.csv",
            r=R,
            shard=run.shards,
            table=["geometry", "annotation", "quarantine", "profiles"],
        ),
    output:
        cases=f"{R}/cases.csv",
        geometry=f"{R}/geometry.csv",
        annotation=f"{R}/annotation.csv",
        quarantine=report(
            f"{R}/quarantine.csv",
            caption="../report/set_aside.rst",
            category="Cases",
            labels={"table": "set aside"},
        ),
    log:
        f"{R}/logs/collect/all.log",
    benchmark:
        f"{R}/benchmarks/collect/all.tsv"
    resources:
        mem_mb=memory(2000),
        runtime=minutes(10),
    params:
        cases=[row for shard in sorted(run.shards) for row in run.rows(shard)],
        rejected=run.rejected,
        shards=sorted(run.shards),
    message:
        "collect: survey tables of all shards"
    script:
        "../scripts/collect.py"


rule group:
    """Name the groups that every case belongs to."""
    input:
        cases=f"{R}/cases.csv",
        annotation=f"{R}/annotation.csv",
    output:
        f"{R}/groups.csv",
    log:
        f"{R}/logs/group/all.log",
    benchmark:
        f"{R}/benchmarks/group/all.tsv"
    resources:
        mem_mb=memory(2000),
        runtime=minutes(10),
    params:
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint(),
        groups=run.groups(),
        version=1,
    message:
        "group: cases by what is annotated"
    script:
        "../scripts/group.py"


rule prepare:
    """Bring the images of a shard into network space, once per plan, for all models, label sets and rounds."""
    input:
        geometry=f"{R}/survey/{{shard}}.geometry.csv",
        upright=upright_table,
        translator=translator_of,
    output:
        manifest=f"{R}/prepared/{{plan}}/shards/{{shard}}.csv",
    log:
        f"{R}/logs/prepare/{{plan}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/prepare/{{plan}}/{{shard}}.tsv"
    threads: lambda w: 4 if run.chain.plans[w.plan].translate else 1
    resources:
        gpu=lambda w: GPUS if run.chain.plans[w.plan].translate else 0,
        mem_mb=memory(8000),
        runtime=minutes(120),
        device=run.config.device,
    params:
        number=lambda w: len(run.shards[w.shard]),
        cases=lambda w: run.rows(w.shard),
        plan=lambda w: run.chain.plans[w.plan].model_dump(mode="json"),
        version=1,
    message:
        "prepare: {params.number} images of shard {wildcards.shard} for plan {wildcards.plan}"
    script:
        "../scripts/prepare.py"
