"""Labels of one MR sequence for the others of its patient: a step of ``workflow/rules/labels.smk``.

Predictions of a label set's model on the source sequence are cleaned as the label set says, carried to the patient's
other sequences, and accepted or refused one by one. What was accepted takes the place of the model's own prediction;
where labels were refused there is none.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.files import digest
from labelloop.base.shards import Ledger
from labelloop.base.tables import write_table
from labelloop.cases.table import Case
from labelloop.cases.usable import UsableCase
from labelloop.images.volume import Volume, canonical, restore, write
from labelloop.labels.clean import clean
from labelloop.networks.settings import TransferSettings
from labelloop.steps.common import Files, SurveyTables, in_groups, read_cases, table_of, volume_rows

log = logging.getLogger(__name__)


def gets_labels(case: Case, settings: TransferSettings) -> bool:
    """Say whether a case gets labels of another sequence, rather than a prediction of its own."""
    return case.modality == "MR" and case.sequence != settings.source


def transfer(
    own: Path,
    survey: SurveyTables,
    predictions: Sequence[Path],
    spec: dict[str, Any],
    known: Sequence[str],
    classes: str,
    groups: dict[str, dict],
    manifest: Path,
    carried: Path,
    transfers: Path,
    version: int,
) -> None:
    """Carry the labels of a source sequence to the cases of one shard; write label maps, transforms and tables.

    Args:
        own: table of the shard's cases. survey: tables of all shards that hold images of their patients.
        predictions: manifests of the leading model's label maps of those shards.
        spec: ``predict``, ``predict_for``, ``cases``, ``clean`` and ``transfer`` of a label set.
        known: the classes (or class sets) that the model knows.
        manifest: to write; beside it go ``<case>.nii.gz`` where it was accepted, ``<case>.json`` for each transform.
        carried, transfers: tables to write: volumes, and what was decided.
    """
    scheme, settings = load_classes(classes), TransferSettings.model_validate(spec["transfer"])
    maps, usable = Files(predictions, "prediction"), survey.usable()
    families, mine = _families(usable), {case.case for case in read_cases([own])}
    items = in_groups([item for item in usable if item.id in mine], spec["cases"], scheme, groups)
    ledger = Ledger.of(manifest)
    for item in in_groups(items, spec.get("predict_for") or ("all",), scheme, groups):
        if not gets_labels(item.case, settings):
            continue
        patient = families[item.case.patient]
        wanted = (settings.source, *settings.partners(item.case.sequence))
        found = [(name, _one(patient, name)) for name in wanted]
        images = {name: one for name, one in found if one} | {item.case.sequence: item}
        source = images.get(settings.source)
        hashes = {name: one.image_key for name, one in images.items()}
        content = [version, settings.model_dump(mode="json"), spec["clean"], known, scheme.fingerprint(), hashes]
        key = digest([*content, maps.key(source.id) if source else len(patient[settings.source])])
        work: Callable[[], tuple[Path | None, dict]]
        if source is None:
            work = partial(_refuse, item, len(patient[settings.source]), settings)
        else:
            work = partial(_carry, item, source, images, maps, spec["clean"], known, scheme, settings, ledger.folder)
        ledger.run(item.id, key, work)
    ledger.close()
    write_table(transfers, table_of(ledger.extras(), "transfers"), "transfers")
    write_table(carried, table_of(ledger.extras(), "volumes"), "confidence")


def _families(items: Sequence[UsableCase]) -> dict[str, dict[str, list[UsableCase]]]:
    """Return the MR cases of each patient by sequence."""
    families: dict[str, dict[str, list[UsableCase]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        if item.case.modality == "MR":
            families[item.case.patient][item.case.sequence].append(item)
    return families


def _one(patient: Mapping[str, list[UsableCase]], sequence: str) -> UsableCase | None:
    """Return a patient's image of a sequence; None without, and of several: nobody knows which belongs to which."""
    found = patient.get(sequence, ())
    return found[0] if len(found) == 1 else None


def _refuse(item: UsableCase, sources: int, settings: TransferSettings) -> tuple[None, dict]:
    found = f"{sources} {settings.source} images, one is needed" if sources else f"no {settings.source} image"
    row: dict[str, Any] = {"source": "", "sequence": item.case.sequence, "decision": "refused"}
    measured = ("right_kidney_dsc", "left_kidney_dsc", "rotation_degrees", "translation_mm")
    row |= dict.fromkeys(measured)
    row |= {"criterion": "no_source", "reason": f"patient {item.case.patient} has {found}"}
    return None, {"transfers": [row], "volumes": []}


def _carry(
    item: UsableCase,
    source: UsableCase,
    images: Mapping[str, UsableCase],
    predictions: Files,
    steps: Sequence[Any],
    known: Sequence[str],
    scheme: ClassScheme,
    settings: TransferSettings,
    out: Path,
) -> tuple[Path | None, dict]:
    from labelloop.labels.transfer import transfer as carry

    label = _cleaned(source.label(predictions.path(source.id)), steps, scheme)
    volumes = {name: one.image() for name, one in images.items()}
    found = next(t for t in carry(volumes, label, scheme, settings) if t.sequence == item.case.sequence)
    image, path = volumes[item.case.sequence], out / f"{item.id}.nii.gz"
    row = found.row(item.id, source.id, image)
    found.transform.save(path.with_name(f"{item.id}.json"), **{k: row[k] for k in ("case", "source", "decision")})
    log.info("%s: %s, %s", item.id, row["decision"], row["reason"])
    if not found.accepted:
        path.unlink(missing_ok=True)
        return None, {"transfers": [row], "volumes": []}
    stored = item.as_stored(Volume(found.label, image.geometry))
    write(path, stored.array, stored.geometry)
    volumes_ml = volume_rows(found.label, image.geometry.voxel_ml, scheme.select(list(known)), scheme)
    return path, {"transfers": [row], "volumes": volumes_ml}


def _cleaned(label: Volume, steps: Sequence[Any], scheme: ClassScheme) -> Volume:
    turned = canonical(label)
    array, _ = clean(turned.array, turned.geometry, steps, scheme)
    return Volume(restore(array, label.geometry), label.geometry)
