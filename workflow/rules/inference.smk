"""The final label maps, and their scores where there is truth.

REQUIRED INPUTS: the models of the inference chain, survey tables.
OUTPUTS: {R}/predictions, {R}/evaluation, {R}/inference.json
"""

from labelloop.inference.settings import ENGINE_VERSION

INFERENCE_STEPS = [
    step.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    for step in run.chain.inference
]
ENGINE = run.chain.engine.model_dump(mode="json")


rule infer:
    """Run the inference chain over the cases of a shard; the models are loaded once."""
    input:
        models=expand(
            "{r}/models/{model}/{file}",
            r=R,
            model=run.inference_models(),
            file=["model.json", "weights.pt"],
        ),
        geometry=f"{R}/survey/{{shard}}.geometry.csv",
        upright=upright_table,
    output:
        manifest=f"{R}/predictions/shards/{{shard}}.csv",
        summary=f"{R}/predictions/summary/{{shard}}.csv",
        efficiency=f"{R}/predictions/efficiency/{{shard}}.csv",
    log:
        f"{R}/logs/infer/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/infer/{{shard}}.tsv"
    threads: 4
    resources:
        gpu=GPUS,
        mem_mb=memory(12000),
        runtime=minutes(240),
        device=run.config.device,
        deterministic=int(run.config.deterministic is True),
        meter=int(run.config.meter),
    params:
        number=lambda w: len(run.shards[w.shard]),
        cases=lambda w: run.rows(w.shard),
        steps=INFERENCE_STEPS,
        engine=ENGINE,
        models=run.inference_models(),
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint(),
        version=ENGINE_VERSION,
    message:
        "infer: final label maps of {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/infer.py"


rule summarize:
    """Join volumes, confidence and run times of the final label maps; write down the chain that made them."""
    input:
        summary=expand(
            "{r}/predictions/summary/{shard}.csv", r=R, shard=run.infer_shards
        ),
        efficiency=expand(
            "{r}/predictions/efficiency/{shard}.csv", r=R, shard=run.infer_shards
        ),
    output:
        summary=report(
            f"{R}/predictions/summary.csv",
            caption="../report/volumes.rst",
            category="Label maps",
            labels={"table": "volumes"},
        ),
        efficiency=report(
            f"{R}/predictions/efficiency.csv",
            caption="../report/efficiency.rst",
            category="Label maps",
            labels={"table": "cost"},
        ),
        inference=f"{R}/inference.json",
    log:
        f"{R}/logs/summarize/all.log",
    benchmark:
        f"{R}/benchmarks/summarize/all.tsv"
    resources:
        mem_mb=memory(2000),
        runtime=minutes(10),
    params:
        steps=INFERENCE_STEPS,
        engine=ENGINE,
        classes=run.chain.classes,
        scheme=run.scheme.model_dump(mode="json"),
    message:
        "summarize: volumes and confidence of the final label maps"
    script:
        "../scripts/summarize.py"


rule check_final:
    """Hold the final label maps against the rules of anatomy, where the recipe asks for it (evaluate: check)."""
    input:
        manifest=f"{R}/predictions/shards/{{shard}}.csv",
        summary=f"{R}/predictions/summary/{{shard}}.csv",
        geometry=f"{R}/survey/{{shard}}.geometry.csv",
        upright=upright_table,
    output:
        f"{R}/predictions/verdicts/{{shard}}.csv",
    log:
        f"{R}/logs/check_final/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/check_final/{{shard}}.tsv"
    resources:
        mem_mb=memory(4000),
        runtime=minutes(120),
    params:
        number=lambda w: len(run.shards[w.shard]),
        cases=lambda w: run.rows(w.shard),
        rules=run.scheme.model_dump(mode="json"),
        version=1,
    message:
        "check_final: final label maps of {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/check_final.py"


rule evaluate:
    """Score label maps of the test cases: DSC, NSD and lesions per case and class, annotated classes only."""
    input:
        manifests=evaluated_manifests,
        annotation=expand(
            "{r}/survey/{shard}.annotation.csv", r=R, shard=run.test_shards
        ),
    output:
        scores=report(
            f"{R}/evaluation/{{name}}.csv",
            caption="../report/scores.rst",
            category="Scores",
            labels={"label maps": "{name}", "table": "DSC and NSD"},
        ),
        lesions=report(
            f"{R}/evaluation/lesions/{{name}}.csv",
            caption="../report/lesions.rst",
            category="Scores",
            labels={"label maps": "{name}", "table": "tumors"},
        ),
    log:
        f"{R}/logs/evaluate/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/evaluate/{{name}}.tsv"
    resources:
        mem_mb=memory(6000),
        runtime=minutes(240),
    params:
        cases=[row for shard in run.test_shards for row in run.rows(shard)],
        rules=run.chain.evaluate.rules,
        known=lambda w: run.known(w.name),
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint("tolerance_mm", "tube"),
        version=3,
    message:
        "evaluate: {wildcards.name} against the truth of the test cases"
    script:
        "../scripts/evaluate.py"
