"""The report of a run: one HTML file that needs nothing beside it, made from the files of the results folder."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from labelloop import __version__
from labelloop.base import wording
from labelloop.base.classes import ClassScheme
from labelloop.base.files import write_text
from labelloop.base.paths import Paths
from labelloop.cases.patients import patients_of
from labelloop.metrics.compare import organs_of
from labelloop.report.attention import attention
from labelloop.report.chain import draw_chain
from labelloop.report.facts import run_facts
from labelloop.report.gallery import Atlas, Truth, queue_pictures, scored_pictures, unscored_pictures
from labelloop.report.intake import intake
from labelloop.report.label_sets import label_set
from labelloop.report.lesions import lesion_results
from labelloop.report.models import model, translation
from labelloop.report.results import Results
from labelloop.report.scores import Scored, read_scores, scores
from labelloop.report.sequences import about_cases, scores_by_sequence, transfers

log = logging.getLogger(__name__)


def write_report(
    results: str | Path,
    out: str | Path,
    graph: Sequence[Mapping[str, Any]],
    scheme: ClassScheme,
    evaluated: Sequence[tuple[str, str | Path]] = (),
    label_sets: Sequence[str] = (),
    model_names: Sequence[str] = (),
    *,
    translations: Sequence[str] = (),
    lesions: Sequence[tuple[str, str | Path]] = (),
    recipe: str = "",
    recipe_text: str = "",
    truth: Truth | None = None,
    updates: Mapping[str, int] | None = None,
    title: str = "labelloop",
    handed: Iterable[Path] | None = None,
) -> list[str]:
    """Write the report page of a run, atomically; return what needs attention, in sentences. Equal files, equal bytes.

    Parts that are missing or unreadable are named in words on the page.

    Args:
        results: results folder of the run.
        out: the page, usually ``<results>/report/index.html``; links to files are relative to it.
        graph: the chain of the recipe (:func:`labelloop.run.chain.graph`).
        scheme: classes of every label map and table.
        evaluated: (title, scores table) of what is compared, the teacher first and the student (the final label
            maps in ``predictions``) last; tables are absolute or relative to ``results``.
        label_sets: names of folders in ``labels``.
        model_names: names of folders in ``models``.
        translations: plans with translated CT: folders in ``prepared``.
        lesions: (title, lesions table) of what is compared, in the same order.
        recipe: name of the recipe. recipe_text: its chain in words, shown folded away.
        truth: gives the reference labels of a test case for its pictures.
        updates: by title of what is compared: updates behind its weights, with those of the models it started from.
        title: name of the run.
        handed: files, and folders with their files, that may be read of ``results``; None: all.
    """
    page, source = Path(out), Results(Path(results), None if handed is None else frozenset(handed))
    paths = source.paths
    table = source.table(paths.table("cases"), "cases")
    scored = read_scores(source, evaluated, scheme)
    atlas = Atlas.of(source, table, scheme, truth)
    sets = [_label_set(source, atlas, name, scheme) for name in label_sets]
    content: dict[str, Any] = {
        "title": title,
        "scheme": scheme,
        "intake": intake(source, table, scheme),
        "chain": draw_chain(graph),
        "recipe_text": recipe_text.strip(),
        "models": [model(source, name) for name in model_names],
        "translations": [translation(source, plan) for plan in translations],
        "label_sets": sets,
        "scores": scores(scored, scheme, patients_of(table)),
        "by_sequence": scores_by_sequence(scored, table, scheme),
        "about": about_cases(table),
        "lesions": lesion_results(source, lesions, scheme),
        "speed": _speed(source.table(paths.final_table("efficiency"), "efficiency")),
        "volumes": _volumes(source.table(paths.final_table("summary"), "summary"), scheme),
        "gallery": _gallery(source, atlas, scored),
    }
    content["facts"] = run_facts(Paths(str(source.root)), recipe, content["models"])
    content["headline"] = _headline(content["intake"], sets, scored, scheme, updates or {})
    content |= {"files": source.files(page), "missing": dict(sorted(source.missing.items())), "version": __version__}
    content["attention"] = attention(content, scored)
    write_text(page, render(content))
    log.info("report: %s", page)
    return [entry["text"] for entry in content["attention"]]


def _label_set(source: Results, atlas: Atlas, name: str, scheme: ClassScheme) -> dict[str, Any]:
    entry = label_set(source, name, scheme)
    pictures = queue_pictures(source, scheme, entry["queue"])
    return entry | {"pictures": pictures, "transfers": transfers(source, atlas, name)}


def render(content: dict[str, Any]) -> str:
    """Fill the template of the page."""
    folder = resources.files("labelloop.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for function in (wording.percent, wording.points, wording.number, wording.count, wording.plain):
        environment.filters[function.__name__] = function
    template = environment.from_string((folder / "report.html").read_text(encoding="utf-8"))
    return template.render(style=Markup((folder / "report.css").read_text(encoding="utf-8")), **content)


def _gallery(source: Results, atlas: Atlas, scored: Sequence[Scored]) -> dict[str, list[dict[str, Any]]]:
    """Return the cases to look at, and others, which the page folds."""
    cases = scored_pictures(atlas, scored[-1]) if scored else []
    cases = cases or unscored_pictures(atlas, source.table(source.paths.final_table("summary"), "summary"))
    first = [entry for entry in cases if entry["words"]] or cases[:3]
    return {"first": first, "more": [entry for entry in cases if entry not in first]}


def _headline(
    arrived: dict[str, Any],
    sets: Sequence[dict[str, Any]],
    scored: Sequence[Scored],
    scheme: ClassScheme,
    updates: Mapping[str, int],
) -> dict[str, Any]:
    """Return what the page says first."""
    organs, tumors = organs_of(scheme), scheme.sets.get("tumor", ())
    judged = [entry for entry in sets if entry["judged"]]
    ends = [scored[0], scored[-1]] if scored else []
    return {
        "cases": arrived["total"],
        "used": arrived["used"],
        "labels": judged[-1] if judged else None,
        "student": scored[-1].title if scored else None,
        "teacher": scored[0].title if len(scored) > 1 else None,
        "updates": [updates.get(one.title) for one in ends] if scored else None,
        "test_cases": scored[-1].table["case"].nunique() if scored else 0,
        "organs": {m: [s.mean(organs, m) for s in ends] for m in ("dsc", "nsd")} if scored else None,
        "tumor": {m: [s.mean(tumors, m) for s in ends] for m in ("dsc", "nsd")} if scored else None,
    }


def _speed(efficiency: pd.DataFrame) -> dict[str, Any] | None:
    """Return run time and peak memory over the cases; values that nobody measured are left out."""
    columns = {
        "runtime_s": "run time per case, s",
        "peak_gpu_mb": "peak GPU memory, MB",
        "peak_ram_mb": "peak memory, MB",
        "parameters": "parameters of the networks",
        "gmacs": "multiply-accumulates per case, 10^9",
        "area_gpu_mb_s": "area under the curve of GPU memory, MB s",
        "energy_j": "energy of the GPU per case, J",
    }
    rows = []
    for column, words in columns.items():
        values = efficiency[column].dropna().astype(float)
        if len(values):
            rows.append({"what": words, "median": values.median(), "largest": values.max(), "n": len(values)})
    return {"rows": rows} if rows else None


def _volumes(summary: pd.DataFrame, scheme: ClassScheme) -> list[dict[str, Any]]:
    """Return volume and confidence of the final label maps per class."""
    rows = []
    for info in scheme.classes:
        part = summary[summary["class"] == info.name]
        found = part[part["volume_ml"] > 0]
        if len(part):
            spread = [float(v) for v in found["volume_ml"].astype(float).quantile([0, 0.5, 1])]
            confidence = float(found["confidence"].astype(float).mean())
            rows.append(
                {"name": info.name, "color": info.color, "found": len(found), "cases": len(part)}
                | {"volume_ml": spread, "confidence": confidence}
            )
    return rows
