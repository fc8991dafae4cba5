"""Write a case table: of folders of images and labels, of nnU-Net's and BIDS data sets, of MONAI's datalists."""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from labelloop.base.errors import CaseError, UserError
from labelloop.base.files import digest
from labelloop.base.lookup import SUFFIXES, find
from labelloop.base.outputs import refuse_overwriting
from labelloop.base.sequences import flat
from labelloop.base.wording import count, first_of, named, shown
from labelloop.cases.bids import bids_folder, bids_pairs
from labelloop.cases.datalist import datalist_pairs
from labelloop.cases.folders import Pair, pair_folders
from labelloop.cases.former import former_rows, is_case_table, tell_changes, with_former
from labelloop.cases.nnunet_folder import nnunet_folder, nnunet_pairs
from labelloop.cases.table import MODALITIES, NONE, ROLES, Case, safe_id, tell_renamed, write_cases
from labelloop.images.datasets import Dataset, all_class_names, label_counts, read_dataset, write_dataset
from labelloop.images.listing import LeftOut, Listing, tell_left_out
from labelloop.images.mask_folders import Masks, find_masks, merge, refuse_merged
from labelloop.images.nnunet_json import NAME, dataset_in_json, tell_contradictions

log = logging.getLogger(__name__)

HEAD = "# What the label ids of this data set mean, as {} says.\n"
HOW = """\
# `null` in the place of a class: a structure that is no class.
"""


@dataclass(frozen=True)
class Options:
    """What a case table is to say of all cases, and which of them are for testing.

    Args:
        role: role of the cases in the folder of images; of those that a data set does not keep for testing.
        modality: CT or MR; empty: the data set's.
        sequence: MR sequence or CT phase of all cases.
        test_images: folder of test cases, or what is known to lie in it; ``test_labels`` is their labels' folder.
        test_fraction: share of the labeled cases (0 to 1) to draw for testing, with ``seed``; one patient at least. All
            cases of a patient are drawn, or none.
        annotated_from_ids: note as annotated, case by case, the classes that occur in the label. It is how the
            FLARE23 papers read their data, and it cannot know that an organ was looked for and is absent.
        overwrite: write over an existing table. What it says of a case stays, and so do its test cases
            (:mod:`labelloop.cases.former`).
        merged: folder to write label maps to, where the labels are masks (:mod:`labelloop.images.mask_folders`). The
            column ``annotated`` then names the classes that have a mask.
        known: columns of single cases, by case.
    """

    role: str = "train"
    modality: str = ""
    sequence: str = ""
    test_images: Path | Listing | None = None
    test_labels: Path | None = None
    test_fraction: float = 0.0
    seed: int = 0
    annotated_from_ids: bool = False
    overwrite: bool = False
    merged: Path | None = None
    known: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def check(self, out: Path) -> None:
        """Look at the options, and at the table to write, before anything is read.

        Raises:
            UserError: a line for each option that is wrong, or contradicts another one.
        """
        if out.exists() and not self.overwrite:
            raise UserError(f"{out}: exists; name another file, or overwrite it (--overwrite)")
        lines = [f"role {self.role!r}: write train or test"] if self.role not in ROLES else []
        lines += [f"modality {self.modality!r}: write CT or MR"] if self.modality not in ("", *MODALITIES) else []
        if not 0 <= self.test_fraction < 1:
            lines.append(f"test fraction {self.test_fraction}: a number from 0 to below 1")
        if self.test_fraction and self.test_images is not None:
            lines.append("give a test folder or a test fraction, not both")
        if lines:
            raise UserError("\n".join(lines))


@dataclass
class _Found:
    """Cases and their files, what explains the label ids, and the classes annotated in a case, where that is known."""

    pairs: list[Pair]
    dataset: str
    annotated: dict[str, str] = field(default_factory=dict)


