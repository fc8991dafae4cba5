"""Review queues and the report page: the steps of ``workflow/rules/report.smk``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelloop.base.classes import load_classes
from labelloop.base.files import write_text
from labelloop.base.paths import Paths, results_of
from labelloop.base.shards import read_manifests
from labelloop.base.tables import read_table, upside_down
from labelloop.cases.survey import read_truth
from labelloop.cases.table import Case
from labelloop.images.volume import Volume
from labelloop.labels.settings import PSEUDO
from labelloop.report.page import write_report
from labelloop.review.desk import write_desk
from labelloop.review.queue import CaseFiles, queue, write_review
from labelloop.steps.common import Files, read_cases


def report(
    cases: Path,
    tables: Sequence[Path],
    recipe: str,
    chain: str,
    graph: Sequence[Mapping[str, Any]],
    classes: str,
    evaluated: Mapping[str, int],
    models: Sequence[str],
    labels: Sequence[str],
    translations: Sequence[str],
    page: Path,
    attention: Path,
    maps: Sequence[Path],
) -> None:
    """Write the page about a run, and as a text what needs attention, a sentence a line.

    Args:
        cases: table of all cases. tables: all other files that the page tells of.
        recipe: its name. chain: the same in words. graph: the boxes of the chain.
        evaluated: names of score tables, the final label maps last, and the updates behind what they score.
        translations: plans whose CT were translated.
        page, attention: to write.
        maps: manifests of the label maps of which some are shown.
    """
    scheme, results, paths = load_classes(classes), results_of(page), Paths(".")
    tested: dict[str, Case] = {case.case: case for case in read_cases([cases]) if case.role == "test"}
    titles = {name: "final label maps" if name == "final" else name for name in evaluated}

    def truth(case: str) -> Volume | None:
        return read_truth(tested[case], scheme) if case in tested else None

    sentences = write_report(
        results,
        page,
        graph,
        scheme,
        [(title, paths.scores(name)) for name, title in titles.items()],
        labels,
        models,
        translations=translations,
        lesions=[(title, paths.lesions(name)) for name, title in titles.items()],
        recipe=recipe,
        recipe_text=chain,
        truth=truth,
        updates={titles[name]: number for name, number in evaluated.items()},
        title=results.name,
        handed=[cases, *tables, *(Path(file) for file in read_manifests(maps)["file"] if file)],
    )
    write_text(attention, "".join(f"{sentence}\n" for sentence in sentences))


def review(
    cases: Sequence[Path],
    maps: Sequence[Path],
    selected: Path,
    verdicts: Path,
    disagreement: Path,
    reviewed: Path,
    name: str,
    classes: str,
    models: Sequence[str],
    reviews: str,
    table: Path,
    pictures: Path,
    desk: Path,
    limit: int,
    upright: Path | None = None,
    quality: Path | None = None,
) -> None:
    """Write the review queue of a label set, its pictures, and what whoever shows it needs to know.

    Args:
        cases: case tables of all shards. maps: manifests of the label maps.
        selected, verdicts, disagreement, reviewed: tables of the label set.
        name: of the label set. models: those that it was made from.
        reviews: folder of what people decide about it.
        table, pictures, desk: table, folder of pictures and description, to write.
        limit: length of the queue.
        upright: table that says which cases are stored upside down, in runs that ask.
        quality: table of the predicted DSC of labels, where the label set asks for it.
    """
    kinds = {"selected": selected, "verdicts": verdicts, "disagreement": disagreement, "reviewed": reviewed}
    tables = {kind: read_table(path, kind) for kind, path in kinds.items()}
    if quality:
        tables["quality"] = read_table(quality, "quality").query(f"map == '{PSEUDO}'")
    asked = queue(**tables, labels=name, limit=limit)
    scheme = load_classes(classes)
    labels, turned = Files(maps, "label_map"), upside_down(upright) if upright else set()
    files = {
        case.case: CaseFiles(
            Path(case.images[0]), case.modality, labels.path(case.case), labels.key(case.case), case.case in turned
        )
        for case in read_cases(cases)
        if case.case in labels
    }
    write_review(asked, files, scheme, table, pictures, limit)
    write_desk(desk, name, reviews, scheme, models)
