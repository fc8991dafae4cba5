from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.base.classes import ClassScheme, load_classes
from labelloop.base.errors import UserError
from labelloop.base.tables import read_table, write_table
from labelloop.cases.annotation import ABSENT, PRESENT, UNKNOWN, annotated, from_table, to_table
from labelloop.cases.groups import BUILT_IN_GROUPS, Group, canonical_name, check_groups, group_cases, members, type_name
from labelloop.cases.table import Case

SCHEME = load_classes("flare")
PARTIAL = (1, 2, 3, 4, 13)


def collection(counts: dict[tuple[int, ...], int], **row: str):
    """Return made-up annotation states and cases: so many cases for each tuple of annotated class ids.

    The first annotated class of every third case is absent: annotated is what somebody looked for, not what is there.
    """
    states, cases = {}, {}
    names = {c.id: c.name for c in SCHEME.classes}
    for ids, count in counts.items():
        for _ in range(count):
            name = f"case_{len(cases):04d}"
            found = {names[i]: ABSENT if k == 0 and len(cases) % 3 == 0 else PRESENT for k, i in enumerate(ids)}
            states[name] = dict.fromkeys(SCHEME.names, UNKNOWN) | found
            cases[name] = Case(case=name, image="x", dataset="flare23", modality="CT", **row)
    return states, cases


def sizes(counts: dict[tuple[int, ...], int], extra=None) -> Counter:
    states, cases = collection(counts)
    return Counter(group_cases(to_table(states, SCHEME.names), cases, SCHEME, extra)["group"])


def ids(*ranges: tuple[int, int]) -> tuple[int, ...]:
    return tuple(i for first, last in ranges for i in range(first, last + 1))


def test_meng_s_six_groups_of_flare23():
    # Meng (seed 001) section 2.1: 1800 / 2200, of these 703 / 1497, of the 703: 484 / 219.
    found = sizes(
        {(): 1800, (14,): 900, (*PARTIAL, 14): 597, PARTIAL: 438, ids((1, 8), (10, 13)): 46, ids((1, 13)): 219}
    )
    assert (found["all"], found["unlabeled"], found["labeled"]) == (4000, 1800, 2200)
    assert (found["no_tumor"], found["tumor"]) == (703, 1497)
    assert (found["organs_partial"], found["organs_full_no_tumor"], found["organs_full"]) == (484, 219, 219)


def test_mao_s_three_sets_of_flare23():
    # Mao (seed 000): 222 organ, 1497 tumor and 481 incomplete cases; three cases more are complete than Meng counts.
    found = sizes({ids((1, 13)): 222, (14,): 900, (*PARTIAL, 14): 597, PARTIAL: 438, ids((1, 8), (10, 13)): 43})
    assert (found["organs_full_no_tumor"], found["tumor"], found["organs_partial"]) == (222, 1497, 481)
    assert found["labeled"] == 2200


def test_zhou_s_types_of_flare23():
    # Zhou (seed 002), counts of the released lists: 888 / 592 / 438 / 219, and 63 cases of other types.
    counts = {ids((1, 14)): 888, (*PARTIAL, 14): 592, PARTIAL: 438, ids((1, 13)): 219}
    counts |= {ids((1, 8), (10, 13)): 21, (1, 14): 17, (1, 2, 13): 6, (3, 4): 6, (2,): 6, (13,): 6, (1, 3): 1}
    found = sizes(counts)
    types = {name: n for name, n in found.items() if name.startswith("type:")}
    main = {"type:1-14": 888, "type:1,2,3,4,13,14": 592, "type:1,2,3,4,13": 438, "type:1-13": 219}
    assert {name: n for name, n in types.items() if n > 100} == main
    assert sum(types.values()) == found["labeled"] == 2200
    assert (found["tumor"], found["no_tumor"]) == (1497, 703)
    # Whoever counts completed tumor cases as fully annotated must say so: organs with and without tumor.
    assert (found["organs_full"], found["organs_full_no_tumor"]) == (888 + 219, 219)


all_states = st.lists(
    st.fixed_dictionaries({name: st.sampled_from([PRESENT, ABSENT, UNKNOWN]) for name in SCHEME.names}), max_size=6
)


@given(states=all_states)
def test_states_are_what_they_were_after_a_table_and_groups_are_those_of_what_is_annotated(states):
    cases = {f"case_{i}": Case(case=f"case_{i}", image="x", dataset="flare23") for i in range(len(states))}
    states = dict(zip(cases, states, strict=True))
    table = to_table(states, SCHEME.names)
    assert from_table(table) == states
    groups = group_cases(table, cases, SCHEME)
    organs = set(SCHEME.select("organs"))
    for case, known in states.items():
        seen = set(annotated(known))
        expected = {"all", "labeled" if seen else "unlabeled"}
        if seen:
            expected |= {type_name(SCHEME.ids[name] for name in seen), "tumor" if "tumor" in seen else "no_tumor"}
        if seen >= organs:
            expected |= {"organs_full"} | ({"organs_full_no_tumor"} if "tumor" not in seen else set())
        elif seen & organs and "tumor" not in seen:
            expected.add("organs_partial")
        assert set(groups.loc[groups["case"] == case, "group"]) == expected


def test_types_are_named_as_zhou_names_them():
    assert type_name(ids((1, 13))) == "type:1-13"
    assert type_name((13, 4, 3, 2, 1)) == "type:1,2,3,4,13"
    assert type_name(ids((1, 8), (10, 13))) == "type:1-8,10,11,12,13"
    assert canonical_name("type: 13, 1–4") == "type:1,2,3,4,13"
    assert canonical_name("tumor") == "tumor"


