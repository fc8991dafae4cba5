"""Functions of rules: which files a step reads and what it is told, from the recipe's chain and the shards alone."""

from labelloop.base.paths import WEIGHTS


def upright_table(w):
    """What says which cases are stored upside down, in runs that ask; every rule that reads images needs it."""
    return paths.table("upright") if wiring.upright else []


def survey_of(some):
    """The cases of some shards, and what the survey found: what most steps begin with."""
    kinds = ("cases", "geometry", "annotation")
    tables = {kind: expand(paths.survey(kind), shard=some) for kind in kinds}
    return tables | {"upright": upright_table(None)}


def surveyed(w):
    """What the survey found of one shard."""
    return survey_of([w.shard])


def surveyed_as_stored(w):
    """The same, before it is known which cases are stored upside down."""
    return {kind: files for kind, files in surveyed(w).items() if kind != "upright"}


def tested_images(w):
    """The images that are tested on: a train shard may hold one of them, which must not be learned from."""
    needed = shards.test and w.shard not in shards.test
    return paths.tested if needed else []


def prepared_images(plan):
    """Manifests of all images that were prepared for a plan and that models learn from."""
    return expand(manifest_of(paths.prepared(plan)), shard=shards.train)


def prepared_for(w):
    """Images of a shard as a model's plan prepares them; those that models do not learn from are not prepared."""
    if w.shard not in shards.train:
        return []
    return manifest_of(paths.prepared(wiring.images(w.model)), w.shard)


def model_files(model):
    """What whoever uses a model reads of it; nothing without one."""
    return [paths.model(file, model) for file in WEIGHTS] if model else []


def translator_of(w):
    """The translator that CT of a plan goes through, if there is one."""
    return model_files(run.chain.plans[w.plan].translate)


def training_inputs(w):
    """Tables that tell which cases and classes a model learns from."""
    spec, plan = wiring.model(w.model), wiring.images(w.model)
    labels = paths.arrays(plan, wiring.arrays(w.model), spec.labels)
    inputs = survey_of(shards.train) | {
        "images": prepared_images(plan),
        "labels": expand(manifest_of(labels), shard=shards.train),
    }
    if spec.init_from:
        inputs["init_from"] = model_files(spec.init_from)
        inputs["learned"] = [
            paths.model("cases.csv", m) for m in wiring.lineage(w.model)
        ]
    if spec.labels != "truth":
        inputs["selected"] = paths.label_table("selected", spec.labels)
    if wiring.cutmix(w.model):
        bank = paths.objects(plan, wiring.bank(w.model))
        inputs["objects"] = expand(manifest_of(bank), shard=shards.train)
    return inputs


def translator_inputs(w):
    """Images that a translator learns from, and what the survey found of them."""
    return survey_of(shards.train) | {"images": prepared_images(wiring.images(w.model))}


def structure_inputs(w):
    """Translated images, the same as they were, and their labels."""
    truth = paths.arrays(w.plan, "labels", "truth")
    return survey_of(shards.train) | {
        "learned": paths.model("cases.csv", run.chain.plans[w.plan].translate),
        "images": prepared_images(w.plan),
        "source": prepared_images(wiring.translations[w.plan]),
        "labels": expand(manifest_of(truth), shard=shards.train),
    }


def objects_inputs(w):
    """What the tumor objects of a bank are cut from: images and labels, where the labels are trusted."""
    labels = wiring.model(w.bank).labels
    inputs = surveyed(w) | {
        "images": manifest_of(paths.prepared(w.plan), w.shard),
        "labels": manifest_of(paths.arrays(w.plan, "labels", labels), w.shard),
    }
    if labels != "truth":
        inputs["selected"] = paths.label_table("selected", labels)
    return inputs


def volumes_of(w):
    """Tables of the volumes that each model of a label set predicted: a class that none found may be absent."""
    models = wiring.label_set(w.labels).predict
    return [shard_table(paths.predictions(m), "confidence", w.shard) for m in models]


def external_inputs(w):
    """What an external model labels a shard with, and what the survey found of the shard."""
    if w.model in run.external.of_nnunet:
        return surveyed(w) | {"model": model_files(w.model)}
    return surveyed(w) | {"files": run.external.files(w.model, w.shard)}


