"""Review queues and the report page: the steps of ``workflow/rules/report.smk``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelloop.cases import Case
from labelloop.classes import load_classes
from labelloop.files import write_text
from labelloop.report.page import write_report
from labelloop.report.review import CaseFiles, queue, write_review
from labelloop.steps.common import Files, Rows, as_cases
from labelloop.survey import read_truth
from labelloop.tables import read_table, upside_down
from labelloop.volume import Volume


def report(
    rows: Rows,
    results: Path,
    recipe: str,
    chain: str,
    graph: Sequence[Mapping[str, Any]],
    classes: str,
    evaluated: Mapping[str, int],
    models: Sequence[str],
    labels: Sequence[str],
    translations: Sequence[str],
    out: Path,
    attention: Path,
) -> None:
    """Write the page about a run, and as a text what needs attention, a sentence a line.

    Args:
        recipe: its name. chain: the same in words. graph: the boxes of the chain.
        evaluated: names of score tables, the final label maps last, and the updates behind what they score.
        translations: plans whose CT were translated.
    """
    scheme = load_classes(classes)
    cases: dict[str, Case] = {case.case: case for case in as_cases(rows)}
    titles = {name: "final label maps" if name == "final" else name for name in evaluated}

    def truth(case: str) -> Volume | None:
        return read_truth(cases[case], scheme) if case in cases else None

    sentences = write_report(
        results,
        out,
        graph,
        scheme,
        [(title, f"evaluation/{name}.csv") for name, title in titles.items()],
        labels,
        models,
        translations=translations,
        lesions=[(title, f"evaluation/lesions/{name}.csv") for name, title in titles.items()],
        recipe=recipe,
        recipe_text=chain,
        truth=truth,
        updates={titles[name]: number for name, number in evaluated.items()},
        title=results.name,
    )
    write_text(attention, "".join(f"{sentence}\n" for sentence in sentences))


def review(
    rows: Rows, classes: str, manifests: Sequence[str], labels: Path, out: Path, pictures: Path, limit: int
) -> None:
    """Write the review queue of a label set and its pictures.

    Args:
        manifests: manifests of the label maps. labels: folder of the label set.
        limit: length of the queue.
    """
    kinds = ("selected", "verdicts", "disagreement")
    table = queue(*(read_table(labels / f"{kind}.csv", kind) for kind in kinds))
    maps, turned = Files(manifests, "label_map"), upside_down(labels.parents[1] / "upright.csv")
    files = {
        case.case: CaseFiles(Path(case.image), case.modality, maps.path(case.case), case.case in turned)
        for case in as_cases(rows)
        if case.case in maps
    }
    write_review(table, files, load_classes(classes), out, pictures, limit)
