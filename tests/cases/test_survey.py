import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from bad_inputs import AFFINE, BadInputs, ct_values, label_values, make_bad_inputs, patched, save
from labelloop.base.classes import IGNORED, load_classes
from labelloop.base.errors import CaseError, UserError
from labelloop.base.tables import read_table
from labelloop.cases import survey as survey_module
from labelloop.cases.annotation import ABSENT, PRESENT, UNKNOWN, from_table
from labelloop.cases.folders import pair_folders
from labelloop.cases.survey import REASONS, read_truth, survey_case
from labelloop.cases.table import Case, load_cases
from labelloop.images import scan as scan_module
from labelloop.images.datasets import load_dataset
from labelloop.images.scan import read_scan
from labelloop.images.volume import read, write
from labelloop.steps import cases as case_steps
from survey_files import do_survey, merge_to, survey_to
from tiny_ct import body, scan

SCHEME = load_classes("flare")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> BadInputs:
    return make_bad_inputs(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="module")
def surveyed(bad) -> tuple[dict[str, dict[str, str]], dict[str, survey_module.SurveyResult]]:
    """{case: {code: severity}} of the table's and the survey's findings, and the survey's results."""
    cases, rejected = load_cases(bad.table)
    results = {c.case: survey_case(c, load_dataset(c.dataset, SCHEME), SCHEME) for c in cases}
    rows = [*rejected, *(row for result in results.values() for row in result.quarantine)]
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(row["case"], {})[row["code"]] = row["severity"]
    return found, results


def test_each_bad_file_gets_its_code_and_no_good_file_gets_any(bad, surveyed):
    found, results = surveyed
    assert {case: codes for case, codes in found.items() if case in bad.good} == {}
    assert {case: found[case] for case in bad.errors} == {case: {c: "error"} for case, c in bad.errors.items()}
    assert {case: found[case] for case in bad.warnings} == {case: {c: "warning"} for case, c in bad.warnings.items()}
    assert all(results[case].usable for case in [*bad.good, *bad.warnings])
    assert not any(results[case].usable for case in bad.errors if case in results)


def test_every_code_that_can_be_raised_says_what_to_do(surveyed):
    found, _ = surveyed
    assert {code for codes in found.values() for code in codes} <= set(REASONS)
    assert all(action.endswith(".") and len(action) > 20 for action in REASONS.values())


def test_a_finding_names_case_file_what_was_found_and_what_to_do(bad):
    cases, _ = load_cases(bad.table)
    case = next(c for c in cases if c.case == "other_ids")
    (row,) = survey_case(case, load_dataset("flare22", SCHEME), SCHEME).quarantine
    assert row["file"] == case.label
    assert "99" in row["found"] and "flare22 knows 1, 2" in row["found"]
    assert row["action"] == REASONS["label_unknown_ids"]


def test_image_and_label_problems_are_reported_together(tmp_path):
    image = save(tmp_path / "a_0000.nii.gz", np.zeros((24, 20, 16), np.int16))
    label = save(tmp_path / "a.nii.gz", label_values(77))
    case = Case(case="a", image=str(image), label=str(label), dataset="flare22", modality="CT")
    codes = [row["code"] for row in survey_case(case, load_dataset("flare22", SCHEME), SCHEME).quarantine]
    assert codes == ["image_constant", "label_unknown_ids"]


def test_states_follow_the_annotation_and_not_the_ids_in_the_file(tmp_path):
    image = save(tmp_path / "a_0000.nii.gz", ct_values())
    label = save(tmp_path / "a.nii.gz", label_values(1, 3, 14))
    row = {"case": "a", "image": str(image), "label": str(label), "dataset": "flare23", "modality": "CT"}
    case = Case(**row, annotated="liver;spleen;gallbladder")
    result = survey_case(case, load_dataset("flare23", SCHEME), SCHEME)
    states = {"liver": PRESENT, "spleen": PRESENT, "gallbladder": ABSENT}
    assert result.states == dict.fromkeys(SCHEME.names, UNKNOWN) | states
    found = {row["code"]: row["found"] for row in result.quarantine}
    assert found == {"label_class_empty": "no voxel of gallbladder", "label_not_annotated": "16 voxels of tumor"}
    assert set(np.unique(read_truth(case, SCHEME).array)) == {0, 1, 3}  # the tumor nobody looked for is not in it