def make_table(
    images: str | Path | Listing,
    labels: str | Path | None,
    dataset: str | None,
    out: str | Path,
    options: Options | None = None,
    lost: list[LeftOut] | None = None,
) -> list[Case]:
    """Write the case table of a collection and return its cases.

    Args:
        images: folder of images (:func:`labelloop.cases.folders.pair_folders`), or what is known to lie in it; or what
            names labels, too: nnU-Net's data set folder (:mod:`labelloop.cases.nnunet_folder`), MONAI's datalist
            (:mod:`labelloop.cases.datalist`), a BIDS folder (:mod:`labelloop.cases.bids`).
        labels: folder of labels, the same folder, or None.
        dataset: data set that explains the label ids: a name or the path of a data set file. None: a data set file is
            written beside the table, where the collection says what its ids mean.
        out: the table to write.
        options: default: those of :class:`Options`.
        lost: see :func:`labelloop.cases.folders.pair_folders`.

    Raises:
        UserError: see :func:`labelloop.cases.folders.pair_folders`; also when ``out`` exists and is no case table, or
            must not be overwritten, and for unsafe ids or contradicting options.
    """
    out, options, lost = Path(out), options or Options(), [] if lost is None else lost
    options.check(out)
    names = None if isinstance(images, Listing) else _named_by(Path(images))
    if not isinstance(images, Listing) and bids_folder(Path(images)):
        found, options = _of_bids(Path(images), labels, dataset, out, options, lost)
    elif names is None:
        found = _of_folders(images, labels, dataset, out, options, lost)
    else:
        found = _of_json(names, labels, dataset, out, options, lost)
    former, rows = former_rows(out), [_row(pair, found, options) for pair in found.pairs]
    cases = _with_tested(with_former(rows, former, _asked(options)), former.keys(), options)
    tell_changes(out, former, rows, cases)
    write_cases(out, cases)
    return cases


def _named_by(images: Path) -> Path | None:
    """Return the JSON file that names the cases of a collection; None for a folder of images."""
    folder = nnunet_folder(images)
    if folder is not None:
        return folder / NAME
    return images if images.is_file() and images.suffix == ".json" else None


def _of_folders(
    images: str | Path | Listing,
    labels: str | Path | None,
    dataset: str | None,
    out: Path,
    options: Options,
    lost: list[LeftOut],
) -> _Found:
    if options.annotated_from_ids and labels is None and options.test_labels is None:
        raise UserError("--annotated-from-ids: without effect without labels. Leave it out, or name them (--labels)")
    dataset = checked_dataset(dataset)
    described = read_dataset(dataset)
    several = partial(bool, described.channels)
    for folder in (labels, options.test_labels):
        if folder is not None:
            tell_contradictions(Path(folder), described)
    masks = _MaskLabels(described, options.merged)
    paired = pair_folders(images, masks.listed(labels), lost, several)
    pairs: list[Pair] = [(options.role, case, *files) for case, files in paired.items()]
    if options.test_images is not None:
        tested = pair_folders(options.test_images, masks.listed(options.test_labels), lost, several)
        pairs += [("test", case, *files) for case, files in tested.items()]
    pairs = _of_all_channels(pairs, described, pairs[0][2][0].parent, lost)
    _check_files(pairs, [find("datasets", dataset)], out)
    pairs = masks.write(pairs, lost)
    return _Found(pairs, dataset, masks.annotated | _annotated(pairs, dataset, options))


def checked_dataset(dataset: str | None) -> str:
    """Return the data set that is named for the labels of a folder, by name or path, once its file is read.

    Raises:
        UserError: there is none, or its file is wrong.
    """
    if not dataset:
        raise UserError(
            "--dataset: name what the label ids mean, a name of `labelloop dataset list` or a data set file; only "
            f"nnU-Net's data set folders ({NAME}) and MONAI's datalists can say it themselves"
        )
    read_dataset(dataset)
    return dataset


def _of_bids(
    folder: Path, labels: str | Path | None, dataset: str | None, out: Path, options: Options, lost: list[LeftOut]
) -> tuple[_Found, Options]:
    """Return the cases of a BIDS folder, and options with what the names of its files say."""
    _refuse_beside(folder, labels, options)
    dataset = checked_dataset(dataset)
    pairs, known = bids_pairs(folder, options.role, lost)
    pairs = _of_all_channels(pairs, read_dataset(dataset), folder, lost)
    _check_files(pairs, [find("datasets", dataset)], out)
    return _Found(pairs, dataset, _annotated(pairs, dataset, options)), replace(options, known=known)


