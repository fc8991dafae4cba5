"""What is written as a table comes back as it was, and equal rows in another order give equal bytes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelloop.base.errors import UserError
from labelloop.base.tables import TABLES, numeric, read_table, write_table
from strategies import few

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
values = st.floats(-1e9, 1e9).map(lambda value: float(f"{value:.6g}")) | st.just(float("nan"))


@st.composite
def tables(draw):
    """Draw a kind of table and rows of it, no two of one key."""
    kind = draw(st.sampled_from(sorted(set(TABLES) - {"cases", "provenance", "review"})))
    row = {column: values if column in numeric(kind) else words for column in TABLES[kind]}
    first = next(iter(row))
    rows = draw(st.lists(st.fixed_dictionaries(row), max_size=5))
    return kind, [r | {first: f"{number:03d}" if first == "case" else r[first]} for number, r in enumerate(rows)]


@few(2)
@given(drawn=tables(), seed=st.randoms(use_true_random=False))
def test_rows_come_back_and_their_order_does_not_matter(tmp_path, drawn, seed):
    kind, rows = drawn
    write_table(tmp_path / "a.csv", rows, kind)
    again = read_table(tmp_path / "a.csv", kind)
    assert list(again.columns) == list(TABLES[kind]) and len(again) == len(rows)
    write_table(tmp_path / "c.csv", again, kind)
    assert (tmp_path / "c.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    if "case" not in TABLES[kind]:
        return
    for row, found in zip(rows, again.to_dict("records"), strict=True):
        for column, value in row.items():
            np.testing.assert_equal(found[column], value)
    shuffled = seed.sample(rows, len(rows))
    write_table(tmp_path / "b.csv", shuffled, kind)
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


@pytest.mark.parametrize("wrong", [{"case": "a"}, {"case": "a", "group": "all", "more": 1}])
def test_columns_are_those_of_the_schema(tmp_path, wrong):
    with pytest.raises(UserError, match="a groups table has"):
        write_table(tmp_path / "groups.csv", [wrong], "groups")
    pd.DataFrame([{"case": "a"}]).to_csv(tmp_path / "groups.csv", index=False)
    with pytest.raises(UserError, match=r"lacks the columns.*run what wrote it again"):
        read_table(tmp_path / "groups.csv", "groups")


GOOD = "case,class,state\nc0,liver,present\nc1,liver,absent\n"


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "not a CSV table"), (bytes(range(256)) * 20, "not a CSV table"), (GOOD.encode("utf-16"), "as CSV UTF-8"),
     (GOOD.replace("c1", "Mü").encode("cp1252"), "in Excel, save it as CSV UTF-8"),
     (b"PK\3\4\xff" * 9, "an Excel workbook; in Excel, save it as CSV UTF-8"),
     (GOOD + 'c2,"liver,present\n', "not a CSV table"), (GOOD + "c2,liver,present,extra\n", "line 4: more or"),
     (GOOD + "c2\n", "line 4: more or fewer"), (GOOD.replace("\nc", "\nx,c"), "line 2: more or fewer"),
     (GOOD.replace(",", ";"), "its columns are case;class;state")],
)  # fmt: skip
def test_what_is_no_table_is_told_in_a_line(tmp_path, content, found):
    path = tmp_path / "annotation.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=found):
        read_table(path, "annotation")


@pytest.mark.parametrize("value", ["n/a", '"0,93"', "93 %", "-"])
def test_numbers_that_are_none_are_not_empty(tmp_path, value):
    row = {"cases": "3", "slices": "9", "positive": "3", "accuracy": "1", "sensitivity": "1", "specificity": "nan"}
    texts = {column: row.get(column, "x") for column in TABLES["slice_scores"]} | {"auc": value}
    path = tmp_path / "scores.csv"
    path.write_text(",".join(texts) + "\n" + ",".join(texts.values()) + "\n")
    with pytest.raises(UserError, match=r"row 2: auc is .*, where a number is expected"):
        read_table(path, "slice_scores")
    path.write_text(path.read_text().replace(value, ""))
    assert np.isnan(read_table(path, "slice_scores")["auc"][0])


@pytest.mark.parametrize("value", ["0,93", "unknown", "-"])
def test_what_is_no_number_is_not_written_as_one(tmp_path, value):
    rows = [{"case": "a", "class": "liver", "volume_ml": number, "confidence": 0.5} for number in (3.0, value)]
    with pytest.raises(UserError, match=f"row 3: volume_ml is '{value}', where a number is expected"):
        write_table(tmp_path / "confidence.csv", rows, "confidence")
    assert not (tmp_path / "confidence.csv").exists()
