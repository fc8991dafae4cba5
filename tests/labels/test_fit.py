from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from labelloop.base.errors import UserError
from labelloop.base.tables import read_table
from labelloop.images.volume import write
from labelloop.labels.check import check, load_rules
from labelloop.labels.fit import fit, load_fitted, measure, tolerance_bounds, with_fitted, write_fitted
from labelloop.labels.folder import check_folder, fit_folder


def simulated(number, seed=0):
    """Volumes of a log-normal liver and normal intensities of the spleen."""
    random = np.random.default_rng(seed)
    return {
        f"c{n:02d}": {
            ("volume", "liver"): float(np.exp(random.normal(7.3, 0.2))),
            ("intensity", "spleen"): random.normal(110, 20),
        }
        for n in range(number)
    }


def threshold(scheme, rule, name):
    found = next(r for r in load_rules(scheme) if r.name == rule and name in r.classes)
    return found.threshold[name] if isinstance(found.threshold, dict) else found.threshold


def test_factors_equal_those_of_the_handbook():
    """NIST/SEMATECH 7.2.6.3, examples with n = 43, 90 % coverage, 99 % confidence: k = 2.217 (two sides), 1.8740."""
    values = np.array([-1.0, 1.0] * 21 + [0.0])
    spread = values.std(ddof=1)
    assert tolerance_bounds(values, "both", 0.90, 0.99, False)[1] / spread == pytest.approx(2.217, abs=1e-3)
    assert tolerance_bounds(values, "upper", 0.90, 0.99, False)[1] / spread == pytest.approx(1.8740, abs=1e-3)
    low, high = tolerance_bounds(np.exp(values), "both", 0.90, 0.99, True)
    assert np.log([low, high]) / spread == pytest.approx([-2.217, 2.217], abs=1e-3)


@pytest.mark.parametrize("side", ["both", "upper", "lower"])
def test_bounds_hold_the_share_they_promise(side):
    """In at least 95 % of the repetitions (less noise) 99 % of the population lies inside, also with 12 cases."""
    kept = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(50, 7, 12)
        low, high = tolerance_bounds(values, side, 0.99, 0.95, False)
        inside = stats.norm.cdf([low if side != "upper" else -np.inf, high if side != "lower" else np.inf], 50, 7)
        kept += inside[1] - inside[0] >= 0.99
    assert kept >= 0.95 * 200 - 2 * np.sqrt(200 * 0.95 * 0.05)


def test_what_it_was_fitted_to_passes(scheme):
    measured = simulated(16)
    measured["c03"]["volume", "liver"] = 9000.0
    fitted = with_fitted(scheme, fit(measured, scheme, "simulated"))
    low, high = threshold(fitted, "volume", "liver")
    assert low <= min(m["volume", "liver"] for m in measured.values())
    assert high >= 9000
    assert threshold(fitted, "volume", "spleen") == threshold(scheme, "volume", "spleen")  # nobody measured it
    assert "simulated" in next(r for r in load_rules(fitted) if r.name == "volume").source


def test_rules_that_doubt_keep_their_thresholds(scheme):
    rules = tuple({**rule, "verdict": "doubt"} if rule["name"] == "volume" else rule for rule in scheme.rules)
    doubting = scheme.model_copy(update={"rules": rules})
    assert set(fit(simulated(16), doubting, "simulated").thresholds) == {"intensity"}
    assert set(fit(simulated(16), scheme, "simulated").thresholds) == {"intensity", "volume"}


def test_too_few_cases_fit_nothing(scheme):
    with pytest.raises(UserError, match="at most 9 patients"):
        fit(simulated(9), scheme, "few")


def test_more_scans_of_the_same_people_are_no_more_people(scheme):
    measured = simulated(16)
    scans = {f"{case}_{n}": values for case, values in measured.items() for n in range(9)}
    patients = {scan: scan.partition("_")[0] for scan in scans}
    once, often = fit(measured, scheme, "x"), fit(scans, scheme, "x", patients)
    assert often == once and often.thresholds["volume"]["liver"].cases == 16
    assert fit(scans, scheme, "x").thresholds["volume"]["liver"].cases == 16 * 9  # nobody said whose they are
    with pytest.raises(UserError, match="at most 9 patients"):
        fit({scan: values for scan, values in scans.items() if scan < "c09"}, scheme, "x", patients)


def test_no_scan_of_a_patient_lies_outside(scheme):
    measured = simulated(16)
    for extreme in (10.0, 9000.0):
        scans = measured | {f"more_{n}": {("volume", "liver"): extreme} for n in range(3)}
        fitted = fit(scans, scheme, "x", {f"more_{n}": "c00" for n in range(3)})
        low, high = fitted.thresholds["volume"]["liver"].threshold
        assert low <= extreme <= high and fitted.thresholds["volume"]["liver"].cases == 16


def test_files_round_trip_and_are_checked(scheme, tmp_path):
    fitted = fit(simulated(20), scheme, "simulated")
    write_fitted(tmp_path / "rules.yaml", fitted)
    assert load_fitted(tmp_path / "rules.yaml") == fitted
    quantiles = fitted.thresholds["volume"]["liver"].quantiles
    assert list(quantiles.values()) == sorted(quantiles.values())
    with pytest.raises(UserError, match="no such file"):
        load_fitted(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="used with 'flare'"):
        with_fitted(scheme, fitted.model_copy(update={"classes": "other"}))
    odd = fitted.model_copy(update={"thresholds": {"color": fitted.thresholds["volume"]}})
    with pytest.raises(UserError, match=r"color of liver.*fit anew"):
        with_fitted(scheme, odd)
    (tmp_path / "odd.yaml").write_text("classes: flare\n")
    with pytest.raises(UserError, match=r"odd.yaml: source: Field required"):
        load_fitted(tmp_path / "odd.yaml")