def test_an_unlabeled_case_is_unknown_throughout(bad):
    cases, _ = load_cases(bad.table)
    case = next(c for c in cases if c.case == "good_unlabeled")
    assert set(survey_case(case, load_dataset("flare22", SCHEME), SCHEME).states.values()) == {UNKNOWN}
    assert read_truth(case, SCHEME) is None


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64, np.int32, ">i2"])
@pytest.mark.parametrize("slope", [None, 2.0, -0.5])
def test_a_scan_is_read_as_itk_reads_it(tmp_path, dtype, slope):
    rng = np.random.default_rng(1)
    path = save(tmp_path / "a.nii.gz", rng.integers(0, 200, (6, 5, 4)).astype(dtype))
    if slope is not None:
        patched(path, 112, "2f", slope, -3.0)
    scan, volume = read_scan(path, "image"), read(path)
    assert scan.geometry == volume.geometry and scan.values().dtype == volume.array.dtype
    assert np.array_equal(scan.values(), volume.array)
    assert scan.range() == (volume.array.min(), volume.array.max())


def test_no_byte_of_a_header_makes_another_error_than_a_case_error(tmp_path):
    good = save(tmp_path / "good.nii.gz", ct_values())
    data = gzip.decompress(good.read_bytes())
    broken = tmp_path / "broken.nii"
    fields = [*range(4), *range(40, 56), *range(70, 124), *range(252, 328)]  # the others hold text
    for offset in fields:
        for value in (0x00, 0x7F, 0xFF):
            spoiled = bytearray(data)
            spoiled[offset] = value
            broken.write_bytes(bytes(spoiled))
            try:
                scan = read_scan(broken, "image")
            except CaseError as error:
                assert error.code in REASONS
            else:
                assert scan.stored.ndim == 3


def test_nothing_is_printed_about_bad_files(bad, capfd, monkeypatch):
    monkeypatch.setattr("threading.active_count", lambda: 1)  # as in a job; tests may have left a thread behind
    for case in load_cases(bad.table)[0]:
        survey_case(case, load_dataset("flare22", SCHEME), SCHEME)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def shard_tables(prefix: Path) -> dict[str, bytes]:
    return {k: Path(f"{prefix}.{k}.csv").read_bytes() for k in ("geometry", "annotation", "quarantine")}


def test_a_shard_resumes_and_repeats_to_the_same_bytes(bad, tmp_path, monkeypatch):
    cases, _ = load_cases(bad.table)
    looked_at = []
    real = survey_module.survey_case

    def counted(case, *rest):
        looked_at.append(case.case)
        if len(looked_at) == 20:
            raise KeyboardInterrupt
        return real(case, *rest)

    monkeypatch.setattr(survey_module, "survey_case", counted)
    prefix = tmp_path / "survey" / "train-000"
    with pytest.raises(KeyboardInterrupt):
        survey_to(prefix, cases, SCHEME)
    assert not Path(f"{prefix}.geometry.csv").exists()
    survey_to(prefix, cases, SCHEME)
    assert len(looked_at) == len(cases) + 1  # only the case in hand is looked at twice
    first = shard_tables(prefix)
    survey_to(prefix, cases, SCHEME)
    assert len(looked_at) == len(cases) + 1
    assert shard_tables(prefix) == first
    monkeypatch.undo()
    survey_to(tmp_path / "again" / "train-000", cases, SCHEME)
    assert shard_tables(tmp_path / "again" / "train-000") == first


