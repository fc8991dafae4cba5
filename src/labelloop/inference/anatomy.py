"""Final label maps held against the rules of anatomy: ``labelloop infer --check``."""

import logging
from collections.abc import Sequence
from typing import Any

import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.base.errors import CaseError
from labelloop.base.shards import Ledger
from labelloop.base.tables import write_table
from labelloop.images.volume import Volume, canonical, read
from labelloop.inference.labelmaps import in_ids_of
from labelloop.inference.reading import Image, InputImage
from labelloop.inference.running import Segmenter, standing
from labelloop.labels.check import check
from labelloop.labels.folder import tell_verdicts

log = logging.getLogger(__name__)


def check_label_maps(cases: Sequence[InputImage], ledger: Ledger, segmenter: Segmenter, scheme: ClassScheme) -> None:
    """Write ``verdicts.csv`` beside the label maps of cases that are done, and log what fails.

    A class that the models know and that has no voxel fails its rule on volume.

    Args:
        segmenter: what made them. ``scheme`` must have its classes, by their names; the ids may be others.
    """
    known, rows = ledger.extras(), []
    for case in cases:
        classes = [row["class"] for row in known[case.case]["rows"]]
        try:
            image = standing(case, Image.of(case).volume(case.modality), segmenter)
        except (CaseError, OSError) as error:
            log.error("%s: not checked: %s", case.case, error)
            continue
        own = read(ledger.folder / f"{case.case}.nii.gz").array
        labels = Volume(in_ids_of(own, segmenter.class_ids, scheme.ids), image.geometry)
        rows += [{"case": case.case, **row} for row in verdicts(labels, image, case.modality, scheme, classes)]
    write_table(ledger.folder / "verdicts.csv", rows, "verdicts")
    tell_verdicts(pd.DataFrame(rows))


def verdicts(
    labels: Volume,
    image: Volume,
    modality: str,
    scheme: ClassScheme,
    classes: Sequence[str],
    surgery: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return the rows of a "verdicts" table, without ``case``, of one label map of models that know ``classes``.

    Args:
        labels, image: on one grid, in any orientation, upright.
            Labels are in the ids of ``scheme``.
        surgery: classes that were operated on or removed.
    """
    turned = canonical(labels)
    voxels = canonical(image).array
    return check(turned.array, turned.geometry, {}, scheme, voxels, modality, surgery, classes=classes)
