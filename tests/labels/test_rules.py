"""Rules of anatomy as data: what is wrong with one is named."""

import pytest
from tiny_verdicts import verdicts

from labelloop.base.errors import UserError
from labelloop.base.tables import TABLES
from labelloop.labels.check import load_rules
from labelloop.labels.rules.base import COUNTS
from labelloop.labels.settings import CRITERIA


def with_rule(scheme, **change):
    rule = {"name": "odd", "kind": "continuous", "classes": ["aorta"], "threshold": 5, "unit": "mm", "source": "test"}
    return scheme.model_copy(update={"rules": ({k: v for k, v in {**rule, **change}.items() if v is not None},)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"treshold": 3}, "treshold"),
        ({"threshold": None}, "threshold: Field required"),
        ({"kind": "continous"}, "'continous' is none of"),
        ({"kind": "goes_on", "least": 2}, "goes_on is now called undersegmented, least is now called min_found. Write"),
        ({"classes": ["aorta", "heart"]}, "no class or set named heart"),
        ({"threshold": {"aorta": 5}, "classes": ["aorta", "liver"]}, "threshold: given for"),
        ({"kind": "position", "of": ["liver"], "direction": "left", "point": "top"}, "top cannot be compared by left"),
        ({"kind": "position", "of": ["hart"], "direction": "left"}, "no class or set named hart"),
        ({"kind": "volume", "threshold": {"liver": [5, 1]}, "classes": None}, "lowest value above the highest"),
        ({"kind": "volume", "threshold": {"liver": [float("nan"), 1]}, "classes": None}, "or NaN"),
        ({"exceptions": ["weather"]}, "exceptions"),
    ],
)
def test_wrong_rules_are_refused_by_name(scheme, change, said):
    with pytest.raises(UserError, match=r"rule 'odd'") as error:
        load_rules(with_rule(scheme, **change))
    assert said in str(error.value)


@pytest.mark.parametrize("name", [*COUNTS, *CRITERIA, "a;b"])
def test_a_rule_has_a_name_that_tables_can_tell_from_others(scheme, name):
    with pytest.raises(UserError, match=f"rule '{name}': name: .*give the rule another name"):
        load_rules(with_rule(scheme, name=name))
    described = TABLES["selected"]["criterion"]
    assert name not in CRITERIA or name in described


def test_a_rule_and_class_may_stand_only_once(scheme):
    twice = with_rule(scheme)
    with pytest.raises(UserError, match="given twice for aorta"):
        load_rules(twice.model_copy(update={"rules": twice.rules * 2}))


def test_shapes_must_agree(anatomy, scheme):
    with pytest.raises(ValueError, match="image of shape"):
        verdicts(anatomy, scheme, image=anatomy.image[1:])