def test_a_changed_file_or_row_is_looked_at_again(tmp_path):
    image = save(tmp_path / "a_0000.nii.gz", ct_values())
    label = save(tmp_path / "a.nii.gz", label_values(1))
    case = Case(case="a", image=str(image), label=str(label), dataset="flare23", modality="CT", annotated="liver")
    prefix = tmp_path / "survey" / "s"

    def state(of: str) -> str:
        return from_table(read_table(f"{prefix}.annotation.csv", "annotation"))["a"][of]

    survey_to(prefix, [case], SCHEME)
    assert (state("liver"), state("spleen")) == (PRESENT, UNKNOWN)
    save(label, label_values(3, 3))
    survey_to(prefix, [case], SCHEME)
    assert state("liver") == ABSENT
    survey_to(prefix, [case.model_copy(update={"annotated": "spleen"})], SCHEME)
    assert (state("liver"), state("spleen")) == (UNKNOWN, PRESENT)


def test_an_unforeseen_error_that_stays_sets_one_case_aside(tmp_path, monkeypatch):
    files = {c: save(tmp_path / f"{c}_0000.nii.gz", ct_values(i)) for i, c in enumerate("ab")}
    cases = [Case(case=c, image=str(f), dataset="flare22", modality="CT") for c, f in files.items()]
    real = scan_module.read_geometry

    def read_geometry(path):
        if path.name.startswith("a_"):
            raise MemoryError("full")
        return real(path)

    monkeypatch.setattr(scan_module, "read_geometry", read_geometry)
    with pytest.raises(UserError, match="a: MemoryError: full"):
        survey_to(tmp_path / "survey" / "s", cases, SCHEME)
    survey_to(tmp_path / "survey" / "s", cases, SCHEME)
    assert list(read_table(tmp_path / "survey" / "s.geometry.csv", "geometry")["case"]) == ["b"]
    quarantine = read_table(tmp_path / "survey" / "s.quarantine.csv", "quarantine")
    assert list(quarantine["code"]) == ["survey_failed"]
    assert "full" in quarantine["found"][0]


@pytest.mark.parametrize("where", ["bytes", "header"])
def test_a_disk_that_is_away_says_nothing_of_the_file(tmp_path, monkeypatch, where):
    file = save(tmp_path / "a_0000.nii.gz", ct_values(0))
    cases, away, real = [Case(case="a", image=str(file), dataset="flare22", modality="CT")], tmp_path / "away", read

    def read_bytes(_):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"Stale file handle|No such file"):
        if where == "bytes":
            patch.setattr(Path, "read_bytes", read_bytes)
        else:
            patch.setattr(scan_module, "read_geometry", lambda path: real(path.rename(away).with_name(path.name)))
        survey_to(tmp_path / "survey" / "s", cases, SCHEME)
    if where == "header":
        away.rename(file)
    survey_to(tmp_path / "survey" / "s", cases, SCHEME)
    assert list(read_table(tmp_path / "survey" / "s.geometry.csv", "geometry")["case"]) == ["a"]


def test_merging_joins_the_shards_and_the_table_s_own_problems(bad, tmp_path):
    cases, rejected = load_cases(bad.table)
    prefixes = [tmp_path / "survey" / s for s in ("train-000", "test-000")]
    for prefix, role in zip(prefixes, ("train", "test"), strict=True):
        survey_to(prefix, [c for c in cases if c.role == role], SCHEME)
    merge_to(tmp_path, prefixes, rejected)
    geometry = read_table(tmp_path / "geometry.csv", "geometry")
    states = from_table(read_table(tmp_path / "annotation.csv", "annotation"))
    quarantine = read_table(tmp_path / "quarantine.csv", "quarantine")
    usable = sorted([*bad.good, *bad.warnings])
    assert list(geometry["case"]) == usable
    assert sorted(states) == usable
    assert all(list(s) == sorted(SCHEME.names) for s in states.values())
    errors = quarantine[quarantine["severity"] == "error"]
    assert dict(zip(errors["case"], errors["code"], strict=True)) == bad.errors
    row = geometry[geometry["case"] == "good_0"].iloc[0]
    assert (row["size_x"], row["spacing_z_mm"], row["orientation"], row["minimum"]) == (24, 3.0, "LPS", -1000)


