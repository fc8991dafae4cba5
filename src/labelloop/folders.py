"""Folders of images and labels in nnU-Net's and FLARE's naming: find the files, pair them, write a case table."""

import logging
import random
from collections import Counter
from pathlib import Path

from labelloop.cases import MODALITIES, NONE, REASONS, ROLES, SAFE_ID, SUFFIXES, Case, write_cases
from labelloop.datasets import label_counts, read_dataset
from labelloop.errors import CaseError, UserError

log = logging.getLogger(__name__)

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Image and label formats that the workflow reads: one file a volume."""


def volumes_in(folder: str | Path) -> dict[str, Path]:
    """Return the volumes of a folder (not of its subfolders) by file name without extension, sorted.

    Raises:
        UserError: when there is no such folder, or two volumes differ in their extension alone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    twice = []
    for path in sorted(folder.iterdir()):
        extension = next((e for e in EXTENSIONS if path.name.lower().endswith(e)), None)
        if extension is None or path.name.startswith(".") or not path.is_file():
            continue
        stem = path.name[: -len(extension)]
        if stem in found:
            twice.append(f"{path}: stands beside {found[stem].name}; keep one")
        found[stem] = path
    if twice:
        raise UserError("\n".join(twice))
    return found


def label_maps(folder: str | Path) -> dict[str, Path]:
    """Return the label maps of a folder by case; images (``<case>_0000``) beside them are passed over.

    Raises:
        UserError: when there is no such folder or no label map in it; see :func:`volumes_in`.
    """
    files = {case: path for case, path in volumes_in(folder).items() if not case.endswith("_0000")}
    if not files:
        raise UserError(f"{folder}: no label map <case>{', <case>'.join(EXTENSIONS)}")
    return files


def pair_folders(images: str | Path, labels: str | Path | None = None) -> dict[str, tuple[Path, Path | None]]:
    """Return ``{case: (image, label or None)}`` of folders in nnU-Net / FLARE naming.

    Images are ``<case>_0000.nii.gz`` or ``<case>.nii.gz``, labels ``<case>.nii.gz`` (any of :data:`EXTENSIONS`).
    Both may lie in one folder when the images carry ``_0000``.

    Raises:
        UserError: for images of several channels, ambiguous names, and labels none of which has an image.
    """
    files = volumes_in(images)
    same = labels is not None and Path(labels).resolve() == Path(images).resolve()
    beside = {stem for stem in files if f"{stem}_0000" in files}
    if beside and not same:
        raise UserError(
            f"{images}: holds {min(beside)} and {min(beside)}_0000; if the first is a label, name this folder as "
            "the labels' folder too, else keep one of the two"
        )
    candidates = {stem: path for stem, path in files.items() if stem not in beside}
    found = {stem.removesuffix("_0000"): path for stem, path in candidates.items()}
    _refuse_channels(Path(images), candidates)
    if same:
        orphans = sorted(s for s in candidates if not s.endswith("_0000"))
        if orphans:
            raise UserError(
                f"{images}: images and labels share this folder, but {', '.join(orphans[:5])} could be either; name "
                "images <case>_0000 and labels <case>, or use two folders"
            )
        targets = {stem: files[stem] for stem in beside}
    else:
        targets = volumes_in(labels) if labels is not None else {}
    if not found:
        raise UserError(f"{images}: no image; looked for {', '.join(EXTENSIONS)}")
    lost = sorted(set(targets) - set(found))
    if lost and len(lost) == len(targets):
        raise UserError(
            f"{labels}: no label has an image; a label is named as its case, so {targets[lost[0]].name} belongs to "
            f"{lost[0]}_0000 or {lost[0]}, but the images are of cases such as {min(found)}"
        )
    if lost:
        log.warning("%s: %d labels without an image, left out: %s", labels, len(lost), ", ".join(lost[:5]))
    return {case: (image, targets.get(case)) for case, image in sorted(found.items())}


def _refuse_channels(folder: Path, candidates: dict[str, Path]) -> None:
    several = sorted(s.removesuffix("_0001") for s in candidates if s.endswith("_0001"))
    several = [case for case in several if f"{case}_0000" in candidates]
    if several:
        raise UserError(
            f"{folder}: {len(several)} cases with several channels (_0000, _0001), e.g. {several[0]}; one image a case "
            "is read. Keep the channel to use; sequences of MR that stand for themselves are cases of one patient. If "
            "_0000 and _0001 are numbers of cases, rename the files"
        )


