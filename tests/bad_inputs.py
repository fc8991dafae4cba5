"""A collection in which nearly every file is bad in its own way, beside good ones: for tests of the survey and of a
whole run that must go on without them."""

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

SHAPE = (24, 20, 16)
"""Array shape (x, y, z) of every good scan."""
AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])  # LPS, as ITK has it
HEADER = "case,image,label,dataset,modality,patient,role,annotated,surgery"


@dataclass
class BadInputs:
    """The folder, its case table, and the one error code (or None: good) or the warning that each case must get."""

    folder: Path
    table: Path
    errors: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    good: list[str] = field(default_factory=list)


def ct_values(seed: int = 0) -> np.ndarray:
    """Return a small made-up CT in HU: air around a box of soft tissue and fat."""
    rng = np.random.default_rng(seed)
    values = np.full(SHAPE, -1000, np.int16)
    values[4:20, 4:16] = rng.integers(-110, 200, (16, 12, SHAPE[2]))
    return values


def label_values(*ids: int) -> np.ndarray:
    """Return a label map with a small box of each id."""
    values = np.zeros(SHAPE, np.uint8)
    for i, own_id in enumerate(ids):
        values[5 + i, 5:9, 4:8] = own_id
    return values


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, qform: bool = True, sform: bool = True) -> Path:
    """Write a NIfTI file with nibabel, which writes what it is told, also nonsense."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine if qform else None, int(qform))
    image.set_sform(affine if sform else None, int(sform))
    nib.save(image, path)
    return path


def patched(path: Path, offset: int, layout: str, *values: float) -> None:
    """Overwrite part of a compressed NIfTI file's header (byte offsets of the NIfTI-1 standard)."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<" + layout, data, offset, *values)
    path.write_bytes(gzip.compress(bytes(data), mtime=0))


def sheared() -> np.ndarray:
    """Return an affine as a tilted gantry gives it."""
    affine = AFFINE.copy()
    affine[1, 2] = 0.6
    return affine


class _Writer:
    def __init__(self, folder: Path):
        self.made = BadInputs(folder, folder / "cases.csv")
        self.rows: list[str] = []
        self.seed = 0

    def case(self, name: str, error: str = "", warning: str = "", **row: str) -> tuple[Path, Path]:
        """Write a good image and label (ids 1 to 13) and a row; return the files, for the caller to spoil."""
        self.seed += 1
        image = save(self.made.folder / "images" / f"{name}_0000.nii.gz", ct_values(self.seed))
        label = save(self.made.folder / "labels" / f"{name}.nii.gz", label_values(*range(1, 14)))
        paths = {"image": f"images/{image.name}", "label": f"labels/{label.name}"}
        filled = dict.fromkeys(HEADER.split(","), "") | paths | {"case": name, "dataset": "flare22"} | row
        self.rows.append(",".join(filled[c] for c in HEADER.split(",")))
        if error:
            self.made.errors[name] = error
        elif warning:
            self.made.warnings[name] = warning
        else:
            self.made.good.append(name)
        return image, label


def make_bad_inputs(folder: Path) -> BadInputs:
    """Write good and bad cases and their table below ``folder``."""
    writer = _Writer(folder)
    _good(writer)
    _bad_rows(writer)
    _bad_files(writer)
    _bad_headers(writer)
    _bad_values(writer)
    _bad_pairs(writer)
    _warned(writer)
    writer.made.table.write_text("\n".join([HEADER, *writer.rows]) + "\n")
    return writer.made


def _good(writer: _Writer) -> None:
    for i in range(3):
        writer.case(f"good_{i}")
    writer.case("good_test", role="test")
    writer.case("good_unlabeled", label="")
    _, label = writer.case("good_float_label")
    save(label, label_values(*range(1, 14)).astype(np.float64))
    image, label = writer.case("good_saturated")
    save(image, np.clip(ct_values(90), -125, 275).astype(np.int16))
    image, _ = writer.case("good_padded")
    padded = ct_values(91)
    padded[:2] = -3024
    save(image, padded)
    image, _ = writer.case("good_mr", modality="MR")
    save(image, np.abs(ct_values(92)).astype(np.float64))
    image, label = writer.case("good_surgery", surgery="gallbladder")
    save(label, label_values(*[i for i in range(1, 14) if i != 9]))
    image, label = writer.case("good_nrrd", image="images/good_nrrd.nrrd", label="labels/good_nrrd.mha")
    for path, source in (("images/good_nrrd.nrrd", image), ("labels/good_nrrd.mha", label)):
        values = sitk.GetImageFromArray(sitk.GetArrayFromImage(sitk.ReadImage(str(source))))
        values.SetSpacing((1.5, 1.5, 3.0))
        sitk.WriteImage(values, str(writer.made.folder / path), useCompression=True)


