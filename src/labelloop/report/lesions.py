"""Report section on tumors, lesion by lesion: found, missed, and false findings."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from labelloop.base.classes import ClassScheme
from labelloop.metrics.lesions import MIN_IOU, TUMORS, detection
from labelloop.report.results import Results


def lesion_results(
    results: Results, evaluated: Sequence[tuple[str, str | Path]], scheme: ClassScheme
) -> dict[str, Any] | None:
    """Return one row for each tumor class and (title, lesions table) that scored it; None when none did."""
    tables = [(title, results.table(path, "lesions")) for title, path in evaluated]
    classes = scheme.sets.get(TUMORS, ())
    rows = []
    for name, (title, table) in product(classes, tables):
        mine = table[table["class"] == name]
        if len(mine):
            rows.append({"name": name, "color": scheme[name].color, "title": title, **detection(mine)})
    return {"rows": rows, "min_iou": MIN_IOU, "several": len(classes) > 1} if rows else None
