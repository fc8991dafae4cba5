"""A third of the queue is drawn at random from the accepted labels, and tells how many of those are wrong."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from labelloop.base.tables import TABLES
from labelloop.review.audit import ErrorRate, error_rate
from labelloop.review.queue import queue

LIMIT = 60


def table(kind: str, rows: list[Mapping]) -> pd.DataFrame:
    filled = [dict.fromkeys(TABLES[kind], "") | dict(row) for row in rows]
    return pd.DataFrame(filled, columns=list(TABLES[kind]))


class Labels:
    """Accepted labels of three classes; models agree little on some, and the reviewer sees which are wrong."""

    def __init__(self, seed: int, cases: int = 100):
        chance, self.name = np.random.default_rng(seed), f"pseudo_{seed}"
        keys = [(f"case_{seed}_{n}", name) for n in range(cases) for name in ("liver", "spleen", "tumor")]
        self.wrong = dict(zip(keys, chance.random(len(keys)) < chance.uniform(0.02, 0.5), strict=True))
        rows = [{"case": case, "class": name, "state": "present", "decision": "accepted"} for case, name in keys]
        self.selected = table("selected", rows)
        dice = [0.3 if self.wrong[key] or chance.random() < 0.1 else 0.95 for key in keys]
        pairs = zip(keys, dice, strict=True)
        self.pairs = table("disagreement", [{"case": c, "class": n, "pairwise_dice": d} for (c, n), d in pairs])
        self.reviewed: list[dict] = []

    @property
    def rate(self) -> float:
        return sum(self.wrong.values()) / len(self.wrong)

    def accept(self, *cases: str) -> None:
        """Loosen or tighten selection: labels of these cases are accepted, those of all others are not."""
        wanted = self.selected["case"].isin(cases)
        self.selected["decision"] = wanted.map({True: "accepted", False: "demoted"})
        self.selected["criterion"] = self.selected["reason"] = wanted.map({True: "", False: "agreement"})
        self.reviewed = [row | {"accepted": str(row["case"] in cases)} for row in self.reviewed]

    @property
    def left(self) -> pd.DataFrame:
        """What selection says of labels that reviewers did not settle."""
        decided = {(row["case"], row["class"]) for row in self.reviewed}
        keys = self.selected[["case", "class"]].itertuples(index=False, name=None)
        return self.selected[[key not in decided for key in keys]]

    def asked(self) -> pd.DataFrame:
        empty, said = table("verdicts", []), table("reviewed", self.reviewed)
        return queue(self.left, empty, self.pairs, said, self.name, LIMIT).head(LIMIT)

    def found(self) -> ErrorRate | None:
        return error_rate(self.left, table("reviewed", self.reviewed), self.name)

    def answer_drawn(self) -> None:
        self.answer(self.asked().query("asked == 'random'"))

    def answer(self, rows: pd.DataFrame) -> None:
        for row in rows.to_dict("records"):
            decision = "edited" if self.wrong[row["case"], row["class"]] else "right"
            said = {"case": row["case"], "class": row["class"], "decision": decision, "state": "present"}
            accepted = str(row["decision"] == "accepted")
            self.reviewed.append(said | {"same_label": "True", "asked": row["asked"], "accepted": accepted})


def test_the_interval_holds_the_true_rate_in_at_least_nine_of_ten_runs():
    held, share, doubtful = 0, [], []
    for seed in range(50):
        labels = Labels(seed)
        labels.answer(labels.asked())
        found = labels.found()
        assert found.judged == LIMIT // 3 and found.low <= found.rate <= found.high
        held += found.low <= labels.rate <= found.high
        share.append(found.rate - labels.rate)
        doubtful.append(np.mean([row["decision"] == "edited" for row in labels.reviewed]) - labels.rate)
    assert held >= 45
    assert abs(np.mean(share)) < 0.03  # no bias, where all that was judged is far off
    assert np.mean(doubtful) > 0.2


def test_a_queue_that_is_answered_in_parts_is_one_draw():
    whole, parts = Labels(0), Labels(0)
    whole.answer(whole.asked())
    for _ in range(4):
        parts.answer(parts.asked().head(20))
    drawn = [
        {(row["case"], row["class"]) for row in one.reviewed if row["asked"] == "random"} for one in (whole, parts)
    ]
    assert drawn[0] == drawn[1] and len(drawn[0]) == LIMIT // 3


def test_a_selection_that_accepts_more_is_asked_about_as_if_nothing_had_been_judged():
    """Labels that were refused at first are wrong more often than those that were accepted."""
    share, counted = [], []
    for seed in range(40):
        labels = Labels(seed)
        cases = sorted(set(labels.selected["case"]))
        chance = np.random.default_rng(1000 + seed)
        labels.wrong = {key: key[0] not in cases[:30] and chance.random() < 0.6 for key in labels.wrong}
        labels.accept(*cases[:30])
        labels.answer_drawn()
        assert labels.found().wrong == 0
        labels.accept(*cases)
        assert labels.found() is None or labels.found().judged < LIMIT // 3
        before = len(labels.reviewed)
        labels.answer_drawn()
        assert 0 < len(labels.reviewed) - before < LIMIT // 3
        found = labels.found()
        assert found.judged >= LIMIT // 3 and labels.asked().query("asked == 'random'").empty
        share.append(found.rate - labels.rate)
        counted.append(found.judged)
    assert abs(np.mean(share)) < 0.04
    assert np.mean(counted) < LIMIT // 3 + 2  # not all that was ever judged


def test_a_selection_that_accepts_less_is_not_judged_by_what_it_refuses():
    labels = Labels(2)
    cases = sorted(set(labels.selected["case"]))
    labels.wrong = {key: key[0] in cases[:50] for key in labels.wrong}
    labels.answer(labels.asked())
    assert labels.found().wrong > 0
    labels.accept(*cases[50:])
    labels.answer_drawn()
    assert labels.found().judged >= LIMIT // 3 and labels.found().wrong == 0


def test_an_answer_behind_a_label_that_nobody_looked_at_does_not_count_yet():
    labels = Labels(3)
    first, *others = labels.asked().query("asked == 'random'").to_dict("records")
    labels.answer(pd.DataFrame(others))
    assert labels.found() is None
    labels.answer(pd.DataFrame([first]))
    assert labels.found().judged == LIMIT // 3


def test_every_third_question_is_drawn_at_random_and_other_label_sets_draw_others():
    labels = Labels(1)
    table = labels.asked()
    assert list(table["asked"][:6]) == ["doubt", "doubt", "random"] * 2
    assert list(table["rank"]) == list(range(1, LIMIT + 1))
    labels.name = "other"
    assert set(labels.asked().query("asked == 'random'")["case"]) != set(table.query("asked == 'random'")["case"])


@pytest.mark.parametrize(
    "change",
    [
        {"same_label": "False"},
        {"asked": "doubt"},
        {"problem": "lost"},
        {"decision": "unsure"},
        {"accepted": "False"},
    ],
)
def test_answers_that_say_nothing_of_accepted_labels_do_not_count(change):
    said = {"case": "a", "class": "liver", "decision": "right", "same_label": "True", "asked": "random"}
    said["accepted"] = "True"
    nothing, other = table("selected", []), said | {"class": "pancreas", "decision": "wrong"}  # drawn before "liver"
    assert error_rate(nothing, table("reviewed", [said | change]), "pseudo") is None
    found = error_rate(nothing, table("reviewed", [said | change, other]), "pseudo")
    assert (found.judged, found.wrong, found.open, found.high) == (1, 1, change.get("decision") == "unsure", 1.0)


def test_what_reviewers_settled_is_not_asked_again_and_the_rest_is_first():
    keys = [(case, "liver") for case in "abcdef"]
    selected = table(
        "selected", [{"case": c, "class": n, "decision": "demoted", "criterion": "x", "reason": "x"} for c, n in keys]
    )
    said = [
        ("b", "wrong", "True"),
        ("c", "wrong", "False"),
        ("d", "differ", "True"),
        ("e", "unsure", "True"),
        ("f", "right", "True"),
    ]
    reviewed = [
        {"case": c, "class": "liver", "decision": d, "same_label": same, "reason": "ann said"} for c, d, same in said
    ]
    found = queue(selected, table("verdicts", []), table("disagreement", []), table("reviewed", reviewed))
    assert sorted(found["case"][:3]) == ["c", "d", "e"] and list(found["case"][3:]) == ["a"]
    assert found["reasons"][0].splitlines()[0] == "review: ann said"