def _bad_rows(writer: _Writer) -> None:
    writer.case("twice", "case_duplicate")
    writer.case("twice", "case_duplicate")
    writer.case("unsafe", case="../escape")
    writer.case("hidden", case=".hidden")
    writer.made.good = [c for c in writer.made.good if c not in ("unsafe", "hidden")]
    writer.made.errors |= {"../escape": "case_id_unsafe", ".hidden": "case_id_unsafe"}
    writer.case("bad_role", "role_unknown", role="validation")
    writer.case("bad_modality", "modality_unknown", modality="PET")
    writer.case("bad_dataset", "dataset_unknown", dataset="flare99")
    writer.case("leaking_train", "patient_in_train_and_test", patient="p1", role="train")
    writer.case("leaking_test", patient="p1", role="test")
    writer.case("bad_annotated", "class_unknown", annotated="liver;lever")


def _bad_files(writer: _Writer) -> None:
    image, _ = writer.case("no_image", "image_missing")
    image.unlink()
    _, label = writer.case("no_label", "label_missing")
    label.unlink()
    image, _ = writer.case("empty_file", "image_file_empty")
    image.write_bytes(b"")
    for which, kind in enumerate(("image", "label")):
        file = writer.case(f"truncated_{kind}", f"{kind}_truncated")[which]
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    image, _ = writer.case("no_checksum", "image_truncated")
    image.write_bytes(image.read_bytes()[:-4])
    image, _ = writer.case("short_voxels", "image_truncated")
    image.write_bytes(gzip.compress(gzip.decompress(image.read_bytes())[:5000]))
    image, _ = writer.case("damaged", "image_corrupt")
    content = bytearray(image.read_bytes())
    content[-8] ^= 0xFF  # in the checksum
    image.write_bytes(content)
    image, _ = writer.case("text", "image_not_an_image")
    image.write_text("<html>404 not found</html>")
    writer.case("short_nrrd", "image_truncated", image="images/short.nrrd")
    whole = writer.made.folder / "images" / "short.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(ct_values(93)), str(whole))
    whole.write_bytes(whole.read_bytes()[:-3000])
    writer.case("short_mha", "image_truncated", image="images/short.mha")
    whole = writer.made.folder / "images" / "short.mha"
    sitk.WriteImage(sitk.GetImageFromArray(ct_values(94)), str(whole))
    whole.write_bytes(whole.read_bytes()[:-3000])


def _bad_headers(writer: _Writer) -> None:
    def spoiled(name: str, code: str, spoil: Callable[[Path], object]) -> None:
        image, _ = writer.case(name, code)
        spoil(image)

    spoiled("flat", "image_not_3d", lambda p: save(p, ct_values()[..., 0]))
    spoiled("one_slice", "image_not_3d", lambda p: save(p, ct_values()[..., :1]))
    spoiled("series", "image_not_3d", lambda p: save(p, np.stack([ct_values()] * 3, -1)))
    spoiled("complex", "image_not_scalar", lambda p: save(p, ct_values().astype(np.complex64)))
    spoiled("zero_spacing", "image_spacing_invalid", lambda p: patched(p, 88, "f", 0.0))
    spoiled("negative_spacing", "image_spacing_invalid", lambda p: patched(p, 88, "f", -3.0))
    spoiled("nan_spacing", "image_spacing_invalid", lambda p: patched(p, 80, "f", float("nan")))
    spoiled("two_spacings", "image_spacing_ambiguous", lambda p: patched(p, 88, "f", 5.0))
    spoiled("sheared", "image_direction_not_orthonormal", lambda p: save(p, ct_values(), sheared(), qform=False))
    spoiled("sheared_sform", "image_direction_not_orthonormal", lambda p: patched(p, 296, "4f", 0, -1.5, 0.6, 0))
    spoiled("no_sform", "image_direction_not_orthonormal", lambda p: patched(p, 280, "12f", *[0.0] * 12))
    spoiled("mirrored_sform", "image_orientation_ambiguous", lambda p: patched(p, 280, "4f", 1.5, 0, 0, 0))
    spoiled("centimeters", "image_extent_implausible", lambda p: save(p, ct_values(), np.diag([0.07, 0.07, 0.3, 1.0])))
    spoiled("micrometers", "image_extent_implausible", lambda p: save(p, ct_values(), np.diag([280.0, 280.0, 270, 1])))
    spoiled("nifti_2", "image_nifti_2", lambda p: nib.save(nib.Nifti2Image(ct_values(), AFFINE), p))
    writer.case("negative_mha", "image_spacing_invalid", image="images/negative.mha")
    path = writer.made.folder / "images" / "negative.mha"
    sitk.WriteImage(sitk.GetImageFromArray(ct_values(95)), str(path))
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = -1 1 1", 1))


