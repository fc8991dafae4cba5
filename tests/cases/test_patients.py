"""Of each patient one case is drawn, whatever else there is."""

import pandas as pd

from labelloop.cases.patients import one_a_patient, patients_of

CASES = [f"p{n // 9}_{n % 9}" for n in range(180)]
PATIENTS = {case: case.partition("_")[0] for case in CASES}


def test_each_patient_has_one_and_those_that_nobody_knows_are_their_own():
    drawn = one_a_patient([*CASES, "x", "y"], PATIENTS)
    assert sorted(PATIENTS.get(case, case) for case in drawn) == sorted({*PATIENTS.values(), "x", "y"})
    assert one_a_patient(CASES, {}) == set(CASES)
    assert one_a_patient([], PATIENTS) == set()


def test_what_is_drawn_of_a_patient_depends_on_its_own_cases_alone():
    drawn = one_a_patient(CASES, PATIENTS)
    assert one_a_patient(CASES[::-1] * 2, PATIENTS) == drawn
    assert one_a_patient(CASES[:90], PATIENTS) == drawn & set(CASES[:90])


def test_any_of_a_patients_cases_may_be_drawn():
    numbers = pd.Series([case.partition("_")[2] for case in one_a_patient(CASES, PATIENTS)]).value_counts()
    assert len(numbers) >= 6 and numbers.max() <= 8


def test_a_case_without_a_patient_is_one():
    assert patients_of(pd.DataFrame({"case": ["a", "b"], "patient": ["p", ""]})) == {"a": "p", "b": "b"}
