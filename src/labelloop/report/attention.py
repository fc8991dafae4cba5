"""What needs attention in a run, in sentences: the page says it first, the console at the end."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from labelloop.base.sequences import flat
from labelloop.base.wording import count, named, percent, plain, points
from labelloop.report.scores import Scored

FEW = 0.1
"""Share of accepted labels, DSC and validation Dice below which they are told."""


def attention(content: Mapping[str, Any], scored: Sequence[Scored]) -> list[dict[str, str]]:
    """Return sentences, each with the section of the page that it is about.

    Args:
        content: sections of the page by name, as :func:`labelloop.report.page.write_report` gives them to its template.
    """
    found = [
        *((text, "in") for text in _of_cases(content["intake"])),
        *((text, "results") for text in _of_scores(content, scored)),
        *((text, "results") for text in _of_volumes(content["volumes"])),
        *((text, "labels") for text in flat(map(_of_labels, content["label_sets"]))),
        *((text, "models") for text in _of_models(content)),
        *((text, "files") for text in _of_files(content["missing"])),
    ]
    return [{"text": text, "section": section} for text, section in found]


def _of_cases(intake: Mapping[str, Any]) -> Iterator[str]:
    reasons = ", ".join(f"{entry['code']} {entry['cases']}" for entry in intake["aside"])
    if intake["set_aside"]:
        yield f"{intake['set_aside']} of {count(intake['total'], 'case')} could not be used: {reasons}."
    if intake["total"] and not intake["train"]:
        yield "No case is left to learn from."
    nobody = [plain(row["name"]) for row in intake["states"] if row["counts"]["unknown"] == row["total"]]
    if nobody:
        yield f"Nobody annotated {named(nobody)}: no model can learn it."


def _of_scores(content: Mapping[str, Any], scored: Sequence[Scored]) -> Iterator[str]:
    if not scored:
        yield "Nothing was scored: no test case has a truth, or the scores are missing."
        return
    last, scores = scored[-1], content["scores"]
    yield from _below_first(scored, scores)
    low = [(row["name"], row["dsc"][-1]) for row in scores["rows"] if row["dsc"][-1] < FEW]
    if low:
        words = [f"{plain(name)} {percent(dsc)} %" for name, dsc in low]
        yield f"{last.title}: the mean DSC of {count(len(low), 'class')} is below {percent(FEW)} %: {named(words)}."
    if last.unpredicted:
        cases = count(len(last.unpredicted), "test case")
        yield f"{last.title}: no label map of {cases} ({named(last.unpredicted)}), scored as if nothing was found."


def _below_first(scored: Sequence[Scored], scores: Mapping[str, Any]) -> Iterator[str]:
    paired = scores["paired"]
    if not paired or not paired["difference"] < 0:
        return
    interval = f", 95 % interval {points(paired['low'])} to {points(paired['high'])}" if paired["enough"] else ""
    last, first = (f"{one.title} {percent(paired[key])} %" for one, key in ((scored[-1], "last"), (scored[0], "first")))
    on = f"{count(paired['n'], 'case')} of {count(paired['patients'], 'patient')}"
    what = f"mean organ DSC on {on}, {points(paired['difference'])} points{interval}"
    yield f"{last} is below {first} ({what}).{'' if paired['sure'] else ' That may be chance.'}"


def _of_volumes(volumes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    nowhere = [plain(row["name"]) for row in volumes if not row["found"]]
    if nowhere:
        cases = count(max(row["cases"] for row in volumes), "case")
        yield f"The final label maps of {cases} hold no {named(nowhere)}."


def _of_labels(entry: Mapping[str, Any]) -> Iterator[str]:
    judged, accepted = entry["judged"], entry["decisions"]["accepted"]
    if judged and not accepted:
        yield f"Label set {entry['name']}: not one of {count(judged, 'label')} made by models was accepted."
    elif judged and entry["accepted_share"] < FEW:
        yield f"Label set {entry['name']}: {accepted} of {count(judged, 'label')} made by models were accepted."
    elif entry["classes"] and not judged:
        yield f"Label set {entry['name']}: models made no label that could be accepted."
    unused = [f"{row['case']}, {plain(row['class'])}" for row in entry["reviewed"]["problems"]]
    if unused:
        decisions = count(len(unused), "decision")
        yield f"Label set {entry['name']}: {decisions} of reviewers cannot be used: {named(unused)}."
    nowhere = [
        plain(row["name"])
        for row in entry["classes"]
        if row["why"].get("not_found") and not row["counts"]["accepted"] + row["counts"]["demoted"]
    ]
    if nowhere:
        yield f"Label set {entry['name']}: no model found {named(nowhere)} in any case."


def _of_models(content: Mapping[str, Any]) -> Iterator[str]:
    gone = [model["name"] for model in content["models"] if not model["there"]]
    if gone:
        yield f"No files of {count(len(gone), 'model')}: {named(gone)}."
    for model in content["models"]:
        if model["best_dice"] < FEW:
            yield f"Model {model['name']}: the validation Dice stayed below {percent(FEW)} %; it has learned little."
    for row in content["translations"]:
        if row["wrong"]:
            yield f"Plan {row['plan']}: labels do not fit the translated CT of {named(row['wrong'])}."


def _of_files(missing: Mapping[str, str]) -> Iterator[str]:
    unreadable = [name for name, problem in missing.items() if problem != "not there"]
    if unreadable:
        yield f"{count(len(unreadable), 'file')} could not be read: {named(unreadable)}."
