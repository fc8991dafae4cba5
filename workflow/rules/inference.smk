"""The final label maps, and their scores where there is truth.

REQUIRED INPUTS: the models of the inference chain, survey tables.
OUTPUTS: predictions, evaluation, inference.json
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
        unpack(surveyed),
        models=expand(
            paths.model("{file}"), model=wiring.inference_models, file=WEIGHTS
        ),
    output:
        manifest=manifest_of(paths.final),
        summary=shard_table(paths.final, "summary"),
        efficiency=shard_table(paths.final, "efficiency"),
    log:
        paths.log("infer", "{shard}"),
    benchmark:
        paths.benchmark("infer", "{shard}")
    threads: 4
    resources:
        gpu=GPUS,
        mem_mb=memory(12000, GPUS),
        runtime=minutes(240, GPUS),
        device=run.config.device,
        deterministic=int(run.config.deterministic is True),
        meter=int(run.config.meter),
    params:
        number=lambda w: shards.size(w.shard),
        steps=INFERENCE_STEPS,
        engine=ENGINE,
        classes=run.chain.classes,
        trigger=trigger(ENGINE_VERSION, run.scheme.fingerprint()),
    message:
        "infer: final label maps of {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/step.py"


rule summarize:
    """Join volumes, confidence and run times of the final label maps; write down the chain that made them."""
    input:
        shard_summary=expand(shard_table(paths.final, "summary"), shard=shards.final),
        shard_efficiency=expand(
            shard_table(paths.final, "efficiency"), shard=shards.final
        ),
    output:
        summary=report(
            paths.final_table("summary"),
            caption="../report/volumes.rst",
            category="Label maps",
            labels={"table": "volumes"},
        ),
        efficiency=report(
            paths.final_table("efficiency"),
            caption="../report/efficiency.rst",
            category="Label maps",
            labels={"table": "cost"},
        ),
        inference=paths.inference,
    log:
        paths.log("summarize"),
    benchmark:
        paths.benchmark("summarize")
    resources:
        mem_mb=memory(2000),
        runtime=minutes(10),
    params:
        steps=INFERENCE_STEPS,
        engine=ENGINE,
        classes=run.chain.classes,
        trigger=trigger(run.scheme.model_dump(mode="json")),
    message:
        "summarize: volumes and confidence of the final label maps"
    script:
        "../scripts/step.py"


rule check_final:
    """Hold the final label maps against the rules of anatomy, where the recipe asks for it (evaluate: check)."""
    input:
        unpack(surveyed),
        maps=manifest_of(paths.final),
        summary=shard_table(paths.final, "summary"),
    output:
        table=shard_table(paths.final, "verdicts"),
        manifest=manifest_of(f"{paths.final}/verdicts"),
    log:
        paths.log("check_final", "{shard}"),
    benchmark:
        paths.benchmark("check_final", "{shard}")
    resources:
        mem_mb=memory(4000),
        runtime=minutes(120),
    params:
        number=lambda w: shards.size(w.shard),
        rules=run.scheme.model_dump(mode="json"),
        version=6,
    message:
        "check_final: final label maps of {params.number} cases of shard {wildcards.shard}"
    script:
        "../scripts/step.py"


rule evaluate:
    """Score label maps of the test cases: DSC, NSD and lesions per case and class, annotated classes only."""
    input:
        unpack(lambda w: survey_of(shards.test)),
        maps=evaluated_maps,
    output:
        manifest=manifest_of(paths.scored, "{name}"),
        scores=report(
            paths.scores(),
            caption="../report/scores.rst",
            category="Scores",
            labels={"label maps": "{name}", "table": "DSC and NSD"},
        ),
        lesions=report(
            paths.lesions(),
            caption="../report/lesions.rst",
            category="Scores",
            labels={"label maps": "{name}", "table": "tumors"},
        ),
    log:
        paths.log("evaluate", "{name}"),
    benchmark:
        paths.benchmark("evaluate", "{name}")
    resources:
        mem_mb=memory(6000),
        runtime=minutes(240),
    params:
        rules=run.chain.evaluate.protocol,
        known=lambda w: wiring.classes(w.name),
        classes=run.chain.classes,
        trigger=trigger(run.scheme.fingerprint("tolerance_mm", "tube")),
        version=3,
    message:
        "evaluate: {wildcards.name} against the truth of the test cases"
    script:
        "../scripts/step.py"
