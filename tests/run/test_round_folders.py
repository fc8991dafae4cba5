"""Another number of rounds: what was made goes on under the name of its round, and nothing is lost."""

from pathlib import Path

import pytest

from labelloop.run.round_folders import move_rounds
from labelloop.run.run import Run

PLACES = ("models/{}/model.json", "labels/{}/a.nii.gz", "prepared/{}/labels/{}/a.b2nd", "prepared/{}/objects/{}/a.npz",
          "evaluation/cases/shards/.{}.jsonl")  # fmt: skip


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts a run of so many rounds, as far as what was made by others goes."""
    monkeypatch.chdir(tmp_path)
    Path("cases.csv").write_text("case,image,label,dataset,role\na,a.nii.gz,a_label.nii.gz,flare22,train\n")

    def start(rounds: int) -> Run:
        run = Run({"cases": "cases.csv", "results": "results", "rounds": rounds})
        move_rounds(run)
        return run

    return start


def files(run: Run, rounds: int) -> dict[Path, str]:
    """Return what a run of so many rounds makes in each, as text that names the round."""
    found, plan = {}, next(iter(run.chain.plans))
    for number in range(1, rounds + 1):
        end = "" if number == rounds else f"_round{number}"
        student, labels = f"student{end}", f"pseudo{end}"
        names = [(student,), (labels,), (plan, labels), (plan, student), (student,)]
        for place, name in zip(PLACES, names, strict=True):
            found[Path(run.results, place.format(*name))] = f"{place} of round {number}"
    return found


def make(run: Run, rounds: int) -> None:
    for path, text in files(run, rounds).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 3), (3, 2), (3, 1)])
def test_each_round_keeps_what_it_has(start, before, now):
    make(start(before), before)
    run = start(now)
    for path, text in files(run, now).items():
        assert path.read_text() == text if int(text[-1]) <= before else not path.exists()
    run = start(before)
    assert all(path.read_text() == text for path, text in files(run, before).items())


def test_results_of_a_run_in_which_round_1_had_the_plain_name_are_taken_over(start):
    run = start(1)
    for end, number in (("", 1), ("_round2", 2), ("_round3", 3)):
        folder = Path(run.results, f"models/student{end}")
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(str(number))
    start(3)
    names = {"student_round1": "1", "student_round2": "2", "student": "3"}
    assert {name: Path(run.results, "models", name, "model.json").read_text() for name in names} == names
