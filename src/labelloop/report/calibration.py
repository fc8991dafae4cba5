"""Report section on calibration: how good labels of a large score are, asked of held-out truth.

The score is the predicted DSC where there is one, and how far models agree else.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from labelloop.base.classes import ClassScheme
from labelloop.base.wording import plain
from labelloop.cases.patients import patients_of
from labelloop.labels.calibrate import SCORE, aurc, independent, risk_coverage
from labelloop.report.charts import AXIS, TEXT, Chart, Line, curves

FEWEST = 10
"""Of fewer held-out labels no curve is drawn: a bad one more would turn it over."""
TARGET = "#b03a1f"


def calibration_of(held_out: pd.DataFrame, calibration: pd.DataFrame, scheme: ClassScheme) -> dict[str, Any] | None:
    """Return table and curves of a label set; None without held-out labels.

    Args:
        held_out, calibration: tables of those kinds; the latter is empty when the recipe asks for no target DSC.
    """
    asked, score = calibration.set_index("class").to_dict("index"), _score(held_out)
    rows = []
    for info in scheme.classes:
        mine = held_out[held_out["class"] == info.name]
        passed = independent(mine[mine["decision"] == "accepted"], score)
        if len(mine):
            ranked, dsc = passed[score].to_numpy(float), passed["dsc"].to_numpy(float)
            limit = asked.get(info.name, {})
            chart = _curve(info.name, info.color, ranked, dsc, limit) if len(passed) >= FEWEST else None
            rows.append(
                {"name": info.name, "color": info.color, "patients": len(set(patients_of(mine).values()))}
                | {"passed": len(passed), "chart": chart}
                | {"mean_dsc": float(dsc.mean()) if len(dsc) else np.nan, "aurc": aurc(ranked, dsc), **_limit(limit)}
            )
    if not rows:
        return None
    first = next(iter(asked.values()), {})
    confidence = first.get("confidence")
    promised = None if confidence is None or np.isnan(confidence) else confidence  # None: on average
    return {"rows": rows, "by": score, "fewest": FEWEST, "target": first.get("target_dsc"), "confidence": promised}


def _score(held_out: pd.DataFrame) -> str:
    """Return the column that labels are ordered by: the predicted DSC where there is one."""
    return "quality" if held_out["quality"].notna().any() else SCORE


def _limit(limit: Mapping[Hashable, Any]) -> dict[str, Any]:
    keys = {"threshold": "threshold", "coverage": "coverage", "accepted_dsc": "mean_dsc", "reason": "reason"}
    return {key: limit.get(column, "" if key == "reason" else np.nan) for key, column in keys.items()}


def _curve(name: str, color: str, score: np.ndarray, dsc: np.ndarray, limit: Mapping[Hashable, Any]) -> Chart | None:
    """Draw the mean DSC of the labels accepted so far against their share, largest scores first (percent)."""
    coverage, risk = risk_coverage(score, dsc)
    lines = [Line("", color, (100 * coverage).tolist(), (100 * (1 - risk)).tolist())]
    lines.insert(0, Line("", AXIS, [0.0, 100.0], [100 * float(dsc.mean())] * 2))
    if limit:
        lines.insert(0, Line("target", TARGET, [0.0, 100.0], [100 * limit["target_dsc"]] * 2))
        if limit["accepted"] > 0:
            lines.append(Line("accepted", TEXT, [100 * limit["coverage"]], [100 * limit["mean_dsc"]]))
    return curves(lines, plain(name), size=(320, 210), axis="share accepted, %")
