"""The review queues of the label sets, and one HTML page about the run.

REQUIRED INPUTS: every table that the chain leaves.
OUTPUTS: {R}/review, {R}/report/index.html
"""

from labelloop.chain import describe, graph


rule review:
    """Queue the most suspicious labels of a set for a radiologist, with reasons and a picture of each."""
    input:
        manifests=lambda w: expand(
            "{r}/labels/{set}/shards/{shard}.csv",
            r=R,
            set=w.labels,
            shard=run.train_shards,
        ),
        selected=f"{R}/labels/{{labels}}/selected.csv",
        verdicts=f"{R}/labels/{{labels}}/verdicts.csv",
        disagreement=f"{R}/labels/{{labels}}/disagreement.csv",
    output:
        table=f"{R}/review/{{labels}}.csv",
        pictures=directory(f"{R}/review/{{labels}}"),
    log:
        f"{R}/logs/review/{{labels}}.log",
    benchmark:
        f"{R}/benchmarks/review/{{labels}}.tsv"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        cases=[row for shard in run.train_shards for row in run.rows(shard)],
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint("color"),
        limit=run.config.review,
        version=2,
    message:
        "review: the most suspicious labels of {wildcards.labels}"
    script:
        "../scripts/review.py"


rule report:
    """Write the report page: what went in, what each step did, scores, pictures."""
    input:
        tables=expand(
            "{r}/{table}.csv",
            r=R,
            table=["cases", "geometry", "annotation", "quarantine", "groups"],
        ),
        models=expand(
            "{r}/models/{model}/{file}",
            r=R,
            model=run.used_models,
            file=["model.json", "cases.csv", "training.jsonl"],
        ),
        labels=expand(
            "{r}/labels/{labels}/{table}.csv",
            r=R,
            labels=run.used_labels,
            table=[
                "selected",
                "provenance",
                "verdicts",
                "disagreement",
                "held_out",
                "calibration",
                "transfers",
            ],
        ),
        review=expand(rules.review.output, labels=run.used_labels),
        translations=[
            expand(rules.structure.output, plan=plan) for plan in run.translations
        ],
        scores=expand(rules.evaluate.output, name=run.evaluated()),
        predictions=expand(
            "{r}/predictions/shards/{shard}.csv", r=R, shard=run.infer_shards
        ),
        summary=f"{R}/predictions/summary.csv",
        efficiency=f"{R}/predictions/efficiency.csv",
    output:
        page=report(
            f"{R}/report/index.html",
            caption="../report/page.rst",
            category="Report of the run",
            labels={"page": "the whole run"},
        ),
        attention=f"{R}/report/attention.txt",
    log:
        f"{R}/logs/report/page.log",
    benchmark:
        f"{R}/benchmarks/report/page.tsv"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        cases=[row for shard in run.test_shards for row in run.rows(shard)],
        recipe=run.recipe.name,
        chain=describe(run.recipe),
        graph=graph(run.recipe),
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint("color", "tolerance_mm"),
        evaluated=run.updates(),
        models=run.used_models,
        labels=run.used_labels,
        translations=list(run.translations),
        version=6,
    message:
        "report: {output.page}"
    script:
        "../scripts/report.py"
