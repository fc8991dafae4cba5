"""The review queues of the label sets, and one HTML page about the run.

REQUIRED INPUTS: every table that the chain leaves.
OUTPUTS: review, report/index.html
"""

from labelloop.run.chain import describe, graph

SHOWN = (
    *("selected", "verdicts", "provenance", "reviewed"),
    *("held_out", "calibration", "transfers"),
)
"""Tables of a label set that the page tells of."""
SHOWN_OF_MODELS = ("model.json", "cases.csv", "training.jsonl")


rule review:
    """Queue the most suspicious labels of a set for a radiologist, with reasons and a picture of each."""
    input:
        cases=expand(paths.survey("cases"), shard=shards.train),
        upright=upright_table,
        maps=lambda w: expand(manifest_of(paths.labels(w.labels)), shard=shards.train),
        selected=paths.label_table("selected"),
        verdicts=paths.label_table("verdicts"),
        disagreement=paths.label_table("disagreement"),
        reviewed=paths.label_table("reviewed"),
        quality=predicted_quality,
    output:
        table=paths.review(),
        pictures=directory(paths.pictures()),
        desk=paths.desk(),
    log:
        paths.log("review", "{labels}"),
    benchmark:
        paths.benchmark("review", "{labels}")
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        name=lambda w: w.labels,
        classes=run.chain.classes,
        models=lambda w: list(wiring.label_set(w.labels).predict),
        reviews=lambda w: str(run.reviews(w.labels).folder),
        limit=run.config.review,
        trigger=trigger(6, run.scheme.fingerprint("color")),
    message:
        "review: the most suspicious labels of {wildcards.labels}"
    script:
        "../scripts/step.py"


rule report:
    """Write the report page: what went in, what each step did, scores, pictures."""
    input:
        cases=paths.table("cases"),
        tables=[
            [
                paths.table(t)
                for t in ("geometry", "annotation", "quarantine", "groups")
            ],
            upright_table(None),
            expand(
                paths.model("{file}"), model=wiring.used_models, file=SHOWN_OF_MODELS
            ),
            expand(
                paths.label_table("{table}"),
                labels=wiring.used_label_sets,
                table=SHOWN,
            ),
            expand(
                paths.label_table("quality"), labels=wiring.label_sets_with_quality
            ),
            expand([paths.review(), paths.pictures()], labels=wiring.used_label_sets),
            expand(
                paths.structure("{file}"),
                plan=wiring.translations,
                file=["structure.csv", "translated.png"],
            ),
            expand([paths.scores(), paths.lesions()], name=run.evaluated()),
            [paths.final_table(table) for table in ("summary", "efficiency")],
        ],
        maps=[
            expand(manifest_of(paths.final), shard=shards.final),
            expand(
                manifest_of(paths.labels()),
                labels=wiring.label_sets_transferred,
                shard=shards.train,
            ),
        ],
    output:
        page=report(
            paths.page,
            caption="../report/page.rst",
            category="Report of the run",
            labels={"page": "the whole run"},
        ),
        attention=paths.attention,
    log:
        paths.log("report", "page"),
    benchmark:
        paths.benchmark("report", "page")
    resources:
        mem_mb=memory(4000),
        runtime=minutes(60),
    params:
        recipe=run.recipe.name,
        chain=lambda w: describe(run.recipe),  # braces in it are no wildcards
        graph=lambda w: graph(run.recipe),
        classes=run.chain.classes,
        evaluated=run.updates(),
        models=wiring.used_models,
        labels=wiring.used_label_sets,
        translations=list(wiring.translations),
        trigger=trigger(8, run.scheme.fingerprint("color", "tolerance_mm")),
    message:
        "report: {output.page}"
    script:
        "../scripts/step.py"
