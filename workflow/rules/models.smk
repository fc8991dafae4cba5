"""Train models and let them predict.

REQUIRED INPUTS: prepared images, a label set (or the truth), survey tables, tumor objects where they are pasted.
OUTPUTS: {R}/models/<model>, {R}/models/<model>/predictions
"""

from labelloop.inference.settings import ENGINE_VERSION
from labelloop.training.settings import TRAINING_VERSION


rule train:
    """Train a model, or go on with a training that was interrupted; checkpoints live in its work folder."""
    input:
        unpack(training_inputs),
    output:
        model=f"{R}/models/{{model}}/model.json",
        weights=f"{R}/models/{{model}}/weights.pt",
        plans=f"{R}/models/{{model}}/plans.json",
        dataset=f"{R}/models/{{model}}/dataset.json",
        cases=f"{R}/models/{{model}}/cases.csv",
        curve=report(
            f"{R}/models/{{model}}/curve.png",
            caption="../report/curve.rst",
            category="Models",
            labels={"model": "{model}"},
        ),
        epochs=f"{R}/models/{{model}}/training.jsonl",
    log:
        f"{R}/logs/train/{{model}}.log",
    benchmark:
        f"{R}/benchmarks/train/{{model}}.tsv"
    wildcard_constraints:
        model="|".join(run.segmenters),
    threads: lambda w: run.training_threads(w.model)
    resources:
        gpu=lambda w: GPUS * run.cards(w.model),
        nodes=1,
        mem_mb=training_memory,
        runtime=minutes(2880),
        device=run.config.device,
        workers=run.config.workers,
        stage=run.config.stage,
    params:
        spec=lambda w: run.model(w.model).model_dump(mode="json", exclude_none=True),
        plan=lambda w: run.chain.plans[run.model(w.model).plan].model_dump(mode="json"),
        cases=[row for shard in run.train_shards for row in run.rows(shard)],
        classes=run.chain.classes,
        scheme=run.scheme.fingerprint(),
        groups=run.groups(),
        deterministic=run.config.deterministic,
        version=TRAINING_VERSION,
    message:
        "train: model {wildcards.model}"
    script:
        "../scripts/train.py"


if run.slice_classifiers:

    # A model that finds slices leaves other files than one that segments.
    use rule train as train_slices with:
        output:
            model=f"{R}/models/{{model}}/model.json",
            weights=f"{R}/models/{{model}}/weights.pt",
            cases=f"{R}/models/{{model}}/cases.csv",
            scores=f"{R}/models/{{model}}/scores.csv",
            epochs=f"{R}/models/{{model}}/training.jsonl",
        wildcard_constraints:
            model="|".join(run.slice_classifiers),
        message:
            "train: slice classifier {wildcards.model}"


rule predict:
    """Let a model label the cases of a shard; the model is loaded once."""
    input:
        model=f"{R}/models/{{model}}/model.json",
        weights=f"{R}/models/{{model}}/weights.pt",
        geometry=f"{R}/survey/{{shard}}.geometry.csv",
        upright=upright_table,
    output:
        manifest=f"{R}/models/{{model}}/predictions/shards/{{shard}}.csv",
        confidence=f"{R}/models/{{model}}/predictions/confidence/{{shard}}.csv",
    log:
        f"{R}/logs/predict/{{model}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/predict/{{model}}/{{shard}}.tsv"
    threads: 4
    resources:
        gpu=GPUS,
        mem_mb=memory(12000),
        runtime=minutes(240),
        device=run.config.device,
        deterministic=int(run.config.deterministic is True),
    params:
        number=lambda w: len(run.shards[w.shard]),
        cases=lambda w: run.rows(w.shard),
        engine=run.chain.engine.model_dump(mode="json"),
        version=ENGINE_VERSION,
    message:
        "predict: {params.number} cases of shard {wildcards.shard} by model {wildcards.model}"
    script:
        "../scripts/predict.py"
