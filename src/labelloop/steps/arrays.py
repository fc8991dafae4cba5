"""What trainings read: label maps as arrays on the network grid, and tumor objects to paste."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from labelloop.base.classes import load_classes
from labelloop.base.files import digest
from labelloop.base.shards import Ledger
from labelloop.base.tables import write_table
from labelloop.cases.annotation import PRESENT, States, annotated
from labelloop.labels.fuse import tumor_as_organs
from labelloop.labels.settings import CutSettings
from labelloop.labels.tumors import cut_tumors, write_objects
from labelloop.run.chain import Arrays
from labelloop.steps.common import Files, SurveyTables, table_of, trusted


def prepare_labels(
    survey: SurveyTables,
    images: Path,
    classes: str,
    arrays: Arrays,
    manifest: Path,
    version: int,
    maps: Path | None = None,
) -> None:
    """Bring the labels of one shard (the truth, or a label set) to the grids of the prepared images.

    Args:
        images: manifest of the prepared images.
        arrays: ``organs``: for models of organs, to which voxels of tumors belong (``labels.fuse.tumor_as_organs``).
        manifest: to write; the arrays go beside it.
        maps: manifest of the label maps of a set; None for the truth.
    """
    from labelloop.inference.prepare import Frame, prepare_label
    from labelloop.inference.prepared import open_image, write_label_array

    scheme, prepared = load_classes(classes), Files([images], "prepared_image")
    files = Files([maps], "label_map") if maps else None
    ledger, given = Ledger.of(manifest), [] if arrays == "labels" else [arrays, scheme.fingerprint()]
    for item in survey.usable():
        if item.id not in prepared or not (annotated(item.states) if files is None else item.id in files):
            continue

        def work(item=item):
            label = item.truth(scheme) if files is None else item.label(files.path(item.id))
            path = ledger.folder / f"{item.id}.b2nd"
            frame = Frame.from_dict(open_image(prepared.path(item.id)).frame)
            array = prepare_label(label, frame)
            write_label_array(path, tumor_as_organs(array, scheme, frame.spacing_mm) if arrays == "organs" else array)
            return path, {}

        source = item.truth_key if files is None else files.key(item.id)
        ledger.run(item.id, digest([version, source, prepared.key(item.id), *given]), work)
    ledger.close()


def cut_objects(
    survey: SurveyTables,
    images: Path,
    labels: Path,
    settings: dict[str, Any],
    classes: str,
    spacing_mm: Sequence[float],
    manifest: Path,
    index: Path,
    version: int,
    selected: Path | None = None,
) -> None:
    """Cut tumors that are trusted (drawn by annotators, if so asked) out of one shard's prepared images.

    Args:
        images, labels: manifests of prepared images and labels.
        settings: those of ``labels.tumors.CutSettings``.
        spacing_mm: voxel size (z, y, x) of the prepared images.
        manifest, index: to write; the objects go beside the manifest, as ``<case>.npz``.
        selected: which labels of the set are trusted; None for the truth.
    """
    scheme, cut = load_classes(classes), CutSettings.model_validate(settings)
    prepared, maps = Files([images], "prepared_image"), Files([labels], "prepared_label")
    items = survey.usable()
    states, by_people = trusted(selected, items)
    drawn = {item.id for item in items if {item.states[cut.name], by_people[item.id][cut.name]} == {PRESENT}}
    wanted = drawn if cut.source == "truth" else states.keys()
    ledger, class_id = Ledger.of(manifest), scheme.ids[cut.name]
    for case, known in states.items():
        if case in wanted and known.get(cut.name) == PRESENT and case in prepared and case in maps:
            key = digest([version, settings, spacing_mm, known, prepared.key(case), maps.key(case)])
            arrays = prepared.path(case), maps.path(case)
            ledger.run(case, key, partial(_cut_case, case, known, arrays, spacing_mm, class_id, cut, ledger.folder))
    ledger.close()
    write_table(index, table_of(ledger.extras(), "rows"), "objects")


def _cut_case(
    case: str,
    states: States,
    arrays: tuple[Path, Path],
    spacing_mm: Sequence[float],
    class_id: int,
    settings: CutSettings,
    bank: Path,
) -> tuple[Path | None, dict]:
    from labelloop.inference.prepared import open_image, open_label

    image, label = open_image(arrays[0]).array[0], open_label(arrays[1]).array[0]
    objects = cut_tumors(case, image, label, spacing_mm, class_id, settings)
    if not objects:
        return None, {"rows": []}
    path, voxel_ml = bank / f"{case}.npz", float(np.prod(spacing_mm)) / 1000
    write_objects(path, objects, states)
    rows = [
        {"object": n, "tumor_ml": int((ids == class_id).sum()) * voxel_ml, "box_ml": ids.size * voxel_ml}
        for n, (_, ids) in enumerate(objects)
    ]
    return path, {"rows": rows}
