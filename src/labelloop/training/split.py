"""Which cases of a training are kept for validation. The steps ask it, and so does the look at the case table.

Imports nothing heavy: the Snakefile asks it, too.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from labelloop.base.files import digest


def held_out_cases(
    known: Iterable[str],
    scorable: Collection[str],
    patients: Mapping[str, str],
    seen: Collection[str],
    fraction: float,
    seed: int,
) -> set[str]:
    """Choose validation cases among the ``scorable`` ones of patients that the model has not seen.

    Args:
        known: cases of the training of which a class is known.
        scorable: of these, cases that the model can be scored on.
        seen: patients that the model's weights know already.
        fraction, seed: see :func:`validation_cases`.
    """
    fair = [case for case in scorable if patients[case] not in seen]
    others = {patients[case] for case in known} - {patients[case] for case in fair}
    return validation_cases(fair, patients, fraction, seed, of=len(scorable), spare=not others)


def validation_cases(
    cases: Iterable[str],
    patients: Mapping[str, str],
    fraction: float,
    seed: int,
    of: int | None = None,
    spare: bool = True,
) -> set[str]:
    """Choose the cases kept for validation, all of a patient's or none, until they are ``fraction`` of all ``cases``.

    They are of one patient at least, unless ``fraction`` is 0 or there is none. Which patient is chosen before another
    follows from the ids of their cases and the seed alone.

    Args:
        patients: patient of each case of the collection, so that models that know other cases choose alike.
        of: number of cases that ``fraction`` is a share of; default: all ``cases``.
        spare: whether one patient at least is left to learn from, because there are no others.
    """
    of_patient: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        of_patient[patients[case]].add(case)
    total = sum(map(len, of_patient.values())) if of is None else of
    count = max(1, round(fraction * total)) if fraction else 0
    order = dict.fromkeys(patients[case] for case in sorted(patients, key=lambda case: order_by(case, seed)))
    chosen: set[str] = set()
    candidates = [patient for patient in order if patient in of_patient]
    for patient in candidates[:-1] if spare else candidates:
        if len(chosen) >= count:
            break
        chosen |= of_patient[patient]
    return chosen


def order_by(text: str, seed: int) -> str:
    """Return a hash to sort by: an order of cases that does not depend on which other cases there are."""
    return digest([seed, text])
