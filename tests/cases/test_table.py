import time

import pytest

from labelloop.base.errors import UserError
from labelloop.base.tables import CASES, read_table
from labelloop.cases.table import COLUMNS, REASONS, Case, load_cases, write_cases


@pytest.fixture
def table(tmp_path):
    def write(*lines: str, header: str = "case,image,label,dataset,modality,patient,role,annotated"):
        path = tmp_path / "cases.csv"
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return path

    return write


def codes(rejected: list[dict]) -> list[tuple[str, str, str]]:
    return [(row["case"], row["code"], row["severity"]) for row in rejected]


def touch(folder, *names: str):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_a_case_has_the_columns_of_the_case_table():
    assert tuple(CASES) == COLUMNS


def test_paths_are_resolved_and_defaults_filled_in(table, tmp_path):
    cases, rejected = load_cases(
        table("a, images/a.nii.gz ,,btcv,,,,", "b,/data/b.nii.gz,b.nii.gz,chaos_mr,,p1,test,liver;spleen")
    )
    assert rejected == []
    assert cases[0].image == str(tmp_path / "images/a.nii.gz")
    assert (cases[0].label, cases[0].modality, cases[0].patient, cases[0].role) == ("", "CT", "a", "train")
    assert (cases[1].image, cases[1].label) == ("/data/b.nii.gz", str(tmp_path / "b.nii.gz"))
    assert (cases[1].modality, cases[1].patient, cases[1].role) == ("MR", "p1", "test")
    assert cases[1].annotated_names(["tumor"]) == ("liver", "spleen")


def test_a_data_set_file_beside_the_table_is_found(table, tmp_path):
    (tmp_path / "own.yaml").write_text("name: own\nmodality: MR\nsource: me\nlabels: {1: liver}\n")
    cases, rejected = load_cases(table("a,a.nii.gz,,own.yaml,,,,", "b,b.nii.gz,,gone.yaml,,,,"))
    assert [(c.dataset, c.modality) for c in cases] == [(str(tmp_path / "own.yaml"), "MR")]
    assert codes(rejected) == [("b", "dataset_unknown", "error")]


def test_all_problems_of_a_table_are_found_in_one_pass(table):
    path = table(
        "good,a.nii.gz,,btcv,,,,",
        "twice,b.nii.gz,,btcv,,,,",
        "twice,c.nii.gz,,btcv,,,,",
        "../x,d.nii.gz,,btcv,,,,",
        "a/b,e.nii.gz,,btcv,,,,",
        ",f.nii.gz,,btcv,,,,",
        ".x,g.nii.gz,,btcv,,,,",
        "ä,h.nii.gz,,btcv,,,,",
        "many,,,btcw,PET,,validation,",
        "short,i.nii.gz,,btcv",
    )
    cases, rejected = load_cases(path)
    assert [c.case for c in cases] == ["good"]
    assert sorted(codes(rejected)) == sorted(
        [("twice", "case_duplicate", "error")] * 2
        + [(c, "case_id_unsafe", "error") for c in ("../x", "a/b", "", ".x", "ä")]
        + [
            ("many", f"{c}", "error")
            for c in ("image_not_named", "dataset_unknown", "modality_unknown", "role_unknown")
        ]
        + [("short", "row_malformed", "error")]
    )
    assert all(row["action"] == REASONS[row["code"]] and row["file"] == str(path) for row in rejected)
    by_code = {row["code"]: row["found"] for row in rejected}
    assert by_code["dataset_unknown"] == "line 10: data set 'btcw'; did you mean 'btcv'?"


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("case,image", ["'dataset' is missing"]),
        (
            "cases,image,labels,dataset",
            ["'case' is missing", "'cases' is unknown; did you mean 'case'", "did you mean 'label'"],
        ),
        ("case,case,image,dataset", ["stands 2 times"]),
        ("case|image|dataset", ["'case' is missing", "'case|image|dataset' is unknown"]),
        ("case;imgae;dataset", ["'image' is missing", "'imgae' is unknown"]),
    ],
)
def test_a_header_that_is_wrong_stops_the_run_with_every_problem(table, header, says):
    with pytest.raises(UserError) as caught:
        load_cases(table("a,b,c,d", header=header))
    assert all(part in str(caught.value) for part in says)


def test_a_table_that_is_no_table_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="labelloop cases"):
        load_cases(tmp_path / "none.csv")
    (tmp_path / "cases.csv").write_bytes(b"case,image,dataset\n\xff\xfe,b,c\n")
    with pytest.raises(UserError, match="UTF-8"):
        load_cases(tmp_path / "cases.csv")
    (tmp_path / "cases.csv").write_text("case,image,dataset\n\n")
    with pytest.raises(UserError, match="no rows"):
        load_cases(tmp_path / "cases.csv")


def test_what_spreadsheets_write_is_read(tmp_path):
    (tmp_path / "cases.csv").write_bytes('\ufeffcase,image,dataset\r\na,"x, y.nii.gz",btcv\r\n\r\n,,\r\n'.encode())
    cases, rejected = load_cases(tmp_path / "cases.csv")
    assert [c.image for c in cases] == [str(tmp_path / "x, y.nii.gz")] and rejected == []