def _refuse_beside(names: Path, labels: str | Path | None, options: Options) -> None:
    """Refuse options that name what a collection names itself."""
    beside = {
        "--labels": labels,
        "--test-images": options.test_images,
        "--test-labels": options.test_labels,
        "--merged": options.merged,
    }
    given = [option for option, value in beside.items() if value is not None]
    if given:
        raise UserError(f"{names}: names images and labels itself; leave out {', '.join(given)}")


def _of_json(
    names: Path, labels: str | Path | None, dataset: str | None, out: Path, options: Options, lost: list[LeftOut]
) -> _Found:
    _refuse_beside(names, labels, options)
    folder = nnunet_folder(names)
    described = read_dataset(dataset) if dataset else _described(names, options.modality, out.parent)
    if dataset:
        tell_contradictions(names.parent, described)
    if folder:
        read = nnunet_pairs(folder, options.role, lost, partial(bool, described.channels))
    else:
        read = datalist_pairs(names, options.role, lost)
    if options.test_fraction and any(role == "test" and label for role, _, _, label in read):
        raise UserError(f"{names}: has labeled test cases of its own; leave out --test-fraction")
    read = _of_all_channels(read, described, names, lost)
    inputs = [names, *([find("datasets", dataset)] if dataset else [])]
    _check_files(read, inputs, out)
    meaning = dataset or str(_dataset_file(names, options.modality, out.parent))
    return _Found(read, meaning, _annotated(read, meaning, options))


def _place_of(dataset: Dataset, folder: Path) -> Path:
    """Return where what a JSON file says is, or will be, written as a data set file."""
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', dataset.name)}.yaml"


def _described(names: Path, modality: str, folder: Path) -> Dataset:
    """Return what the data set file of a JSON file says, or will say when it is written."""
    dataset = dataset_in_json(names, modality)
    path = _place_of(dataset, folder)
    return read_dataset(path) if path.is_file() else dataset


def _dataset_file(names: Path, modality: str, folder: Path) -> Path:
    """Write what a JSON file says of its label ids as a data set file, for people to edit; keep one that is there."""
    dataset = dataset_in_json(names, modality)
    path = _place_of(dataset, folder)
    if path.is_file():
        _refuse_others(path, names)
        kept = read_dataset(path)
        log.info("%s: there before and kept", shown(path))
        differ = [
            what for what, ours, theirs in (
                ("label ids", kept.labels, dataset.labels), ("channels", kept.channels, dataset.channels)
            ) if ours != theirs
        ]  # fmt: skip
        if differ:
            said = " and ".join(differ)
            log.warning("%s: says other things of %s than %s; delete it to have it written anew", path, said, names)
        return path
    write_dataset(path, dataset, HEAD.format(json.dumps(os.path.relpath(names, folder))) + HOW)
    log.info("%s: %s", shown(path), count(len(dataset.named), "class"))
    unknown = [name for name in dataset.named.values() if name not in all_class_names()]
    if unknown:
        log.warning(
            "%s: no class scheme has %s. Write the name that your class scheme has, or null for a structure that is "
            "no class, or a class scheme of your own (docs/own-data.md)", path, named(unknown)
        )  # fmt: skip
    return path


def _refuse_others(path: Path, names: Path) -> None:
    """Refuse a data set file that was written of another JSON file, as its first line says; many have one name."""
    first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0] + "\n"
    before, after = HEAD.split("{}")
    try:
        of = path.parent / json.loads(first.removeprefix(before).removesuffix(after))
    except (ValueError, TypeError):  # somebody wrote another first line
        return
    if of.is_file() and not of.samefile(names):
        raise UserError(
            f"{shown(path)}: says what the ids of {shown(of)} mean, not those of {shown(names)}. Write this table into "
            "another folder, or name a data set file of its own (--dataset)"
        )