def test_the_same_image_file_twice_is_said(tmp_path):
    files = [save(tmp_path / f"{c}_0000.nii.gz", ct_values()) for c in "ab"]
    files[1].write_bytes(files[0].read_bytes())
    cases = [Case(case=c, image=str(f), dataset="flare22", modality="CT") for c, f in zip("ab", files, strict=True)]
    survey_to(tmp_path / "survey" / "s", cases, SCHEME)
    merge_to(tmp_path, [tmp_path / "survey" / "s"])
    quarantine = read_table(tmp_path / "quarantine.csv", "quarantine")
    assert quarantine[["case", "code", "severity"]].values.tolist() == [["b", "image_same_content", "warning"]]


def copies(tmp_path: Path) -> dict[str, Path]:
    """Write an image, others of its own, and the same voxels in other bytes, formats, headers and orders of axes."""
    files = {c: save(tmp_path / f"{c}_0000.nii.gz", ct_values(i)) for i, c in enumerate(("tested", "own"))}
    files["copy"] = tmp_path / "copy_0000.nii.gz"
    files["copy"].write_bytes(files["tested"].read_bytes())
    files["again"] = tmp_path / "again_0000.nii.gz"
    files["again"].write_bytes(gzip.compress(gzip.decompress(files["tested"].read_bytes()), 1, mtime=5))
    files["format"] = tmp_path / "format_0000.mha"
    write(files["format"], read(files["tested"]).array, read(files["tested"]).geometry)
    files["header"] = save(tmp_path / "header_0000.nii.gz", ct_values(0), AFFINE @ np.diag([0.9, 0.9, 0.9, 1]))
    files["axes"] = save(tmp_path / "axes_0000.nii.gz", ct_values(0)[::-1].transpose(2, 0, 1))
    files["float"] = save(tmp_path / "float_0000.nii", ct_values(0).astype(np.float64))
    return files


def test_a_train_case_with_the_image_of_a_test_case_is_set_aside_whatever_its_bytes(tmp_path):
    files = copies(tmp_path)
    rows = {c: Case(case=c, image=str(f), dataset="flare22", modality="CT").model_dump() for c, f in files.items()}
    out = tmp_path / "survey"
    do_survey([rows.pop("tested")], tmp_path, "test-000")
    case_steps.tested([out / "test-000.geometry.csv"], out / "tested.csv")
    for _ in range(2):  # from the files, and from the ledger
        do_survey(list(rows.values()), tmp_path, "train-000", tested=out / "tested.csv")
        assert list(read_table(out / "train-000.geometry.csv", "geometry")["case"]) == ["own"]
        assert set(read_table(out / "train-000.annotation.csv", "annotation")["case"]) == {"own"}
    merge_to(tmp_path, [out / "train-000", out / "test-000"])
    quarantine = read_table(tmp_path / "quarantine.csv", "quarantine")
    errors = quarantine[quarantine["severity"] == "error"]
    assert {(row.case, row.file, row.code) for row in errors.itertuples()} == {
        (case, str(files[case]), "image_in_train_and_test") for case in files if case not in ("tested", "own")
    }
    assert errors["found"].str.contains("the image of tested").all()
    do_survey([rows["copy"]], tmp_path, "train-000")  # the test case has left
    assert list(read_table(out / "train-000.geometry.csv", "geometry")["case"]) == ["copy"]


def test_a_train_case_that_looks_like_a_test_case_is_warned_of(tmp_path):
    box = (slice(4, 36), slice(2, -2), slice(2, -2))
    scans = {"tested": scan(0).array, "part": scan(0).array[box], "other": scan(1).array}
    cases, out = [], tmp_path / "survey"
    for case, hu in scans.items():
        file = save(tmp_path / f"{case}_0000.nii.gz", hu.T, np.diag([4.5, 4.5, 5.0, 1.0]))
        role = "test" if case == "tested" else "train"
        cases.append(Case(case=case, image=str(file), dataset="flare22", modality="CT", role=role))
    survey_to(out / "s", cases, SCHEME)
    merge_to(tmp_path, [out / "s"], (), cases)
    quarantine = read_table(tmp_path / "quarantine.csv", "quarantine")
    assert quarantine[["case", "code", "severity"]].values.tolist() == [["part", "image_alike", "warning"]]
    assert "tested" in quarantine["found"][0]


