"""Slices of CT that do not go together, seen in their pixels: no header and no checksum of DICOM tells."""

from collections.abc import Sequence

import numpy as np

from labelloop.base.wording import named, shown

PHASES_DIFFER = 1.1
"""Two phases take turns when neighbors differ by so many times what every second slice does: in anatomy by less than 1
time, in noise by 1."""
SLICE_STANDS_OUT = 1.3
"""A slice is damaged, or of another scan, when it differs from both neighbors by so many times what these differ by.
Met in 28 real scans: at most 0.8."""
SOFT_TISSUE_HU = (-200, 300)


def unlike_neighbors(array: np.ndarray, names: Sequence[str]) -> tuple[str, str] | None:
    """Say in which slices of CT [z, y, x] every second one is of another phase, or one is unlike all around it.

    In a body, a slice is more like the next one than like that behind it. Asked of soft tissue, which contrast medium
    changes. Bytes of DICOM have no checksum: damaged ones inside a compressed slice are unpacked to something else.

    Args:
        names: files of the slices; of another number, one file holds all.

    Returns:
        Reason code and what was found; None: neither.
    """
    thin = np.clip(array[:, ::2, ::2], *SOFT_TISSUE_HU).astype(np.float32)
    near = np.abs(thin[1:] - thin[:-1]).mean(axis=(1, 2))
    next_but_one = np.abs(thin[2:] - thin[:-2]).mean(axis=(1, 2))
    if np.median(near) > PHASES_DIFFER * np.median(next_but_one):
        medians = f"{np.median(near):.1f} HU) than from the next but one ({np.median(next_but_one):.1f} HU)"
        return "dicom_phases", f"slices differ more from their neighbors ({medians}: two take turns"
    alone = np.minimum(near[:-1], near[1:])
    strange = [int(i) + 1 for i in np.flatnonzero((alone > SLICE_STANDS_OUT * next_but_one) & (alone > 1))]
    if not strange:
        return None
    files = [shown(names[i]) if len(names) == len(array) else f"number {i + 1}" for i in strange]
    return (
        "dicom_damaged",
        f"{len(files)} of {len(array)} slices are unlike the slices on both sides of them: {named(files)}",
    )