def _bad_values(writer: _Writer) -> None:
    def image(name: str, code: str, array: np.ndarray, **row: str) -> None:
        save(writer.case(name, code, **row)[0], array)

    values = ct_values().astype(np.float32)
    values[3, 3, 3] = np.nan
    image("nan", "image_not_finite", values)
    image("infinite", "image_not_finite", np.where(np.isnan(values), np.inf, values))
    image("constant", "image_constant", np.full(SHAPE, -1000, np.int16))
    image("constant_mr", "image_constant", np.zeros(SHAPE, np.int16), modality="MR")
    eight_bit = ((np.clip(ct_values(), -160, 240) + 160) * (255 / 400)).astype(np.uint8)
    image("times_ten", "image_not_hu", ct_values() * 10)
    image("inverted", "image_not_hu", -ct_values())
    padded = ct_values() + 1024
    padded[:2] = -2000
    image("padded_raw", "image_not_hu", padded)
    image("eight_bit", "image_not_hu", eight_bit)
    image("shifted", "image_not_hu", ct_values() + 1024)
    image("scaled", "image_not_hu", (eight_bit / 127.5 - 1).astype(np.float32))
    image("z_scored", "image_not_hu", ((ct_values() - ct_values().mean()) / ct_values().std()).astype(np.float32))


def _bad_pairs(writer: _Writer) -> None:
    def label(name: str, code: str, array: np.ndarray, affine: np.ndarray = AFFINE, **row: str) -> None:
        save(writer.case(name, code, **row)[1], array, affine)

    organs = label_values(*range(1, 14))
    moved, flipped, scaled = AFFINE.copy(), AFFINE.copy(), AFFINE.copy()
    moved[0, 3], flipped[0, 0], scaled[2, 2] = 40.0, 1.5, 2.5
    label("other_size", "label_size_differs", organs[:, :, :-1])
    label("other_spacing", "label_spacing_differs", organs, scaled)
    label("other_origin", "label_origin_differs", organs, moved)
    label("other_direction", "label_direction_differs", organs, flipped)
    label("other_ids", "label_unknown_ids", label_values(1, 2, 99))
    label("fractional", "label_fractional", organs * np.float32(0.5))
    label("nan_label", "label_not_finite", np.where(organs == 1, np.nan, organs).astype(np.float32))


def _warned(writer: _Writer) -> None:
    _, label = writer.case("no_gallbladder", warning="label_class_empty")
    save(label, label_values(*[i for i in range(1, 14) if i != 9]))
    _, label = writer.case("nothing", warning="label_empty")
    save(label, label_values())
    writer.case("liver_only", warning="label_not_annotated", annotated="liver")
    writer.case("undeclared", warning="annotation_not_declared", dataset="flare23")
    writer.case("label_forgotten", warning="annotated_without_label", label="", annotated="liver")
    writer.case("spleen_is_there", warning="surgery_contradicted", surgery="spleen")
    image, _ = writer.case("no_codes", warning="image_orientation_unknown")
    save(image, ct_values(96), qform=False, sform=False)
    image, _ = writer.case("moved_sform", warning="image_placement_ambiguous", label="")
    patched(image, 280, "4f", -1.5, 0, 0, 30)
    image, _ = writer.case("thick", warning="image_spacing_implausible", label="")
    save(image, ct_values(97), np.diag([1.5, 1.5, 25.0, 1.0]))