def test_where_an_image_is_clipped_stands_in_the_table(tmp_path):
    for name, hu, cut in (("plain", body(), ""), ("cut", np.clip(body(), -125, 275), "below -125;above 275")):
        file = save(tmp_path / f"{name}_0000.nii.gz", hu.T.astype(np.int16), np.diag([-4.0, -4.0, 5.0, 1.0]))
        case = Case(case=name, image=str(file), dataset="flare22", modality="CT")
        result = survey_case(case, load_dataset("flare22", SCHEME), SCHEME)
        assert (result.geometry["clipped_hu"], result.quarantine) == (cut, ())


def test_none_says_that_nobody_annotated_a_class(tmp_path):
    """An empty field says that the data set file knows, which would make every class of an empty label absent."""
    image = save(tmp_path / "a_0000.nii.gz", ct_values())
    label = save(tmp_path / "a.nii.gz", label_values())
    row = {"case": "a", "image": str(image), "label": str(label), "dataset": "flare22", "modality": "CT"}
    result = survey_case(Case(**row, annotated="none"), load_dataset("flare22", SCHEME), SCHEME)
    assert set(result.states.values()) == {UNKNOWN}
    assert [found["code"] for found in result.quarantine] == ["annotation_not_declared"]
    mixed = survey_case(Case(**row, annotated="none;liver"), load_dataset("flare22", SCHEME), SCHEME)
    assert [found["code"] for found in mixed.quarantine] == ["class_unknown"]


def test_a_changed_file_of_voxels_is_looked_at_again(tmp_path):
    path = tmp_path / "a.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(ct_values().T), str(path), useCompression=False)
    case, prefix = Case(case="a", image=str(path), dataset="flare22", modality="CT"), tmp_path / "survey" / "s"
    seen = []
    for seed in (0, 0, 1):
        (tmp_path / "a.raw").write_bytes(ct_values(seed).tobytes(order="F"))
        survey_to(prefix, [case], SCHEME)
        seen.append(read_table(f"{prefix}.geometry.csv", "geometry")["image_voxels"][0])
    assert seen[0] == seen[1] != seen[2]


def test_a_shard_in_which_every_case_is_set_aside_writes_empty_tables(tmp_path):
    case = Case(case="a", image=str(tmp_path / "none.nii.gz"), dataset="flare22", modality="CT")
    survey_to(tmp_path / "survey" / "s", [case], SCHEME)
    merge_to(tmp_path, [tmp_path / "survey" / "s"])
    assert read_table(tmp_path / "geometry.csv", "geometry").empty
    assert list(read_table(tmp_path / "quarantine.csv", "quarantine")["code"]) == ["image_missing"]


def test_results_survive_the_ledger_s_json(surveyed):
    _, results = surveyed
    for result in results.values():
        again = survey_module.SurveyResult(**json.loads(json.dumps(vars(result))))
        assert (again.geometry, again.states) == (result.geometry, result.states)


def test_truth_is_mapped_on_the_stored_grid(tmp_path):
    label = save(tmp_path / "a.nii.gz", label_values(6, 3, 10).astype(np.float32), AFFINE)
    case = Case(case="a", image="", label=str(label), dataset="btcv", modality="CT")
    truth = read_truth(case, SCHEME)
    assert truth.array.dtype == np.uint8
    assert truth.geometry == read(label).geometry
    assert set(np.unique(truth.array)) == {0, SCHEME.ids["liver"], SCHEME.ids["left_kidney"]}


def test_truth_that_cannot_be_mapped_is_a_case_error(tmp_path):
    label = save(tmp_path / "a.nii.gz", label_values(200))
    case = Case(case="a", image="", label=str(label), dataset="btcv", modality="CT")
    with pytest.raises(CaseError) as caught:
        read_truth(case, SCHEME)
    assert (caught.value.code, caught.value.file) == ("label_unknown_ids", str(label))
    with pytest.raises(CaseError, match="label_missing"):
        read_truth(case.model_copy(update={"label": "gone.nii.gz"}), SCHEME)


