import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from labelloop.base.errors import UserError
from labelloop.base.tables import TABLES, write_table
from labelloop.cases.annotation import from_table, to_table
from labelloop.labels.agree import ALL
from labelloop.labels.select import select
from labelloop.labels.settings import SelectSettings

CLASSES = ("liver", "spleen", "tumor")


class World:
    """Tables of some cases, to be spoiled by the test. Unannotated classes are predicted by model "m"."""

    def __init__(self, states):
        self.states = states
        self.volume = {(case, name): 10.0 for case in states for name in CLASSES}
        self.source = dict.fromkeys(self.volume, "m")
        self.failed = []
        self.said = "too bad"
        self.dice = {(case, name): 0.95 for case in states for name in (*CLASSES, ALL)}
        self.unsure = {(case, name): 0.05 for case in states for name in (*CLASSES, ALL)}

    def select(self, table=None, quality=None, **settings):
        provenance = [
            (*key, "truth" if self.states[key[0]].get(key[1]) else self.source[key], "fuse", 0, ml)
            for key, ml in self.volume.items()
        ]
        verdicts = [(case, name, rule, "fail", 1.0, 2.0, "ml", self.said) for case, name, rule in self.failed]
        verdicts.append(("a", "liver", "volume", "pass", 1.0, 2.0, "ml", "fine"))
        verdicts += [
            (case, "liver", "leak", "doubt", 3.0, 2.0, "cm2", "odd") for case in self.states
        ]  # refuses nothing
        disagreement = [(*key, value, self.unsure[key], 2, None) for key, value in self.dice.items()]
        columns = ["case", "class", "rule", "verdict", "value", "threshold", "unit", "reason"]
        return select(
            to_table(self.states, CLASSES),
            pd.DataFrame(provenance, columns=list(TABLES["provenance"])),
            pd.DataFrame(verdicts, columns=columns),
            pd.DataFrame(disagreement, columns=list(TABLES["disagreement"])),
            SelectSettings(**settings),
            CLASSES,
            table,
            quality=quality,
        )


def decision(table, case, name):
    row = table[(table["case"] == case) & (table["class"] == name)].iloc[0]
    return row["state"], row["decision"], row["reason"]


def kept(table, name):
    return sorted(table[(table["class"] == name) & (table["decision"] == "accepted")]["case"])


@pytest.fixture
def world():
    return World({"a": {"liver": "present", "spleen": "absent"}, "b": {}})


def test_truth_stays_and_the_rest_is_accepted(world, tmp_path):
    world.volume["b", "spleen"] = 0.0
    table = world.select()
    assert decision(table, "a", "liver") == ("present", "truth", "annotated present")
    assert decision(table, "a", "spleen") == ("absent", "truth", "annotated absent")
    assert decision(table, "a", "tumor")[:2] == ("present", "accepted")
    assert decision(table, "b", "spleen")[:2] == ("unknown", "unknown")  # that no model finds it proves nothing
    write_table(tmp_path / "selected.csv", table, "selected")


def test_criteria_are_named_in_the_order_of_their_reasons(world):
    world.failed.append(("b", "liver", "volume"))
    world.dice["b", "liver"] = 0.2
    table = world.select(min_pairwise_dice=0.8).set_index(["case", "class"])
    criteria, reason = table.loc[("b", "liver"), ["criterion", "reason"]]
    assert criteria.split(";") == ["volume", "agreement"]
    assert reason.split("; ") == ["volume: too bad", "pairwise_dice 0.2 below 0.8"]
    assert table.loc[("a", "liver"), "criterion"] == table.loc[("b", "spleen"), "criterion"] == ""


def test_a_reason_holds_no_semicolon_of_its_own(world):
    world.failed = [("b", name, "volume") for name in CLASSES]
    world.said = "3 ml; 10 ml expected"
    verdicts = world.select(min_pairwise_dice=1.0)
    for criteria, reason in zip(verdicts["criterion"], verdicts["reason"], strict=True):
        assert len(criteria.split(";")) == len(reason.split("; "))


def test_absence_counts_only_where_the_recipe_says_so(world):
    world.volume["b", "spleen"] = 0.0
    assert decision(world.select(absent_if_not_found=("spleen",)), "b", "spleen")[:2] == ("absent", "accepted")


def test_truth_is_never_judged(world):
    world.failed = [("a", "liver", "volume")]
    world.dice["a", "liver"] = 0.0
    assert decision(world.select(min_pairwise_dice=0.9), "a", "liver")[1] == "truth"


def test_what_no_model_predicts_is_unknown(world):
    world.source["b", "tumor"] = "none"
    assert decision(world.select(), "b", "tumor") == ("unknown", "unknown", "no model predicted it")


@pytest.mark.parametrize(
    ("if_refused", "state", "word"), [("unknown", "unknown", "demoted"), ("background", "absent", "demoted")]
)
def test_refused_classes_are_demoted(world, if_refused, state, word):
    world.failed = [("b", "tumor", "near_organs")]
    table = world.select(if_refused=if_refused)
    assert decision(table, "b", "tumor") == (state, word, "near_organs: too bad")
    assert decision(table, "b", "liver")[1] == "accepted"
    assert decision(world.select(verdicts=("volume",)), "b", "tumor")[1] == "accepted"  # not a rule that refuses
    assert decision(world.select(verdicts=()), "b", "tumor")[1] == "accepted"