def test_the_train_cases_of_a_tested_patient_are_set_aside(table):
    path = table(
        "a,a.nii.gz,,btcv,,p1,train,",
        "b,b.nii.gz,,btcv,,p1,test,",
        "c,c.nii.gz,,btcv,,p2,train,",
        "d,d.nii.gz,,btcv,,d,train,",
        "e,d.nii.gz,,btcv,,e,test,",
        "f,f.nii.gz,,btcv,,p3,train,",
        "g,g.nii.gz,,btcv,PET,p3,test,",
        "h,h.nii.gz,,btcv,,p2,train,",
        "i,h.nii.gz,,btcv,,,train,",
    )
    cases, rejected = load_cases(path)
    assert [c.case for c in cases] == ["b", "c", "e", "h", "i"]
    assert set(codes(rejected)) == {
        ("a", "patient_in_train_and_test", "error"),
        ("d", "image_in_train_and_test", "error"),
        ("f", "patient_in_train_and_test", "error"),  # also when the test row itself cannot be used
        ("g", "modality_unknown", "error"),
        ("i", "image_repeated", "warning"),
    }


def test_one_label_of_two_images_is_told(table):
    """As where a cell was dragged down in a spreadsheet."""
    labels = {"a": "l.nii.gz", "b": "x/../l.nii.gz", "c": "", "d": ""}
    cases, rejected = load_cases(table(*(f"{case},{case}.nii.gz,{label},btcv,,,," for case, label in labels.items())))
    assert len(cases) == 4 and codes(rejected) == [("b", "label_repeated", "warning")]
    assert rejected[0]["found"].endswith("l.nii.gz is also that of a")


def test_ids_that_differ_in_capitals_alone_are_told(table):
    cases, rejected = load_cases(table("P1,a.nii.gz,,btcv,,,,", "p2,b.nii.gz,,btcv,,,,", "p1,c.nii.gz,,btcv,,,,"))
    assert [c.case for c in cases] == ["P1", "p2", "p1"]
    assert codes(rejected) == [("p1", "case_id_capitals", "warning")] and "case P1" in rejected[0]["found"]


def test_four_thousand_rows_are_read_quickly(table):
    path = table(*(f"case_{i:04d},images/{i}.nii.gz,,{('flare23', 'btcv')[i % 2]},,,," for i in range(4000)))
    start = time.perf_counter()
    cases, rejected = load_cases(path)
    assert (len(cases), rejected) == (4000, [])
    assert time.perf_counter() - start < 2


def test_written_tables_are_read_back_and_can_be_moved(tmp_path):
    touch(tmp_path / "d" / "images", "a.nii.gz")
    inside = Case(case="a", image=str(tmp_path / "d/images/a.nii.gz"), dataset="btcv", modality="CT", patient="p")
    outside = Case(case="b", image="/elsewhere/b.nii.gz", dataset="btcv", modality="CT", patient="b", annotated="liver")
    write_cases(tmp_path / "d" / "cases.csv", [inside, outside])
    assert load_cases(tmp_path / "d" / "cases.csv") == ([inside, outside], [])
    assert list(read_table(tmp_path / "d" / "cases.csv", "cases")["image"]) == [
        "images/a.nii.gz",
        "/elsewhere/b.nii.gz",
    ]
    (tmp_path / "d").rename(tmp_path / "e")
    assert load_cases(tmp_path / "e" / "cases.csv")[0][0].image == str(tmp_path / "e/images/a.nii.gz")


@pytest.mark.parametrize(
    "text",
    [
        "case,image,dataset,,\na,a.nii.gz,btcv,,\nb,b.nii.gz,btcv,,\n",
        "sep=,\ncase,image,dataset\na,a.nii.gz,btcv\nb,b.nii.gz,btcv\n",
        "\ufeffsep=,\r\nCase,Image,DATASET,,\r\na,a.nii.gz,btcv,,\r\nb,b.nii.gz,btcv,,\r\n,,,,\r\n",
        "\ufeffcase;image;dataset;;\r\na;a.nii.gz;btcv;;\r\nb;b.nii.gz;btcv;;\r\n;;;;\r\n",
        "\ufeffsep=;\r\ncase;image;dataset\r\na;a.nii.gz;btcv\r\nb;b.nii.gz;btcv\r\n",
        "case\timage\tdataset\na\ta.nii.gz\tbtcv\nb\tb.nii.gz\tbtcv\n",
    ],
)
def test_what_excel_adds_is_passed_over(tmp_path, text):
    (tmp_path / "cases.csv").write_bytes(text.encode())
    cases, rejected = load_cases(tmp_path / "cases.csv")
    assert [(c.case, c.dataset) for c in cases] == [("a", "btcv"), ("b", "btcv")] and rejected == []


def test_classes_keep_their_semicolons_in_a_table_that_is_separated_by_them(tmp_path):
    text = '\ufeffcase;image;dataset;annotated\r\na;a,1.nii.gz;btcv;"liver;spleen"\r\n'
    (tmp_path / "cases.csv").write_bytes(text.encode())
    (case,), rejected = load_cases(tmp_path / "cases.csv")
    assert case.annotated_names(()) == ("liver", "spleen") and rejected == []
    assert case.image == str(tmp_path / "a,1.nii.gz")


def test_a_column_with_entries_needs_a_name(table):
    with pytest.raises(UserError, match="column 4 has entries, but no name"):
        load_cases(table("a,a.nii.gz,btcv,liver", header="case,image,dataset,"))