REAL = [
    ("btcv", "btcv", "btcv_00 btcv_14"),
    ("ircad", "ircad", "ircad_17"),
    ("hcc", "flare23", "hcc_048"),
    ("crlm", "flare23", "crlm_1004"),
    ("chaos_mr", "chaos_mr", "chaos_01"),
]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans of ../shared/data are not here")
@pytest.mark.parametrize(("folder", "dataset", "wanted"), REAL)
def test_no_real_scan_is_flagged(folder, dataset, wanted):
    loaded = load_dataset(dataset, SCHEME)
    labeled = any(path.name.count("_0000") == 0 for path in (SHARED / folder).glob("*.nii.gz"))
    pairs = pair_folders(SHARED / folder, SHARED / folder if labeled else None)
    for name in wanted.split():
        (image,), label = pairs[name]
        row = {"case": name, "image": str(image), "label": str(label or ""), "dataset": dataset}
        result = survey_case(Case(**row, modality=loaded.modality), loaded, SCHEME)
        assert result.quarantine == ()
        present = {c for c, state in result.states.items() if state != UNKNOWN}
        assert present == (set(loaded.annotated) if label else set())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans of ../shared/data are not here")
@pytest.mark.parametrize(("name", "dataset"), [("ts_ct", "totalsegmentator"), ("ts_mr", "totalsegmentator_mr")])
def test_model_labels_of_totalsegmentator_lack_the_esophagus_only(name, dataset):
    loaded = load_dataset(dataset, SCHEME)
    (image,), label = pair_folders(SHARED / "totalseg", SHARED / "totalseg")[name]
    case = Case(case=name, image=str(image), label=str(label), dataset=dataset, modality=loaded.modality)
    result = survey_case(case, loaded, SCHEME)
    assert [row["code"] for row in result.quarantine] == ["label_class_empty"]
    assert [c for c, state in result.states.items() if state == ABSENT] == ["esophagus"]


def ignoring(tmp_path, label, annotated="liver;spleen;gallbladder", surgery=""):
    """A case of which a data set of its own ignores the id 99, and that data set."""
    (tmp_path / "own.yaml").write_text(
        "{name: own, modality: CT, labels: {1: liver, 3: spleen, 9: gallbladder, 99: ignore}}"
    )
    image = save(tmp_path / "a_0000.nii.gz", ct_values())
    files = {"image": str(image), "label": str(save(tmp_path / "a.nii.gz", label))}
    about = {"dataset": str(tmp_path / "own.yaml"), "modality": "CT", "annotated": annotated, "surgery": surgery}
    case = Case(case="a", **files, **about)
    return case, load_dataset(case.dataset, SCHEME)


def test_what_is_not_seen_beside_ignored_voxels_is_unknown(tmp_path):
    case, dataset = ignoring(tmp_path, label_values(1, 99))
    result = survey_case(case, dataset, SCHEME)
    known = {name: state for name, state in result.states.items() if state != UNKNOWN}
    assert known == {"liver": PRESENT}
    assert {row["code"]: row["severity"] for row in result.quarantine} == {"label_class_ignored": "warning"}
    assert "no voxel of spleen, gallbladder" in result.quarantine[0]["found"]
    assert set(np.unique(read_truth(case, SCHEME).array)) == {0, 1, IGNORED}


def test_a_label_map_of_which_all_is_ignored_tells_nothing_and_surgery_still_does(tmp_path):
    array = np.full_like(label_values(1), 99)
    result = survey_case(*ignoring(tmp_path, array), SCHEME)
    assert result.usable and set(result.states.values()) == {UNKNOWN}
    case, dataset = ignoring(tmp_path, array, surgery="gallbladder")
    assert survey_case(case, dataset, SCHEME).states["gallbladder"] == ABSENT


def test_an_id_that_is_ignored_changes_nothing_in_a_label_map_without_it(tmp_path):
    result = survey_case(*ignoring(tmp_path, label_values(1, 3)), SCHEME)
    assert result.states["gallbladder"] == ABSENT
    assert [row["code"] for row in result.quarantine] == ["label_class_empty"]
