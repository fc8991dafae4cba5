"""MR of the built-in data set: other patients, true motion, upside-down files, and truth that fits the images."""

import numpy as np
import pandas as pd
import pytest

from labelloop.base.classes import load_classes
from labelloop.base.files import sha256
from labelloop.base.tables import read_table
from labelloop.images.volume import Volume, canonical, read
from labelloop.phantom.mr import COLUMNS, LIKE, OTHER_PATIENTS, SEQUENCES, SIGNALS, Motion, MrPatient, write_mr
from labelloop.phantom.tissues import TISSUES

IDS = load_classes("flare").ids
SPACING_MM = 7.0


@pytest.fixture(scope="module")
def collection(phantom):
    """CT cases and two MR patients: folder, case table, hidden table of the MR."""
    hidden = pd.read_csv(phantom.parent / "truth_mr.csv").set_index("case")
    return phantom.parent, read_table(phantom, "cases").set_index("case"), hidden


@pytest.fixture(scope="module")
def upright():
    """One patient with a motion of our choice: the patient, and the canonical image and truth of each sequence."""
    patient = MrPatient(5, 0)
    patient.motions |= {"arterial": Motion(shift_mm=(0, 0, 14.0)), "delay": Motion(breath_mm=30.0)}
    rendered = patient.render(SPACING_MM)
    volumes = {
        name: (canonical(Volume(image, geometry)), canonical(Volume(truth, geometry)))
        for name, (image, truth, geometry) in rendered.items()
    }
    return patient, volumes


def center_mm(truth: Volume, name: str) -> np.ndarray:
    """(z, y, x) in mm within a canonical grid; all grids of a patient begin at the same corner but for a voxel."""
    return np.argwhere(truth.array == IDS[name]).mean(0) * truth.geometry.spacing_zyx


def test_every_tissue_has_a_signal():
    assert {LIKE.get(t.name, t.name) for t in TISSUES} == set(SIGNALS)
    assert {len(signals) for signals in SIGNALS.values()} == {len(COLUMNS)}


def test_ct_and_mr_stand_in_one_table_with_different_patients(collection):
    out, table, hidden = collection
    ct, mr = table[table.modality == "CT"], table[table.modality == "MR"]
    assert len(ct) == 8 and len(mr) == 2 * len(SEQUENCES) == len(hidden)
    assert not set(ct.patient) & set(mr.patient) and OTHER_PATIENTS > len(ct)
    assert set(mr.sequence) == {s.name for s in SEQUENCES}
    assert (mr.groupby("patient").role.nunique() == 1).all()
    for case, row in mr.iterrows():
        image, truth = read(out / row.image), read(out / hidden.file[case])
        assert truth.geometry.difference(image.geometry) is None
        assert bool(row.label) == (row.role == "test")
        assert image.geometry.spacing[2] > 1.2 * image.geometry.spacing[0]


def test_equal_arguments_give_equal_bytes(collection, tmp_path):
    out, table, _ = collection
    write_mr(tmp_path, 1, 3, 12)
    for row in table[table.patient == "mr_000"].itertuples():
        assert sha256(tmp_path / row.image) == sha256(out / row.image)


def test_an_upside_down_patient_has_the_liver_in_the_lower_half(collection):
    out, _, hidden = collection
    assert hidden.upside_down.any() and not hidden.upside_down.all()
    for row in hidden.itertuples():
        truth = canonical(read(out / row.file))
        higher = center_mm(truth, "liver")[0] - center_mm(truth, "right_kidney")[0]
        assert (higher < 0) == row.upside_down


def test_truth_moves_as_the_motion_says(upright):
    _, volumes = upright
    still = volumes["t1w"][1]
    moved, breathed = volumes["arterial"][1], volumes["delay"][1]
    for organ in ("liver", "spleen", "right_kidney"):
        assert np.allclose(center_mm(moved, organ) - center_mm(still, organ), (14, 0, 0), atol=2.5)
    kidney, liver = (center_mm(breathed, n)[0] - center_mm(still, n)[0] for n in ("right_kidney", "liver"))
    assert -32 < liver < kidney < -12
    assert volumes["in_phase"][1].array.tobytes() == volumes["out_of_phase"][1].array.tobytes()


def mean(volumes, sequence: str, organ: str) -> float:
    image, truth = volumes[sequence]
    return float(image.array[truth.array == IDS[organ]].mean())


def test_sequences_show_tissues_as_mr_does(upright):
    _, volumes = upright
    assert mean(volumes, "t1w", "liver") > mean(volumes, "t1w", "spleen")
    assert mean(volumes, "arterial", "aorta") > 1.5 * mean(volumes, "arterial", "liver")
    assert mean(volumes, "t2w", "gallbladder") > 2 * mean(volumes, "t2w", "liver")
    assert mean(volumes, "dwi", "spleen") > 1.5 * mean(volumes, "dwi", "liver")


def test_fat_and_water_cancel_where_they_meet_out_of_phase(upright):
    """Voxels that are a mixture turn black out of phase, which they are not in phase."""
    _, volumes = upright
    together, apart = (volumes[name][0].array.astype(float) for name in ("in_phase", "out_of_phase"))
    together, apart = together / np.percentile(together, 99), apart / np.percentile(apart, 99)
    body = together > 0.3
    assert (body & (apart < 0.15)).mean() > 0.01
    assert (apart[body] / together[body]).max() < 2
