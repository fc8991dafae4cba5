"""Input functions of the rules: which files a step reads, from the recipe's chain and the shards alone."""


def upright_table(w):
    """What says which cases are stored upside down, in runs that ask; every rule that reads images needs it."""
    return f"{R}/upright.csv" if run.upright else []


def tested_images(w):
    """The images that are tested on: a train shard may hold one of them, which must not be learned from."""
    needed = run.test_shards and w.shard not in run.test_shards
    return f"{R}/survey/tested.csv" if needed else []


def prepared_images(plan):
    """Manifests of all images that were prepared for a plan and that models learn from."""
    return expand(
        "{r}/prepared/{plan}/shards/{shard}.csv", r=R, plan=plan, shard=run.train_shards
    )


def translator_of(w):
    """The translator that CT of a plan goes through, if there is one."""
    translator = run.chain.plans[w.plan].translate
    files = ("model.json", "weights.pt")
    return [f"{R}/models/{translator}/{file}" for file in files] if translator else []


def training_inputs(w):
    """Tables that tell which cases and classes a model learns from."""
    spec, plan = run.model(w.model), run.images(w.model)
    inputs = {
        "annotation": expand(
            "{r}/survey/{shard}.annotation.csv", r=R, shard=run.train_shards
        ),
        "images": prepared_images(plan),
        "labels": expand(
            "{r}/prepared/{plan}/{arrays}/{labels}/shards/{shard}.csv",
            r=R,
            plan=plan,
            arrays=run.arrays(w.model),
            labels=spec.labels,
            shard=run.train_shards,
        ),
    }
    if spec.init_from:
        inputs["init_from"] = [
            f"{R}/models/{spec.init_from}/{file}"
            for file in ("model.json", "weights.pt")
        ]
        inputs["learned"] = expand(
            "{r}/models/{model}/cases.csv", r=R, model=run.lineage(w.model)
        )
    if spec.labels != "truth":
        inputs["selected"] = f"{R}/labels/{spec.labels}/selected.csv"
    if spec.trainer.cutmix:
        inputs["objects"] = expand(
            "{r}/prepared/{plan}/objects/{bank}/shards/{shard}.csv",
            r=R,
            plan=plan,
            bank=run.bank(w.model),
            shard=run.train_shards,
        )
    return inputs


def objects_inputs(w):
    """What the tumor objects of a bank are cut from: images and labels, where the labels are trusted."""
    labels = run.model(w.bank).labels
    prepared = f"{R}/prepared/{w.plan}"
    inputs = {
        "images": f"{prepared}/shards/{w.shard}.csv",
        "labels": f"{prepared}/labels/{labels}/shards/{w.shard}.csv",
        "annotation": f"{R}/survey/{w.shard}.annotation.csv",
        "geometry": f"{R}/survey/{w.shard}.geometry.csv",
    }
    if labels != "truth":
        inputs["selected"] = f"{R}/labels/{labels}/selected.csv"
    return inputs


def volumes_of(w):
    """Tables of the volumes that each model of a label set predicted: a class that none found may be absent."""
    return expand(
        "{r}/models/{model}/predictions/confidence/{shard}.csv",
        r=R,
        model=run.label_set(w.labels).predict,
        shard=w.shard,
    )


def learned_by(w):
    """Tables of the cases that the models behind a label set, and those they descend from, were trained with."""
    return expand("{r}/models/{model}/cases.csv", r=R, model=run.behind(w.labels))


def thresholds_of(w):
    """The file of fitted thresholds, if the label set names one."""
    thresholds = run.label_set(w.labels).thresholds
    return {"thresholds": thresholds} if thresholds else {}


def label_set_tables(w):
    """Tables of a label set that selection reads, over all shards."""
    spec = run.label_set(w.labels)
    tables = (
        ["provenance"]
        + (["verdicts"] if spec.check else [])
        + (["disagreement", "held_out"] if len(spec.predict) > 1 else [])
        + (["transfers"] if spec.transfer else [])
    )
    inputs = {
        t: expand(
            "{r}/labels/{set}/{t}/{shard}.csv",
            r=R,
            set=w.labels,
            t=t,
            shard=run.train_shards,
        )
        for t in tables
    }
    inputs["annotation"] = expand(
        "{r}/survey/{shard}.annotation.csv", r=R, shard=run.train_shards
    )
    if spec.select.calibration:
        inputs["calibration"] = spec.select.calibration
    return inputs


def label_source(w):
    """What a label array is made from: the annotators' files, or the label maps of a set."""
    geometry = f"{R}/survey/{w.shard}.geometry.csv"
    return (
        geometry
        if w.labels == "truth"
        else [geometry, f"{R}/labels/{w.labels}/shards/{w.shard}.csv"]
    )


def evaluated_manifests(w):
    """Manifests of the label maps that are scored under a name."""
    folder = (
        f"{R}/predictions" if w.name == "final" else f"{R}/models/{w.name}/predictions"
    )
    return expand("{folder}/shards/{shard}.csv", folder=folder, shard=run.test_shards)


def predictions_by(models, shard):
    """Manifests of what models predict for one shard."""
    return expand(
        "{r}/models/{model}/predictions/shards/{shard}.csv",
        r=R,
        model=models,
        shard=shard,
    )


def predictions_of(w):
    """Manifests of the predictions that a label set is made from."""
    return predictions_by(run.label_set(w.labels).predict, w.shard)


def transfer_inputs(w):
    """Predictions and survey tables of all shards that hold images of this shard's patients."""
    shards = list(run.relatives(w.shard))
    lead = run.label_set(w.labels).predict[:1]
    return {
        "predictions": [file for s in shards for file in predictions_by(lead, s)],
        "annotation": expand("{r}/survey/{shard}.annotation.csv", r=R, shard=shards),
        "geometry": expand("{r}/survey/{shard}.geometry.csv", r=R, shard=shards),
    }


def transferred(w):
    """What a shard was given of other sequences' labels, if the label set transfers any."""
    carried = f"{R}/labels/{w.labels}/transferred"
    return (
        {
            "transferred": f"{carried}/shards/{w.shard}.csv",
            "carried": f"{carried}/confidence/{w.shard}.csv",
        }
        if run.label_set(w.labels).transfer
        else {}
    )


def predictions_before(w):
    """Manifest of the leading predictions of the round before, to compare with; none in round 1."""
    return predictions_by(run.leading_before(w.labels), w.shard)
