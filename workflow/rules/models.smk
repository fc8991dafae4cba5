"""Train models and let them predict.

REQUIRED INPUTS: prepared images, a label set (or the truth), survey tables, tumor objects where they are pasted.
OUTPUTS: models/<model>, models/<model>/predictions
"""

from labelloop.inference.settings import ENGINE_VERSION
from labelloop.base.paths import OUTPUTS, SLICE_OUTPUTS
from labelloop.training.settings import TRAINING_VERSION


rule train:
    """Train a model, or go on with a training that was interrupted; checkpoints live in its work folder."""
    input:
        unpack(training_inputs),
    output:
        [paths.model(f) for f in OUTPUTS if f not in ("model.json", "curve.png")],
        report(
            paths.model("curve.png"),
            caption="../report/curve.rst",
            category="Models",
            labels={"model": "{model}"},
        ),
        model=paths.model("model.json"),
    log:
        paths.log("train", "{model}"),
    benchmark:
        paths.benchmark("train", "{model}")
    wildcard_constraints:
        model="|".join(wiring.segmenters),
    threads: lambda w: trainings.threads(w.model)
    resources:
        gpu=lambda w: GPUS * trainings.cards(w.model),
        nodes=1,
        mem_mb=training_memory,
        runtime=minutes(2880),
        device=run.config.device,
        workers=run.config.workers,
        stage=run.config.stage,
    params:
        name=lambda w: w.model,
        spec=lambda w: wiring.model(w.model).model_dump(mode="json", exclude_none=True),
        plan=lambda w: run.chain.plans[wiring.model(w.model).plan].model_dump(
            mode="json"
        ),
        classes=run.chain.classes,
        groups=wiring.groups(),
        deterministic=run.config.deterministic,
        trigger=trigger(TRAINING_VERSION, run.scheme.fingerprint()),
    message:
        "train: model {wildcards.model}"
    script:
        "../scripts/step.py"


if wiring.slice_classifiers:

    # A model that finds slices leaves other files than one that segments.
    use rule train as train_slices with:
        output:
            [paths.model(file) for file in SLICE_OUTPUTS[1:]],
            model=paths.model(SLICE_OUTPUTS[0]),
        wildcard_constraints:
            model="|".join(wiring.slice_classifiers),
        message:
            "train: slice classifier {wildcards.model}"


rule predict:
    """Let a model label the cases of a shard; the model is loaded once."""
    input:
        unpack(surveyed),
        model=lambda w: model_files(w.model),
        prepared=prepared_for,
    output:
        manifest=manifest_of(paths.predictions()),
        confidence=shard_table(paths.predictions(), "confidence"),
    log:
        paths.log("predict", "{model}/{shard}"),
    benchmark:
        paths.benchmark("predict", "{model}/{shard}")
    threads: 4
    resources:
        gpu=GPUS,
        mem_mb=memory(12000),
        runtime=minutes(240),
        device=run.config.device,
        deterministic=int(run.config.deterministic is True),
    params:
        number=lambda w: shards.size(w.shard),
        engine=run.chain.engine.model_dump(mode="json"),
        trigger=trigger(ENGINE_VERSION),
    message:
        "predict: {params.number} cases of shard {wildcards.shard} by model {wildcards.model}"
    script:
        "../scripts/step.py"