def table_from_folders(
    images: str | Path,
    labels: str | Path | None,
    dataset: str,
    out: str | Path,
    *,
    role: str = "train",
    modality: str = "",
    sequence: str = "",
    test_images: str | Path | None = None,
    test_labels: str | Path | None = None,
    test_fraction: float = 0.0,
    seed: int = 0,
    annotated_from_ids: bool = False,
    overwrite: bool = False,
) -> list[Case]:
    """Write the case table of a folder of images (see :func:`pair_folders`) and return its cases.

    Args:
        images: folder of images.
        labels: folder of labels, the same folder, or None.
        dataset: data set that explains the label ids: a name or the path of a data set file.
        out: the table to write.
        role: role of the cases in ``images``.
        modality: CT or MR; empty: the data set's.
        sequence: MR sequence or CT phase of all cases.
        test_images: folder of test cases; ``test_labels`` is their labels' folder.
        test_fraction: share of the labeled cases (0 to 1) to draw for testing, with ``seed``; at least one.
        annotated_from_ids: note as annotated, case by case, the classes that occur in the label. It is how the
            FLARE23 papers read their data, and it cannot know that an organ was looked for and is absent.
        overwrite: write over an existing table.

    Raises:
        UserError: see :func:`pair_folders`; also when ``out`` exists, and for unsafe ids or contradicting options.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists; name another file, or overwrite it (--overwrite)")
    _check_options(role, modality, test_images, test_fraction)
    read_dataset(dataset)
    pairs = [(role, case, *files) for case, files in pair_folders(images, labels).items()]
    if test_images is not None:
        pairs += [("test", case, *files) for case, files in pair_folders(test_images, test_labels).items()]
    _check_ids([case for _, case, _, _ in pairs])
    annotated = {case: _occurring(label, dataset) for _, case, _, label in pairs if annotated_from_ids and label}
    labeled = [case for _, case, _, label in pairs if label and annotated.get(case) != NONE]
    drawn = _draw(labeled, test_fraction, seed)
    name = str(Path(dataset).absolute()) if dataset.endswith(SUFFIXES) else dataset
    cases = [
        Case(
            case=case,
            image=str(image.absolute()),
            label=str(label.absolute()) if label else "",
            dataset=name,
            modality=modality,
            sequence=sequence,
            role="test" if case in drawn else given,
            annotated=annotated.get(case, ""),
        )
        for given, case, image, label in pairs
    ]
    write_cases(out, cases)
    return cases


def _check_options(role: str, modality: str, test_images: str | Path | None, test_fraction: float) -> None:
    lines = [f"role {role!r}: write train or test"] if role not in ROLES else []
    lines += [f"modality {modality!r}: write CT or MR"] if modality not in ("", *MODALITIES) else []
    lines += [f"test fraction {test_fraction}: a number from 0 to below 1"] if not 0 <= test_fraction < 1 else []
    if test_fraction and test_images is not None:
        lines.append("give a test folder or a test fraction, not both")
    if lines:
        raise UserError("\n".join(lines))


def _check_ids(ids: list[str]) -> None:
    lines = [f"case id {i!r} from its file name: {REASONS['case_id_unsafe']}" for i in ids if not SAFE_ID.fullmatch(i)]
    lines += [f"case {i!r} is in the train and in the test folder" for i, n in Counter(ids).items() if n > 1]
    if lines:
        raise UserError("\n".join(lines))


def _draw(labeled: list[str], fraction: float, seed: int) -> set[str]:
    if not fraction:
        return set()
    if len(labeled) < 2:
        raise UserError(f"{len(labeled)} labeled cases: too few to set some of them aside for testing")
    count = min(max(1, round(fraction * len(labeled))), len(labeled) - 1)
    return set(random.Random(seed).sample(sorted(labeled), count))


def _occurring(label: Path, dataset: str) -> str:
    """Return the classes that occur in a label, as the column ``annotated`` has them; ``none`` when no class does."""
    from labelloop.scan import read_label  # SimpleITK is slow to import

    known = read_dataset(dataset).named
    try:
        found = label_counts(read_label(label).array, str(label))
    except CaseError as error:
        log.warning("%s; no class noted as annotated", error)
        return NONE
    occurring = dict.fromkeys(name for i, name in known.items() if i in found)
    if not occurring:
        log.warning("%s: no voxel of a class of the data set: noted that no class is annotated", label)
    return ";".join(occurring) or NONE