def _check_files(pairs: list[Pair], inputs: list[Path], out: Path) -> None:
    _check_ids([case for _, case, _, _ in pairs])
    read = [*flat(images for _, _, images, _ in pairs), *(label for *_, label in pairs if label)]
    wrong = [str(file) for file in read if ";" in str(file)]
    if wrong:
        raise UserError(
            f"{wrong[0]}: a name with ';', which separates the files of channels in a case table: rename it"
        )
    refuse_overwriting([out], [*inputs, *read], is_case_table)


def _of_all_channels(pairs: list[Pair], dataset: Dataset, place: Path, lost: list[LeftOut]) -> list[Pair]:
    """Return the cases that have a file for each channel of a data set; the others are told, and in ``lost``.

    Args:
        place: folder or file that names the cases.

    Raises:
        UserError: when there is none.
    """
    expected = len(dataset.channels) or 1
    of_dataset = f"{count(expected, 'channel')} of data set {dataset.name}"
    wrong = [pair for pair in pairs if len(pair[2]) != expected]
    if len(wrong) == len(pairs):
        _, case, files, _ = wrong[0]
        raise UserError(
            f"{shown(place)}: {count(len(files), 'file')} of each image, e.g. of {case}, for {of_dataset}. If they are "
            "channels (_0000, _0001) on one grid, name them in the data set file, `channels: [T1, T2]`, and give that "
            "with --dataset; else keep the file to use. Sequences of MR that stand for themselves are cases of one "
            "patient. If _0000 and _0001 are numbers of cases, rename the files. Split a 4-D file into a file for each "
            "channel"
        )
    gone = [
        LeftOut(files[0], f"the image has {count(len(files), 'file')} for {of_dataset}", lost=True)
        for _, _, files, _ in wrong
    ]
    tell_left_out(gone, place if place.is_dir() else place.parent)
    lost += gone
    return [pair for pair in pairs if len(pair[2]) == expected]


def _annotated(pairs: list[Pair], dataset: str, options: Options) -> dict[str, str]:
    """Return by case the classes that occur in its label, where they are to be taken as annotated."""
    labels = {case: label for _, case, _, label in pairs if label}
    return {case: _occurring(label, dataset) for case, label in labels.items()} if options.annotated_from_ids else {}


def _asked(options: Options) -> set[str]:
    """Return the columns that options fill in."""
    given = {
        "modality": bool(options.modality),
        "sequence": bool(options.sequence),
        "annotated": options.annotated_from_ids or options.merged is not None,
    }
    return {column for column, asked in given.items() if asked}


def _person(case: Case) -> str:
    return case.patient or case.case


def _with_tested(cases: list[Case], former: Collection[str], options: Options) -> list[Case]:
    """Return cases of which all of a patient are for testing, or none, if patients are drawn to test on.

    Args:
        former: cases of the table that is written over.
    """
    if not options.test_fraction:
        return cases
    labeled = Counter(_person(case) for case in cases if case.label and case.annotated.lower() != NONE)
    before = {_person(case) for case in cases if case.role == "test"}
    learned = {_person(case) for case in cases if case.case in former} - before
    tested = _drawn(labeled, before, learned, options.test_fraction, options.seed)
    return [case.model_copy(update={"role": "test"}) if _person(case) in tested else case for case in cases]


def _row(pair: Pair, found: _Found, options: Options) -> Case:
    role, case, images, label = pair
    dataset, known = found.dataset, options.known.get(case, {})
    return Case(
        case=safe_id(case),
        image=";".join(str(image.absolute()) for image in images),
        label=str(label.absolute()) if label else "",
        dataset=str(Path(dataset).absolute()) if dataset.endswith(SUFFIXES) else dataset,
        modality=options.modality or known.get("modality", ""),
        sequence=options.sequence or known.get("sequence", ""),
        patient=known.get("patient", ""),
        role=role,
        annotated=found.annotated.get(case, ""),
    )