def test_he_accepts_or_drops_whole_cases(world):
    world.failed = [("b", "liver", "volume")]
    table = world.select(if_refused="drop")
    assert {decision(table, "b", name)[:2] for name in CLASSES} == {("unknown", "dropped")}
    assert "liver: volume: too bad" in decision(table, "b", "spleen")[2]
    assert decision(table, "a", "tumor")[1] == "accepted"


def test_demotion_per_class(world):
    world.failed = [("b", "liver", "volume"), ("b", "tumor", "near_organs")]
    table = world.select(if_refused={"tumor": "background"})
    assert [decision(table, "b", n)[0] for n in CLASSES] == ["unknown", "present", "absent"]


def test_thresholds_for_all_and_per_class(world):
    world.dice["b", "spleen"], world.unsure["b", "tumor"] = 0.8, 2.0
    table = world.select(min_pairwise_dice=0.9, max_uncertainty={"tumor": 1.0})
    assert decision(table, "b", "spleen") == ("unknown", "demoted", "pairwise_dice 0.8 below 0.9")
    assert decision(table, "b", "tumor") == ("unknown", "demoted", "uncertainty 2 above 1")
    assert decision(world.select(min_pairwise_dice={"liver": 0.9}), "b", "spleen")[1] == "accepted"


def test_a_missing_score_is_not_good_enough(world):
    world.dice["b", "spleen"] = float("nan")
    assert decision(world.select(min_pairwise_dice=0.5), "b", "spleen")[2] == "no pairwise_dice to judge by"
    assert decision(world.select(), "b", "spleen")[1] == "accepted"


def test_calibrated_thresholds(world):
    columns = ["class", "target_dsc", "confidence", "threshold", "reason"]
    rows = [("liver", 0.9, 0.8, 0.9, "fine"), ("spleen", 0.9, 0.8, float("nan"), "12 of 40 cases prove nothing")]
    rows.append(("tumor", 0.9, 0.8, 0.5, "fine"))
    table = pd.DataFrame(rows, columns=columns)
    asked = {"target_dsc": 0.9, "confidence": 0.8, "calibration": "calibration.csv"}
    world.states["c"] = {}
    for name in (*CLASSES, ALL):
        world.dice["c", name], world.unsure["c", name] = 0.9, 0.05
    for name in CLASSES:
        world.volume["c", name], world.source["c", name] = 10.0, "m"
    chosen = world.select(table, **asked)
    assert decision(chosen, "b", "liver")[1] == "accepted"  # 0.95 is above 0.9
    assert decision(chosen, "c", "liver")[1:] == (
        "demoted",
        "pairwise_dice 0.9 not above 0.9, calibrated for DSC 0.9",
    )
    assert decision(chosen, "b", "spleen")[2] == "DSC 0.9 cannot be promised: 12 of 40 cases prove nothing"
    assert "not in the calibration table" in decision(world.select(table[:2], **asked), "b", "tumor")[2]
    assert decision(chosen, "a", "liver")[1] == "truth"
    on_average = table.assign(confidence=float("nan"))
    assert decision(world.select(on_average, **{**asked, "confidence": None}), "b", "liver")[1] == "accepted"
    with pytest.raises(UserError, match=r"\(0.9, None\).*not for \(0.9, 0.8\)"):
        world.select(on_average, **asked)
    with pytest.raises(UserError, match=r"not for \(0.95, 0.8\)"):
        world.select(table, **{**asked, "target_dsc": 0.95})
    with pytest.raises(UserError, match="no calibration table"):
        world.select(**asked)
    with pytest.raises(ValidationError, match="calibration: without effect without `target_dsc`"):
        SelectSettings(calibration="calibration.csv")


def test_flare22_drops_the_most_uncertain():
    world = World({c: {} for c in "abcdef"})
    for case, value in zip("abcdef", (0.1, 0.6, 0.2, float("nan"), 0.3, 0.4), strict=True):
        world.unsure[case, ALL] = value
    table = world.select(drop_most_uncertain=2)
    assert kept(table, "liver") == ["a", "c", "e", "f"]
    assert decision(table, "b", "liver")[:2] == ("unknown", "dropped")
    assert "rank 5 of 6" in decision(table, "b", "liver")[2]


def test_zhou_1000_then_100_and_900_in_small():
    world = World({f"{i:02d}": {} for i in range(18)})
    random = np.random.default_rng(0)
    order, tumors = random.permutation(18), random.permutation(18)
    for i in range(18):
        world.unsure[f"{i:02d}", ALL], world.unsure[f"{i:02d}", "tumor"] = order[i] / 18, tumors[i] / 18
    table = world.select(keep_least_uncertain={"all": 10, "tumor": 1}, if_refused={"tumor": "background"})
    best = sorted(f"{i:02d}" for i in range(18) if order[i] < 10)
    assert kept(table, "liver") == best
    assert kept(table, "tumor") == [min(best, key=lambda c: world.unsure[c, "tumor"])]
    states = from_table(table)
    assert sum(states[c]["tumor"] == "absent" for c in best) == 9
    assert sum(set(states[c].values()) == {"unknown"} for c in states) == 8


