"""Train models and let them predict.

REQUIRED INPUTS: prepared images, a label set (or the truth), survey tables.
OUTPUTS: {R}/models/<model>, {R}/models/<model>/predictions
"""


def training_inputs(w):
    """Tables that tell which cases and classes a model learns from."""
    spec, plan = run.model(w.model), run.images(w.model)
    inputs = {
        "annotation": expand("{r}/survey/{shard}.annotation.csv", r=R, shard=run.train_shards),
        "images": expand("{r}/prepared/{plan}/shards/{shard}.csv", r=R, plan=plan, shard=run.train_shards),
        "labels": expand(
            "{r}/prepared/{plan}/labels/{labels}/shards/{shard}.csv",
            r=R,
            plan=plan,
            labels=spec.labels,
            shard=run.train_shards,
        ),
    }
    if spec.labels != "truth":
        inputs["selected"] = f"{R}/labels/{spec.labels}/selected.csv"
    return inputs


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
        curve=f"{R}/models/{{model}}/curve.png",
        epochs=f"{R}/models/{{model}}/training.jsonl",
    params:
        spec=lambda w: run.model(w.model).model_dump(mode="json"),
        plan=lambda w: run.chain.plans[run.model(w.model).plan].model_dump(mode="json"),
        cases=[row for shard in run.train_shards for row in run.rows(shard)],
        classes=run.chain.classes,
        groups=run.groups(),
        deterministic=run.config.deterministic,
        version=1,
    log:
        f"{R}/logs/train/{{model}}.log",
    benchmark:
        f"{R}/benchmarks/train/{{model}}.tsv"
    threads: 8
    resources:
        gpu=GPUS,
        mem_mb=memory(16000),
        runtime=minutes(2880),
        device=run.config.device,
        workers=run.config.workers,
    retries: 1
    message:
        "train: model {wildcards.model}"
    script:
        "../scripts/train.py"


rule predict:
    """Let a model label the cases of a shard; the model is loaded once."""
    input:
        model=f"{R}/models/{{model}}/model.json",
        weights=f"{R}/models/{{model}}/weights.pt",
        geometry=f"{R}/survey/{{shard}}.geometry.csv",
    output:
        manifest=f"{R}/models/{{model}}/predictions/shards/{{shard}}.csv",
        confidence=f"{R}/models/{{model}}/predictions/confidence/{{shard}}.csv",
    params:
        cases=lambda w: run.rows(w.shard),
        version=1,
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
    retries: 1
    message:
        "predict: shard {wildcards.shard} by model {wildcards.model}"
    script:
        "../scripts/predict.py"
