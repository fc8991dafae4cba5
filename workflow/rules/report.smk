"""One HTML page about the run.

REQUIRED INPUTS: every table that the chain leaves.
OUTPUTS: {R}/report/index.html
"""

from labelloop.chain import describe, mermaid


rule report:
    """Write the report page: what went in, what each step did, scores, pictures."""
    input:
        tables=expand(
            "{r}/{table}.csv",
            r=R,
            table=["cases", "geometry", "annotation", "quarantine", "groups"],
        ),
        models=expand(
            "{r}/models/{model}/model.json",
            r=R,
            model=run.used_models,
        ),
        labels=expand(
            "{r}/labels/{labels}/selected.csv",
            r=R,
            labels=run.used_labels,
        ),
        scores=expand("{r}/evaluation/{name}.csv", r=R, name=run.evaluated()),
        summary=f"{R}/predictions/summary.csv",
    output:
        f"{R}/report/index.html",
    log:
        f"{R}/logs/report/page.log",
    benchmark:
        f"{R}/benchmarks/report/page.tsv"
    retries: 1
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        cases=[row for shard in run.test_shards for row in run.rows(shard)],
        recipe=describe(run.recipe),
        graph=mermaid(run.recipe),
        classes=run.chain.classes,
        evaluated=run.evaluated(),
        models=run.used_models,
        labels=run.used_labels,
        version=1,
    message:
        "report: {output}"
    script:
        "../scripts/report.py"
