"""Train models and let them predict.

REQUIRED INPUTS: prepared images, a label set (or the truth), survey tables, tumor objects where they are pasted.
OUTPUTS: models/<model>, models/<model>/predictions
"""

from labelloop.inference.nnunet import IMPORT_VERSION
from labelloop.inference.external import EXTERNAL_VERSION
from labelloop.inference.settings import ENGINE_VERSION
from labelloop.base.paths import OUTPUTS, SLICE_OUTPUTS, WEIGHTS
from labelloop.training.settings import version_of


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
        runtime=minutes(2880, GPUS),
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
        licenses=lambda w: run.licenses(w.model),
        start_names=lambda w: run.external.start_names(w.model),
        learned_from=lambda w: run.external.seen_before(w.model),
        deterministic=run.config.deterministic,
        trigger=lambda w: trigger(
            version_of(wiring.model(w.model).trainer), run.scheme.fingerprint()
        ),
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
    wildcard_constraints:
        model="|".join(wiring.segmenters),
    threads: 4
    resources:
        gpu=GPUS,
        mem_mb=memory(12000, GPUS),
        runtime=minutes(240, GPUS),
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


if run.external.of_nnunet:

    rule import_nnunet:
        """Write a model that nnU-Net trained as a model of ours; nothing in its checkpoints is executed."""
        input:
            files=lambda w: run.external.files(w.model),
        output:
            model=paths.model(WEIGHTS[0]),
            weights=paths.model(WEIGHTS[1]),
        log:
            paths.log("import_nnunet", "{model}"),
        benchmark:
            paths.benchmark("import_nnunet", "{model}")
        wildcard_constraints:
            model="|".join(run.external.of_nnunet),
        resources:
            mem_mb=memory(8000),
            runtime=minutes(30),
        params:
            spec=lambda w: run.external.spec(w.model).model_dump(
                mode="json", include={"nnunet", "folds", "dataset"}
            ),
            trigger=lambda w: trigger(IMPORT_VERSION, run.external.stamps(w.model)),
        message:
            "import: model {wildcards.model}"
        script:
            "../scripts/step.py"


if run.external.names:

    rule predict_external:
        """Let a model that is not trained here label the cases of a shard, or take the label maps that it has made."""
        input:
            unpack(external_inputs),
        output:
            manifest=manifest_of(paths.predictions()),
            confidence=shard_table(paths.predictions(), "confidence"),
        log:
            paths.log("predict_external", "{model}/{shard}"),
        benchmark:
            paths.benchmark("predict_external", "{model}/{shard}")
        wildcard_constraints:
            model="|".join(run.external.names),
        threads: 4
        resources:
            gpu=lambda w: 0 if run.external.spec(w.model).verb == "files" else GPUS,
            mem_mb=memory(12000, GPUS),
            runtime=minutes(1440, GPUS),
            device=run.config.device,
            deterministic=int(run.config.deterministic is True),
        params:
            number=lambda w: shards.size(w.shard),
            spec=lambda w: run.external.spec(w.model).model_dump(
                mode="json", exclude={"license", "learned_from"}
            ),
            answer=lambda w: run.external.version(w.model),
            classes=run.chain.classes,
            engine=lambda w: (
                run.chain.engine.model_dump(mode="json")
                if w.model in run.external.of_nnunet
                else {}
            ),
            trigger=lambda w: trigger(
                EXTERNAL_VERSION,
                ENGINE_VERSION,
                run.scheme.fingerprint(),
                run.external.meaning(w.model),
                run.external.stamps(w.model, w.shard),
            ),
        message:
            "predict: {params.number} cases of shard {wildcards.shard} by model {wildcards.model}, not trained here"
        script:
            "../scripts/step.py"
