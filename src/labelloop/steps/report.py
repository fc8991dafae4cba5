"""The report page: the step of ``workflow/rules/report.smk``."""

from collections.abc import Sequence
from pathlib import Path

from labelloop.cases import Case
from labelloop.classes import load_classes
from labelloop.report.page import write_report
from labelloop.steps.common import Rows, as_cases
from labelloop.survey import read_truth
from labelloop.volume import Volume


def report(
    rows: Rows,
    results: Path,
    recipe: str,
    graph: str,
    classes: str,
    evaluated: Sequence[str],
    models: Sequence[str],
    labels: Sequence[str],
    out: Path,
) -> None:
    """Write the page about a run.

    Args:
        recipe: the chain in words. graph: the same as a mermaid flowchart.
        evaluated: names of score tables, the final label maps last.
    """
    scheme = load_classes(classes)
    cases: dict[str, Case] = {case.case: case for case in as_cases(rows)}

    def truth(case: str) -> Volume | None:
        return read_truth(cases[case], scheme) if case in cases else None

    write_report(
        results,
        out,
        graph,
        scheme,
        [("final label maps" if name == "final" else name, f"evaluation/{name}.csv") for name in evaluated],
        labels,
        models,
        recipe_text=recipe,
        truth=truth,
        title=results.name,
    )