class _MaskLabels:
    """Labels that are a mask an organ: listed as the label maps that are made of them, and made."""

    def __init__(self, dataset: Dataset, merged: Path | None):
        self._dataset, self._merged, self._masks = dataset, merged, dict[str, Masks]()

    @property
    def annotated(self) -> dict[str, str]:
        """The column ``annotated`` by case: a class without a mask is unknown."""
        return {case: masks.annotated for case, masks in self._masks.items()}

    def listed(self, labels: str | Path | None) -> str | Path | Listing | None:
        """Return what to pair images with: the labels as they are, or the label maps to be made of their masks."""
        if labels is None or self._merged is None:
            return labels
        found, left_out = find_masks(Path(labels), self._dataset)
        twice = sorted(set(found) & set(self._masks))
        if twice:
            raise UserError(f"{labels}: masks of {named(twice)} are in the train and in the test folder")
        self._masks |= found
        maps = {case: self._merged / f"{case}.nii.gz" for case in found}
        return Listing(Path(labels), maps, tuple(left_out))

    def write(self, pairs: list[Pair], lost: list[LeftOut]) -> list[Pair]:
        """Write the label maps of ``pairs``; return those whose masks can be used, the others are in ``lost``."""
        if self._merged is None:
            return pairs
        labeled = {case: self._masks[case] for _, case, _, label in pairs if label}
        refuse_merged(self._merged, labeled, flat(images for _, _, images, _ in pairs))
        failed = set()
        for case, masks in labeled.items():
            out = self._merged / f"{case}.nii.gz"
            try:
                merge(case, masks, self._dataset, out)
            except (CaseError, OSError) as error:
                log.error("%s: left out: %s", case, error)
                lost.append(LeftOut(out, str(error), lost=True))
                failed.add(case)
        if len(failed) == len(pairs):
            raise UserError(f"{self._merged}: no case is left")
        return [pair for pair in pairs if pair[1] not in failed]


def _check_ids(names: list[str]) -> None:
    """Refuse cases of one id; say which names, being none, lead to another one (:func:`safe_id`)."""
    ids = [safe_id(name) for name in names]
    lines = [
        f"case {i!r}: {n} images are called so, as where it is in the train and in the test folder; rename all but one"
        for i, n in Counter(ids).items() if n > 1
    ]  # fmt: skip
    if lines:
        raise UserError("\n".join(first_of(lines)))
    tell_renamed(names, ids)


def _drawn(
    labeled: Mapping[str, int], before: set[str], learned: Collection[str], fraction: float, seed: int
) -> set[str]:
    """Return the patients to test on: those of ``before``, and as many others as make up a fraction of labeled cases.

    Which patient is drawn before another follows from their names and the seed alone, so that those who are there later
    change little. One patient with labels at least is left to train on.

    Args:
        labeled: number of labeled cases by patient.
        learned: patients to draw last: those that were there to learn from.

    Raises:
        UserError: there are too few to draw from.
    """
    total = sum(labeled.values())
    if total < 2:
        raise UserError(f"{count(total, 'labeled case')}: too few to set some of them aside for testing")
    if len(labeled) == 1:
        raise UserError(
            f"all {count(total, 'labeled case')} are of one patient: none would be left to train on. Anonymizers often "
            "write one PatientID for all: then leave out --test-fraction, and fill in the columns patient and role of "
            "the table"
        )
    tested = set(before)
    left = sorted(labeled.keys() - before, key=lambda name: (name in learned, digest([seed, name])))
    missing = max(1, round(fraction * total)) - (total - sum(labeled[patient] for patient in left))
    for patient in left[:-1]:
        if missing <= 0:
            break
        tested.add(patient)
        missing -= labeled[patient]
    return tested


def _occurring(label: Path, dataset: str) -> str:
    """Return the classes that occur in a label, as the column ``annotated`` has them; ``none`` when no class does."""
    from labelloop.images.scan import read_label  # numpy is slow to import

    known = read_dataset(dataset).named
    try:
        found = label_counts(read_label(label).array, str(label))
    except CaseError as error:
        log.warning("%s; its column 'annotated' is set to none", error)
        return NONE
    occurring = dict.fromkeys(name for i, name in known.items() if i in found)
    if not occurring:
        log.warning("%s: holds no class of the data set; column 'annotated' is set to none", label)
    return ";".join(occurring) or NONE
