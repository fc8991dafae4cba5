"""``labelloop phantom``, ``convert`` and ``cases``: scans, and the table that names them."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Context, Option, Typer

from labelloop.base.classes import Idle
from labelloop.base.wording import count
from labelloop.cli.idle import refuse_idle

if TYPE_CHECKING:
    from labelloop.cases.make_table import Options
    from labelloop.images.listing import Listing

IDLE = (
    Idle(("test_labels",), lambda o: not o["test_images"], "without --test-images, whose labels they are"),
    Idle(("merged",), lambda o: not (o["labels"] or o["test_labels"]), "without --labels, the masks to merge"),
    Idle(("test_fraction",), lambda o: o["role"] == "test", "with --role test: all cases are for testing"),
    Idle(("seed",), lambda o: not o["test_fraction"], "without --test-fraction, for which it draws"),
)
app = Typer()


@app.command(epilog="Example: labelloop phantom scans --cases 24 --mr 2")
def phantom(
    out: Annotated[Path, Argument(help="folder to write to")],
    cases: Annotated[int, Option(min=1, help="CT cases")] = 24,
    seed: Annotated[int, Option(help="another seed, other patients")] = 1,
    mr: Annotated[int, Option(min=0, metavar="PATIENTS", help="other patients to write MR sequences of")] = 0,
) -> None:
    """Write a synthetic abdomen collection to try things on."""
    from labelloop.phantom import write_phantom

    print(write_phantom(out, cases, seed, mr_patients=mr))


@app.command(epilog="Example: labelloop convert pacs --out scans")
def convert(
    images: Annotated[Path, Argument(help="folder with a DICOM series, or with folders of them at any depth")],
    out: Annotated[Path, Option(help="folder to write <case>_0000.nii.gz to")],
    series: Annotated[str, Option(help="DICOM series to take of a folder: its number or UID")] = "",
) -> int:
    """Write DICOM series as NIfTI files for a case table."""
    from labelloop.inference.convert import convert as convert_series

    return convert_series(images, out, series)


@app.command(epilog="Example: labelloop cases --images scans --labels labels --dataset flare22 --out cases.csv")
def cases(
    context: Context,
    images: Annotated[
        Path,
        Option(help="folder of images; or nnU-Net's or BIDS data set, or MONAI's datalist, which name labels, too"),
    ],
    out: Annotated[Path, Option(help="the table to write")],
    dataset: Annotated[
        str | None,
        Option(
            help="name of a data set, or a data set file; default: written beside the table, where dataset.json says it"
        ),
    ] = None,
    labels: Annotated[Path | None, Option(help="folder of labels; may be the same folder; omit for none")] = None,
    modality: Annotated[str, Option(help="CT or MR; default: the data set's")] = "",
    sequence: Annotated[str, Option(help="MR sequence or CT phase of all cases")] = "",
    role: Annotated[Literal["train", "test"], Option(help="of the cases in --images")] = "train",
    test_images: Annotated[Path | None, Option(help="folder of test images")] = None,
    test_labels: Annotated[Path | None, Option(help="folder of their labels")] = None,
    test_fraction: Annotated[float, Option(help="share of labeled cases to test on")] = 0.0,
    seed: Annotated[int, Option(help="of the draw of --test-fraction")] = 0,
    annotated_from_ids: Annotated[
        bool, Option("--annotated-from-ids", help="take the ids in a label as annotated")
    ] = False,
    convert: Annotated[
        Path | None,
        Option(help="images are DICOM, in folders at any depth: write <case>_0000.nii.gz of each series here"),
    ] = None,
    merged: Annotated[
        Path | None, Option(help="labels are a folder a case with a mask an organ: write label maps here")
    ] = None,
    overwrite: Annotated[
        bool,
        Option("--overwrite", help="write the table anew; what stands in it of a case stays, and its test cases do"),
    ] = False,
) -> int:
    """Write a case table of folders of scans, or of a data set as nnU-Net, TotalSegmentator or MONAI have it."""
    from labelloop.cases.make_table import Options, checked_dataset, make_table

    refuse_idle(context, IDLE)
    lost: list = []
    options = Options(
        role=role,
        modality=modality,
        sequence=sequence,
        test_images=test_images,
        test_labels=test_labels,
        test_fraction=test_fraction,
        seed=seed,
        annotated_from_ids=annotated_from_ids,
        overwrite=overwrite,
        merged=merged,
    )
    options.check(out)
    taken: Path | Listing = images
    if convert:
        checked_dataset(dataset)  # before all the images are written
        taken, options = _converted(images, convert, options, lost)
    found = make_table(taken, labels, dataset, out, options, lost)
    labeled = sum(bool(case.label) for case in found)
    tested = sum(case.role == "test" for case in found)
    print(f"{out}: {count(len(found), 'case')}, {labeled} with a label, {tested} for testing")
    return int(bool(lost))


def _converted(images: Path, out: Path, options: "Options", lost: list) -> "tuple[Listing, Options]":
    """Write the DICOM series below folders as files; return these, and options with what their headers say."""
    from labelloop.images.listing import CHANNEL, Listing
    from labelloop.inference.convert import convert_for_table

    tested = options.test_images if isinstance(options.test_images, Path) else None
    places = {images: out} | ({tested: out / "test"} if tested else {})
    made = {folder: convert_for_table(folder, place, options.modality, lost) for folder, place in places.items()}
    files = {f: Listing(places[f], {f"{s.case}{CHANNEL}": s.file for s in some}) for f, some in made.items()}
    known = {s.case: {"modality": s.modality, "patient": s.patient} for some in made.values() for s in some}
    return files[images], replace(options, test_images=files[tested] if tested else None, known=known)