@given(data=st.data(), runs=st.lists(st.tuples(st.integers(1, 254), st.integers(0, 6)), min_size=1, max_size=5))
def test_a_type_has_one_name_however_it_is_written(data, runs):
    """As runs in any order, with or without ranges; what the name says are the ids."""
    written, wanted = [], set()
    for first, more in runs:
        last = min(first + more, 254)
        wanted |= set(range(first, last + 1))
        dash = data.draw(st.sampled_from(["-", "–", " - ", ""]))
        written.append(f"{first}{dash}{last}" if dash else ",".join(map(str, range(first, last + 1))))
    name = canonical_name("type:" + data.draw(st.sampled_from([",", ", "])).join(written))
    assert name == type_name(wanted) == canonical_name(name)
    parts = [part.split("-") for part in name.removeprefix("type:").split(",")]
    said = [i for part in parts for i in range(int(part[0]), int(part[-1]) + 1)]
    assert said == sorted(wanted) and all(int(part[-1]) - int(part[0]) >= 4 for part in parts if len(part) > 1)


@pytest.mark.parametrize("written", ["type:", "type:liver", "type:1-", "type:1;2"])
def test_a_type_that_is_no_list_of_ids_is_refused(written):
    with pytest.raises(UserError, match="class id or range"):
        canonical_name(written)


def test_groups_of_one_s_own_build_on_each_other():
    states, cases = collection({(): 2, (1, 3): 3, (1, 14): 4, ids((1, 13)): 5})
    cases |= {c: cases[c].model_copy(update={"modality": "MR", "dataset": "amos"}) for c in list(cases)[-2:]}
    cases |= {c: cases[c].model_copy(update={"sequence": "t2w"}) for c in list(cases)[-1:]}
    extra = {
        "liver_ct": Group.model_validate({"all": ["liver"], "modality": "CT"}),
        "with_spleen": Group.model_validate({"in": "liver_ct", "any": ["spleen", "tumor"], "none": "tumor"}),
        "others": Group.model_validate({"labeled": True, "not_in": ["with_spleen", "type:1,14"]}),
        "amos": Group(dataset=("amos", "btcv")),
        "t2w": Group.model_validate({"sequence": ["t1w", "t2w"]}),
    }
    found = Counter(group_cases(to_table(states, SCHEME.names), cases, SCHEME, extra)["group"])
    assert {name: found[name] for name in extra} == {"liver_ct": 10, "with_spleen": 6, "others": 2, "amos": 2, "t2w": 1}
    assert members(states, cases, SCHEME, extra, ["amos", "others"]) == set(list(cases)[-2:])
    assert len(members(states, cases, SCHEME, extra, ["type:1-1,14", "unlabeled"])) == 6


def test_a_set_in_any_asks_for_any_of_its_classes_and_in_all_for_all():
    counts = {(1,): 1, ids((1, 13)): 1, (14,): 1}
    found = sizes(
        counts,
        {"some": Group(any_of=("organs",)), "every": Group(all_of=("organs",)), "no": Group(none_of=("organs",))},
    )
    assert (found["some"], found["every"], found["no"]) == (2, 1, 1)


def test_groups_survive_a_rule_s_params():
    group = Group.model_validate({"all": "liver", "none": ["tumor"], "in": ["labeled"], "labeled": True})
    assert Group.model_validate(dict(group.model_dump(mode="json"))) == group


def test_every_problem_of_own_groups_is_named():
    extra = {
        "tumor": Group(),
        "type:1": Group(),
        "a": Group.model_validate({"all": ["livr"], "in": ["b", "organs_ful"]}),
        "b": Group.model_validate({"not_in": ["a", "type:x"]}),
    }
    lines = check_groups(extra, SCHEME)
    assert len(lines) == 6
    text = "\n".join(lines)
    for part in (
        "'tumor': this name is built in",
        "'type:1'",
        "did you mean 'liver'",
        "did you mean 'organs_full'",
        "'x' is no",
        "circle",
    ):
        assert part in text
    states, cases = collection({(1,): 1})
    with pytest.raises(UserError, match="circle"):
        group_cases(to_table(states, SCHEME.names), cases, SCHEME, extra)


def test_a_group_that_does_not_exist_is_refused():
    states, cases = collection({(1,): 1})
    with pytest.raises(UserError, match="did you mean 'tumor'"):
        members(states, cases, SCHEME, {}, ["tumour"])


def test_cases_set_aside_by_the_survey_are_in_no_group_and_every_role_is_grouped():
    states, cases = collection({(1,): 4}, role="test")
    del states["case_0001"]
    table = group_cases(to_table(states, SCHEME.names), cases, SCHEME)
    assert sorted(set(table["case"])) == ["case_0000", "case_0002", "case_0003"]


def test_a_scheme_without_organs_or_tumor_has_the_groups_it_can_have():
    scheme = ClassScheme(name="one", classes=({"name": "liver", "id": 1, "tolerance_mm": 5, "color": "#000000"},))
    case = Case(case="a", image="x", dataset="lits")
    table = group_cases(to_table({"a": {"liver": PRESENT}}, scheme.names), {"a": case}, scheme)
    assert sorted(table["group"]) == ["all", "labeled", "type:1"]
    assert set(BUILT_IN_GROUPS) > {"all", "labeled", "tumor"}


def test_the_groups_table_is_written_and_read_back(tmp_path):
    states, cases = collection({PARTIAL: 2, (): 1})
    table = group_cases(to_table(states, SCHEME.names), cases, SCHEME)
    write_table(tmp_path / "groups.csv", table, "groups")
    again = read_table(tmp_path / "groups.csv", "groups")
    assert sorted(map(tuple, again.values)) == sorted(map(tuple, table.values))
    assert "type:1,2,3,4,13" in set(again["group"])