def learned_by(w):
    """Tables of the cases that the models behind a label set, and those they descend from, were trained with."""
    return [paths.model("cases.csv", model) for model in wiring.models_behind(w.labels)]


def relatives_of(w):
    """The cases of all shards that hold images of this shard's patients."""
    return expand(paths.survey("cases"), shard=shards.of_same_patients(w.shard))


def thresholds_of(w):
    """The file of fitted thresholds, if the label set names one."""
    return wiring.label_set(w.labels).thresholds or []


def label_set_tables(w):
    """Tables of a label set that selection reads, over all shards."""
    spec, quality = wiring.label_set(w.labels), predicted_quality(w)
    several = len(spec.predict) > 1
    tables = (
        ["provenance", "reviewed"]
        + (["verdicts"] if spec.check else [])
        + (["disagreement", "held_out"] if several or quality else [])
        + (["transfers"] if spec.transfer else [])
    )
    folder = paths.labels(w.labels)
    inputs = {
        f"shard_{t}": expand(shard_table(folder, t), shard=shards.train) for t in tables
    }
    inputs["annotation"] = expand(paths.survey("annotation"), shard=shards.train)
    if spec.select.calibration:
        inputs["calibrated"] = spec.select.calibration
    return inputs | {"quality": quality}


def predicted_quality(w):
    """Table of the predicted DSC of labels, if the label set asks for it."""
    asked = w.labels in wiring.label_sets_with_quality
    return paths.label_table("quality", w.labels) if asked else []


def label_maps(w):
    """Manifest of the label maps that an array is made from; none where it is made from the annotators' files."""
    if w.labels == "truth":
        return []
    agreed = wiring.label_set(w.labels).select.voxels == "agreed"
    return manifest_of(
        paths.trusted(w.labels) if agreed else paths.labels(w.labels), w.shard
    )


def compared_voxels(w):
    """What models say of one shard, where a label set leaves voxels out on which they differ."""
    if wiring.label_set(w.labels).select.voxels == "all":
        return {}
    return {"predictions": predictions_of(w), "transferred": transferred_to(w)}


def evaluated_maps(w):
    """Manifests of the label maps that are scored under a name."""
    folder = paths.final if w.name == "final" else paths.predictions(w.name)
    return expand(manifest_of(folder), shard=shards.test)


def predictions_by(models, shard):
    """Manifests of what models predict for one shard."""
    return [manifest_of(paths.predictions(model), shard) for model in models]


def predictions_of(w):
    """Manifests of the predictions that a label set is made from."""
    return predictions_by(wiring.label_set(w.labels).predict, w.shard)


def label_set_spec(*keys, exclude_none=False):
    """What a label set says under ``keys``, as plain data."""
    return lambda w: wiring.label_set(w.labels).model_dump(
        mode="json", include=set(keys), exclude_none=exclude_none
    )


def known_classes(w):
    """The classes that each model of a label set knows."""
    return {m: wiring.classes(m) for m in wiring.label_set(w.labels).predict}


def transfer_inputs(w):
    """Predictions and survey tables of all shards that hold images of this shard's patients."""
    some = shards.of_same_patients(w.shard)
    lead = wiring.label_set(w.labels).predict[:1]
    return survey_of(some) | {
        "own": paths.survey("cases", w.shard),
        "predictions": expand(manifest_of(paths.predictions()), model=lead, shard=some),
    }


def transferred_to(w):
    """Manifest of what a shard was given of other sequences' labels, if the label set transfers any."""
    if not wiring.label_set(w.labels).transfer:
        return []
    return manifest_of(paths.transferred(w.labels), w.shard)


def carried_to(w):
    """The volumes of that."""
    if not wiring.label_set(w.labels).transfer:
        return []
    return shard_table(paths.transferred(w.labels), "confidence", w.shard)


def predictions_before(w):
    """Manifest of the leading predictions of the round before, to compare with; none in round 1."""
    return predictions_by(wiring.leading_model_before(w.labels), w.shard)


def before_review(labels):
    """All that a run makes before it waits for the review of a label set: its queue, and those of the sets before."""
    some = wiring.used_label_sets[: wiring.used_label_sets.index(labels) + 1]
    return [
        rules.cases.input,
        expand(rules.review.output, labels=some),
    ]
