"""Tissues of the synthetic abdomen: which class each belongs to, and how bright CT shows it."""

from typing import NamedTuple

import numpy as np


class Tissue(NamedTuple):
    """FLARE class (or ""), HU without contrast agent, HU gained in arterial and portal venous phase, texture in HU."""

    name: str
    label: str
    plain: float
    arterial: float
    portal: float
    texture: float


TISSUES = (
    Tissue("air", "", -1000, 0, 0, 0),
    Tissue("fat", "", -102, 0, 0, 9),
    Tissue("skin", "", 10, 5, 10, 0),
    Tissue("muscle", "", 50, 6, 14, 9),
    Tissue("lung", "", -830, 0, 0, 45),
    Tissue("marrow", "", 190, 5, 10, 40),
    Tissue("compact_bone", "", 620, 0, 0, 60),
    Tissue("disc", "", 85, 0, 0, 8),
    Tissue("spinal_canal", "", 28, 0, 0, 4),
    Tissue("heart", "", 42, 120, 85, 8),
    Tissue("artery", "", 42, 260, 100, 3),
    Tissue("vein", "", 42, 35, 115, 3),
    Tissue("bowel_wall", "", 38, 40, 50, 5),
    Tissue("bowel_fluid", "", 18, 0, 0, 10),
    Tissue("stool", "", 20, 0, 0, 90),
    Tissue("gas", "", -960, 0, 0, 0),
    Tissue("table", "", -300, 0, 0, 0),
    Tissue("liver", "liver", 56, 16, 55, 5),
    Tissue("liver_vessel", "liver", 44, 30, 105, 3),
    Tissue("spleen", "spleen", 47, 85, 70, 5),
    Tissue("right_kidney_cortex", "right_kidney", 34, 135, 135, 5),
    Tissue("right_kidney_medulla", "right_kidney", 30, 40, 105, 9),
    Tissue("left_kidney_cortex", "left_kidney", 34, 135, 135, 5),
    Tissue("left_kidney_medulla", "left_kidney", 30, 40, 105, 9),
    Tissue("pancreas", "pancreas", 38, 65, 50, 14),
    Tissue("aorta", "aorta", 42, 265, 105, 3),
    Tissue("inferior_vena_cava", "inferior_vena_cava", 42, 45, 100, 6),
    Tissue("right_adrenal_gland", "right_adrenal_gland", 28, 40, 42, 4),
    Tissue("left_adrenal_gland", "left_adrenal_gland", 28, 40, 42, 4),
    Tissue("gallbladder", "gallbladder", 9, 0, 2, 2),
    Tissue("esophagus", "esophagus", 34, 22, 30, 10),
    Tissue("stomach_wall", "stomach", 38, 45, 55, 5),
    Tissue("stomach_fluid", "stomach", 22, 0, 0, 14),
    Tissue("stomach_gas", "stomach", -930, 0, 0, 0),
    Tissue("duodenum_wall", "duodenum", 38, 42, 50, 5),
    Tissue("duodenum_fluid", "duodenum", 22, 0, 0, 10),
    # Tumors: HU are set by `hounsfield`, a step below (or, in the fat, like) what they grow in.
    Tissue("tumor_in_liver", "tumor", 0, 0, 0, 9),
    Tissue("tumor_in_right_kidney", "tumor", 0, 0, 0, 9),
    Tissue("tumor_in_left_kidney", "tumor", 0, 0, 0, 9),
    Tissue("tumor_in_pancreas", "tumor", 0, 0, 0, 9),
    Tissue("tumor_in_fat", "tumor", 0, 0, 0, 9),
)
CODE = {tissue.name: code for code, tissue in enumerate(TISSUES)}
TEXTURE = np.array([tissue.texture for tissue in TISSUES], np.float32)
HOSTS = {
    "tumor_in_liver": "liver",
    "tumor_in_right_kidney": "right_kidney_cortex",
    "tumor_in_left_kidney": "left_kidney_cortex",
    "tumor_in_pancreas": "pancreas",
    "tumor_in_fat": "spleen",
}


def hounsfield(portal: float, strength: float, tumor_step: float, oral_contrast: float) -> np.ndarray:
    """Return the mean HU of each tissue code.

    Args:
        portal: 0 in pure arterial, 1 in pure portal venous phase.
        strength: enhancement against the table, 1 for a good injection.
        tumor_step: HU by which a tumor is darker than what it grows in.
        oral_contrast: HU added to what the stomach, duodenum and small bowel hold.
    """
    hu = np.array([t.plain + strength * (t.arterial * (1 - portal) + t.portal * portal) for t in TISSUES], np.float32)
    for name in ("stomach_fluid", "duodenum_fluid", "bowel_fluid"):
        hu[CODE[name]] += oral_contrast
    for tumor, host in HOSTS.items():
        hu[CODE[tumor]] = hu[CODE[host]] - tumor_step * (2.0 if "kidney" in tumor else 1.0)
    return hu


def class_ids(ids: dict[str, int]) -> np.ndarray:
    """Return the table from tissue code to class id (0: background), given the ids of a class scheme."""
    return np.array([ids[t.label] if t.label else 0 for t in TISSUES], np.uint8)
