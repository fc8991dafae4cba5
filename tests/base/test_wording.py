"""``base.wording``: a message that leaves lines out says how many."""

import pytest
from pydantic import BaseModel

from labelloop.base.documents import MOST_LINES, validated
from labelloop.base.errors import UserError
from labelloop.base.wording import NAMED, first_of


@pytest.mark.parametrize("total", [0, 1, NAMED - 1, NAMED, NAMED + 1, 4 * NAMED])
def test_lines_are_told_or_counted(total):
    lines = [f"line {number}" for number in range(total)]
    told = first_of(lines)
    assert told[:NAMED] == lines[:NAMED]
    assert told[NAMED:] == ([f"and {total - NAMED} more"] if total > NAMED else [])


def test_a_file_with_very_many_faults_says_how_many_are_not_told():
    class Numbers(BaseModel):
        numbers: list[int]

    with pytest.raises(UserError) as error:
        validated(Numbers, {"numbers": ["none"] * (MOST_LINES + 7)}, "file.json")
    assert len(str(error.value).splitlines()) == MOST_LINES + 1 and str(error.value).endswith("and 7 more")
