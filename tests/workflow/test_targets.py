"""Stages can be asked for by name, and Snakemake's own report shows what the rules mark for it."""

import re
import zipfile
from pathlib import Path

from tiny_project import Project

STAGES = ("cases", "models", "labels", "predictions", "scores")


def jobs(project: Project, *targets: str) -> dict[str, int]:
    """Return how often each rule is to run."""
    found = re.findall(r"^(\w+) +(\d+)$", project.snakemake("--cores", "1", "--dry-run", *targets), re.MULTILINE)
    return {rule: int(count) for rule, count in found if rule not in (*STAGES, "all", "total")}


def test_stages_together_are_the_whole_run_and_each_is_a_part_of_it(collection, tmp_path):
    project = Project.new(tmp_path / "project", collection.table)
    assert set(jobs(project, "cases")) == {"survey", "tested", "collect", "group"}
    labels, whole = jobs(project, "labels"), jobs(project)
    assert "review" in labels and not {"infer", "evaluate", "report"} & set(labels)
    assert labels["train"] < whole["train"]  # the student is not needed
    assert jobs(project, *STAGES, "report") == whole


def test_snakemake_report_holds_the_page_and_the_scores_and_leaves_the_results_alone(
    reference: Project, tmp_path: Path
):
    before = reference.times("**/*")
    reference.snakemake("--report", str(tmp_path / "report.zip"))
    assert reference.times("**/*") == before
    with zipfile.ZipFile(tmp_path / "report.zip") as report:
        index = next(name for name in report.namelist() if name.endswith("report.html"))
        text = report.read(index).decode()
    for result in ("report/index.html", "quarantine.csv", "evaluation/final.csv", "labels/pseudo/selected.csv"):
        assert f"results/{result}" in text
    assert "model student: loss and validation Dice" in text