def test_only_unlabeled_cases_are_ranked_if_so_asked():
    world = World({"partly": {"spleen": "present"}, "b": {}, "c": {}})
    world.unsure["partly", ALL], world.unsure["b", ALL], world.unsure["c", ALL] = 0.9, 0.5, 0.1
    asked = {"keep_least_uncertain": {"all": 1}}
    assert kept(world.select(rank="unlabeled", **asked), "liver") == ["c", "partly"]
    assert kept(world.select(**asked), "liver") == ["c"]


def test_cases_in_which_nothing_was_found_take_no_place_in_a_class():
    world = World({c: {} for c in "abc"})
    world.volume["a", "tumor"], world.unsure["a", "tumor"] = 0.0, 0.0  # all agree that there is none
    world.unsure["b", "tumor"], world.unsure["c", "tumor"] = 0.2, 0.1
    table = world.select(
        keep_least_uncertain={"tumor": 1}, if_refused={"tumor": "background"}, absent_if_not_found=("tumor",)
    )
    assert kept(table, "tumor") == ["a", "c"]
    assert [decision(table, case, "tumor")[0] for case in "abc"] == ["absent", "absent", "present"]


def test_keep_n_of_every_class():
    world = World({c: {} for c in "abc"})
    world.failed = [("a", "liver", "volume")]
    for i, case in enumerate("abc"):
        for name in CLASSES:
            world.unsure[case, name] = i / 10
    table = world.select(keep_least_uncertain=1)
    assert kept(table, "liver") == ["b"]  # refused ones do not take a place
    assert kept(table, "spleen") == ["a"]


def test_ranked_out_cases_keep_their_truth(world):
    world.unsure["a", ALL], world.unsure["b", ALL] = 9.0, 0.1
    table = world.select(drop_most_uncertain=1)
    assert decision(table, "a", "liver")[1] == "truth"
    assert decision(table, "a", "tumor")[1] == "demoted"


def test_a_case_without_any_known_class_is_dropped(world):
    world.failed = [("b", name, "volume") for name in CLASSES]
    table = world.select()
    assert {decision(table, "b", n)[1] for n in CLASSES} == {"dropped"}
    assert decision(table, "b", "liver")[2] == "no class is known; volume: too bad"


def test_settings_are_strict():
    for wrong in ({"min_dice": 0.9}, {"if_refused": "delete"}, {"drop_most_uncertain": -1}):
        with pytest.raises(ValidationError):
            SelectSettings(**wrong)


def test_labels_of_small_predicted_quality_are_refused_and_their_reason_is_told(world):
    rows = [("b", "liver", 0.9, "fine"), ("b", "spleen", 0.4, "a DSC of 0.40 is predicted; leaks")]
    table = pd.DataFrame([{"case": c, "class": n, "dsc": dsc, "reason": said} for c, n, dsc, said in rows])
    found = world.select(quality=table, min_quality={"liver": 0.8, "spleen": 0.8}).set_index(["case", "class"])
    assert found.loc[("b", "liver"), "decision"] == "accepted"
    assert tuple(found.loc[("b", "spleen"), ["decision", "criterion"]]) == ("demoted", "quality")
    assert found.loc[("b", "spleen"), "reason"] == "a DSC of 0.40 is predicted, leaks, where 0.8 is asked for"
    assert decision(world.select(quality=table[:1], min_quality=0.5), "b", "spleen")[2].startswith(
        "no DSC is predicted"
    )
    assert decision(world.select(min_quality=0.5), "b", "liver")[1] != "accepted"
    assert decision(world.select(min_quality=0), "b", "liver")[1] == "accepted"  # nothing is refused
    with pytest.raises(ValidationError, match="leave one out"):
        SelectSettings(min_quality=0.5, target_dsc=0.8)


def test_a_threshold_may_be_one_of_the_predicted_dsc(world):
    world.dice = {}
    rows = [{"case": "b", "class": name, "dsc": dsc, "reason": ""} for name, dsc in (("liver", 0.9), ("spleen", 0.7))]
    limits = pd.DataFrame({"class": ["liver", "spleen"], "target_dsc": 0.85, "confidence": 0.9, "threshold": 0.8})
    limits["reason"] = ""
    table = world.select(limits, pd.DataFrame(rows), target_dsc=0.85, score="quality")
    assert decision(table, "b", "liver")[1] == "accepted"
    assert decision(table, "b", "spleen")[2] == "predicted DSC 0.7 not above 0.8, calibrated for DSC 0.85"
    assert decision(table, "b", "tumor")[1] == "demoted"
    for wrong in ({"score": "quality"}, {"score": "quality", "target_dsc": 0.85, "calibration": "x.csv"}):
        with pytest.raises(ValidationError, match="needs target_dsc, and thresholds that the run finds"):
            SelectSettings(**wrong)