def test_cut_organs_say_nothing_about_volumes(anatomy, scheme):
    assert ("volume", "liver") in measure(anatomy.labels, anatomy.geometry, scheme)
    anatomy.labels[-1][anatomy.ball((99, 50, 90), (2, 8, 8))[-1]] = anatomy.ids["liver"]
    assert ("volume", "liver") not in measure(anatomy.labels, anatomy.geometry, scheme)


def test_a_folder_is_fitted_and_then_passes(anatomy, scheme, tmp_path):
    """Twelve patients of different sizes and intensities; a liver four times as large fails afterwards."""
    random = np.random.default_rng(0)
    for number in range(12):
        scale = random.uniform(0.9, 1.1)
        geometry = type(anatomy.geometry)(
            anatomy.geometry.size, (3.0 * scale,) * 3, direction=anatomy.geometry.direction
        )
        write(tmp_path / "labels" / f"case_{number}.nii.gz", anatomy.labels, geometry)
        write(tmp_path / "images" / f"case_{number}_0000.nii.gz", anatomy.image + random.integers(-9, 9), geometry)
    (tmp_path / "labels" / "broken.nii.gz").write_text("no image")
    out = tmp_path / "fitted.yaml"
    assert fit_folder(tmp_path / "labels", "flare", out, tmp_path / "images") == 1
    fitted = with_fitted(scheme, load_fitted(out))
    assert threshold(fitted, "intensity", "liver")[0] > threshold(scheme, "intensity", "liver")[0]
    assert check_folder(tmp_path / "labels", "flare", tmp_path / "v.csv", tmp_path / "images", rules=out) == 1
    assert "fail" not in set(read_table(tmp_path / "v.csv", "verdicts")["verdict"])
    big = type(anatomy.geometry)(anatomy.geometry.size, (5.0,) * 3, direction=anatomy.geometry.direction)
    failed = {
        (row["class"], row["rule"])
        for row in check(anatomy.labels, big, {}, fitted, anatomy.image)
        if row["verdict"] == "fail"
    }
    assert ("liver", "volume") in failed


def coarse(anatomy):
    """Return the label map on a grid of 12 mm, and this grid."""
    size = tuple(n // 4 for n in anatomy.geometry.size)
    box = tuple(slice(0, 4 * n, 4) for n in size[::-1])
    return np.ascontiguousarray(anatomy.labels[box]), replace(anatomy.geometry, size=size, spacing=(12.0,) * 3)


def test_an_organ_that_was_operated_on_enters_no_bound(anatomy, tmp_path):
    """Of one patient half of the liver was resected; where the case table says so, its bounds are those of the others.

    Ten patients have equal livers, so that the resected one alone would widen them.
    """
    whole, grid = coarse(anatomy)
    resected = whole.copy()
    liver = resected == anatomy.ids["liver"]
    liver[:, :, : int(np.median(np.nonzero(liver)[2]))] = False
    resected[liver] = 0
    for number in range(11):
        write(tmp_path / "labels" / f"case_{number:02d}.nii.gz", whole if number else resected, grid)
    found = {}
    for surgery in ("", "liver"):
        rows = [f"case_{n:02d},a.nii.gz,btcv,CT,{'' if n else surgery}" for n in range(11)]
        (tmp_path / "cases.csv").write_text("\n".join(["case,image,dataset,modality,surgery", *rows]) + "\n")
        out = tmp_path / f"fitted{surgery}.yaml"
        fit_folder(tmp_path / "labels", "flare", out, table=tmp_path / "cases.csv")
        found[surgery] = load_fitted(out).thresholds
    assert found[""]["volume"]["liver"].cases == 11 and found["liver"]["volume"]["liver"].cases == 10
    low, high = found["liver"]["volume"]["liver"].threshold
    assert low == pytest.approx(high, abs=0.1) and found[""]["volume"]["liver"].threshold[0] < 0.8 * low
    assert found["liver"]["volume"]["spleen"] == found[""]["volume"]["spleen"]


def test_the_case_table_says_whose_scans_they_are(anatomy, tmp_path):
    for number in range(11):
        write(tmp_path / "labels" / f"case_{number:02d}.nii.gz", *coarse(anatomy))
    for people, enough in ((11, True), (9, False)):
        rows = [f"case_{n:02d},a.nii.gz,btcv,p{n % people}" for n in range(11)]
        (tmp_path / "cases.csv").write_text("\n".join(["case,image,dataset,patient", *rows]) + "\n")
        given = (tmp_path / "labels", "flare", tmp_path / f"fitted_{people}.yaml")
        if enough:
            fit_folder(*given, table=tmp_path / "cases.csv")
            assert load_fitted(given[-1]).thresholds["volume"]["liver"].cases == people
        else:
            with pytest.raises(UserError, match=f"at most {people} patients"):
                fit_folder(*given, table=tmp_path / "cases.csv")


def test_what_fails_is_named_with_class_and_rule(anatomy, tmp_path, caplog):
    write(tmp_path / "labels" / "a.nii.gz", anatomy.labels, type(anatomy.geometry)(anatomy.geometry.size, (9.0,) * 3))
    check_folder(tmp_path / "labels", "flare", tmp_path / "v.csv")
    assert any(line.startswith("a: liver, volume: ") for line in caplog.messages)
