"""From CT to MR: volumes stored upside down, translators, and what these make of CT.

REQUIRED INPUTS: survey tables, prepared images.
OUTPUTS: upright.csv, models/<translator>, prepared/<plan>/structure.csv and translated.png
"""

from labelloop.base.paths import TRANSLATOR_OUTPUTS
from labelloop.training.settings import TRANSLATOR_VERSION

if wiring.upright:

    rule detect_upside_down:
        """Look which images of a shard are stored upside down, of those that can tell."""
        input:
            unpack(surveyed_as_stored),
        output:
            table=shard_table(paths.upright),
            manifest=manifest_of(paths.upright),
        log:
            paths.log("detect_upside_down", "{shard}"),
        benchmark:
            paths.benchmark("detect_upside_down", "{shard}")
        resources:
            mem_mb=memory(8000),
            runtime=minutes(60),
        params:
            number=lambda w: shards.size(w.shard),
            version=2,
        message:
            "detect_upside_down: which of {params.number} images of shard {wildcards.shard} are upside down"
        script:
            "../scripts/step.py"

    rule upright:
        """Decide which cases are stored upside down: each CT by itself, MR once per patient."""
        input:
            cases=paths.table("cases"),
            geometry=paths.table("geometry"),
            detected=expand(shard_table(paths.upright), shard=shards.all),
        output:
            table=paths.table("upright"),
        log:
            paths.log("upright"),
        benchmark:
            paths.benchmark("upright")
        resources:
            mem_mb=memory(2000),
            runtime=minutes(10),
        params:
            trigger=trigger(1),
        message:
            "upright: which patients are stored upside down"
        script:
            "../scripts/step.py"


if wiring.translators:

    rule train_translator:
        """Train a translator from CT to MR, or go on with a training that was interrupted."""
        input:
            unpack(translator_inputs),
        output:
            [paths.model(file) for file in TRANSLATOR_OUTPUTS[1:]],
            model=paths.model(TRANSLATOR_OUTPUTS[0]),
        log:
            paths.log("train_translator", "{model}"),
        benchmark:
            paths.benchmark("train_translator", "{model}")
        wildcard_constraints:
            model="|".join(wiring.translators),
        threads: lambda w: trainings.threads(w.model)
        resources:
            gpu=GPUS,
            mem_mb=training_memory,
            runtime=minutes(2880, GPUS),
            device=run.config.device,
            workers=run.config.workers,
            stage=run.config.stage,
        params:
            name=lambda w: w.model,
            spec=lambda w: wiring.model(w.model).model_dump(
                mode="json", exclude_none=True
            ),
            plan=lambda w: run.chain.plans[wiring.model(w.model).plan].model_dump(
                mode="json"
            ),
            classes=run.chain.classes,
            groups=wiring.groups(),
            licenses=lambda w: run.licenses(w.model),
            deterministic=run.config.deterministic,
            trigger=trigger(TRANSLATOR_VERSION, run.scheme.fingerprint()),
        message:
            "train: translator {wildcards.model}"
        script:
            "../scripts/step.py"


if wiring.translations:

    rule structure:
        """Ask whether labels of CT still fit their translations; draw CT, translations and real MR side by side."""
        input:
            unpack(structure_inputs),
        output:
            table=paths.structure("structure.csv"),
            manifest=manifest_of(paths.structure("structure"), "all"),
            picture=report(
                paths.structure("translated.png"),
                caption="../report/translated.rst",
                category="Models",
                labels={"plan": "{plan}"},
            ),
        log:
            paths.log("structure", "{plan}"),
        benchmark:
            paths.benchmark("structure", "{plan}")
        wildcard_constraints:
            plan="|".join(wiring.translations),
        resources:
            mem_mb=memory(6000),
            runtime=minutes(60),
        params:
            plan=lambda w: run.chain.plans[w.plan].model_dump(mode="json"),
            classes=run.chain.classes,
            trigger=trigger(run.scheme.fingerprint("color")),
            version=1,
        message:
            "structure: do labels fit the translated CT of plan {wildcards.plan}"
        script:
            "../scripts/step.py"
