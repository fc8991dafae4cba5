"""Write the case table of a semi-supervised BTCV run: of every four cases one is labeled, two are unlabeled, one tests.

    python benchmarks/btcv/cases.py FOLDER results/btcv/scans/cases.csv

FOLDER holds ``<case>_0000.nii.gz`` and ``<case>.nii.gz`` in BTCV's own label ids. The labels of the unlabeled half are
not in the table, so that nothing in the workflow can see them.
"""

import sys
from pathlib import Path

from labelloop.cases.folders import pair_folders
from labelloop.cases.table import Case, write_cases

LABELED, TEST = 0, 2


def main(folder: Path, out: Path) -> None:
    """Write ``out`` for the images and labels in ``folder``."""
    pairs = pair_folders(folder.resolve(), folder.resolve())
    cases = [
        Case(
            case=case,
            image=str(image),
            label=str(label) if number % 4 in (LABELED, TEST) else "",
            dataset="btcv",
            modality="CT",
            patient=case,
            role="test" if number % 4 == TEST else "train",
        )
        for number, (case, ((image,), label)) in enumerate(sorted(pairs.items()))
    ]
    write_cases(out, cases)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
