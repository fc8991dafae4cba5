"""From CT to MR: volumes stored upside down, translators, and what these make of CT.

REQUIRED INPUTS: survey tables, prepared images.
OUTPUTS: {R}/upright.csv, {R}/models/<translator>, {R}/prepared/<plan>/structure.csv and looks.png
"""

from labelloop.training.settings import TRANSLATOR_VERSION

if run.upright:

    rule judge:
        """Look which images of a shard are stored upside down, of those that can tell."""
        input:
            geometry=f"{R}/survey/{{shard}}.geometry.csv",
        output:
            f"{R}/upright/{{shard}}.csv",
        log:
            f"{R}/logs/judge/{{shard}}.log",
        benchmark:
            f"{R}/benchmarks/judge/{{shard}}.tsv"
        resources:
            mem_mb=memory(8000),
            runtime=minutes(60),
        params:
            number=lambda w: len(run.shards[w.shard]),
            cases=lambda w: run.rows(w.shard),
            version=1,
        message:
            "judge: which of {params.number} images of shard {wildcards.shard} are upside down"
        script:
            "../scripts/judge.py"

    rule upright:
        """Decide which cases are stored upside down: each CT by itself, MR once per patient."""
        input:
            judged=expand("{r}/upright/{shard}.csv", r=R, shard=sorted(run.shards)),
            geometry=f"{R}/geometry.csv",
        output:
            f"{R}/upright.csv",
        log:
            f"{R}/logs/upright/all.log",
        benchmark:
            f"{R}/benchmarks/upright/all.tsv"
        resources:
            mem_mb=memory(2000),
            runtime=minutes(10),
        params:
            cases=[row for shard in sorted(run.shards) for row in run.rows(shard)],
            version=1,
        message:
            "upright: which patients are stored upside down"
        script:
            "../scripts/upright.py"


if run.translators:

    rule train_translator:
        """Train a translator from CT to MR, or go on with a training that was interrupted."""
        input:
            images=lambda w: prepared_images(run.images(w.model)),
            annotation=expand(
                "{r}/survey/{shard}.annotation.csv", r=R, shard=run.train_shards
            ),
            upright=upright_table,
        output:
            model=f"{R}/models/{{model}}/model.json",
            weights=f"{R}/models/{{model}}/weights.pt",
            cases=f"{R}/models/{{model}}/cases.csv",
            epochs=f"{R}/models/{{model}}/training.jsonl",
        log:
            f"{R}/logs/train_translator/{{model}}.log",
        benchmark:
            f"{R}/benchmarks/train_translator/{{model}}.tsv"
        wildcard_constraints:
            model="|".join(run.translators),
        threads: lambda w: run.training_threads(w.model)
        resources:
            gpu=GPUS,
            mem_mb=training_memory,
            runtime=minutes(2880),
            device=run.config.device,
            workers=run.config.workers,
            stage=run.config.stage,
        params:
            spec=lambda w: run.model(w.model).model_dump(mode="json", exclude_none=True),
            plan=lambda w: run.chain.plans[run.model(w.model).plan].model_dump(
                mode="json"
            ),
            cases=[row for shard in run.train_shards for row in run.rows(shard)],
            classes=run.chain.classes,
            scheme=run.scheme.fingerprint(),
            groups=run.groups(),
            deterministic=run.config.deterministic,
            version=TRANSLATOR_VERSION,
        message:
            "train: translator {wildcards.model}"
        script:
            "../scripts/train_translator.py"


if run.translations:

    rule structure:
        """Ask whether labels of CT still fit their translations; draw CT, translations and real MR side by side."""
        input:
            model=lambda w: f"{R}/models/{run.chain.plans[w.plan].translate}/model.json",
            learned=lambda w: f"{R}/models/{run.chain.plans[w.plan].translate}/cases.csv",
            images=lambda w: prepared_images(w.plan),
            source=lambda w: prepared_images(run.translations[w.plan]),
            labels=lambda w: expand(
                "{r}/prepared/{plan}/labels/truth/shards/{shard}.csv",
                r=R,
                plan=w.plan,
                shard=run.train_shards,
            ),
        output:
            table=f"{R}/prepared/{{plan}}/structure.csv",
            picture=report(
                f"{R}/prepared/{{plan}}/looks.png",
                caption="../report/looks.rst",
                category="Models",
                labels={"plan": "{plan}"},
            ),
        log:
            f"{R}/logs/structure/{{plan}}.log",
        benchmark:
            f"{R}/benchmarks/structure/{{plan}}.tsv"
        wildcard_constraints:
            plan="|".join(run.translations),
        resources:
            mem_mb=memory(6000),
            runtime=minutes(60),
        params:
            cases=[row for shard in run.train_shards for row in run.rows(shard)],
            plan=lambda w: run.chain.plans[w.plan].model_dump(mode="json"),
            classes=run.chain.classes,
            scheme=run.scheme.fingerprint("color"),
            version=1,
        message:
            "structure: do labels fit the translated CT of plan {wildcards.plan}"
        script:
            "../scripts/structure.py"
