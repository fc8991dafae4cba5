"""Labels of the T1W image for the other MR sequences of a patient, where the kidneys say that they fit.

Images stay as they are: labels are brought to the grid of each sequence, in one resampling.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import edt
import numpy as np
from scipy.ndimage import binary_fill_holes

from labelloop.base.classes import ClassScheme
from labelloop.base.components import largest_component
from labelloop.base.errors import CaseError
from labelloop.cases.body import body_mask, otsu
from labelloop.images.volume import Volume, canonical
from labelloop.labels.registration import Transform, apply, register
from labelloop.networks.settings import KIDNEYS, TransferSettings

NO_KIDNEY = ("liver", "spleen", "duodenum", "right_adrenal_gland", "left_adrenal_gland", *KIDNEYS)
"""Bright organs that are left out of the grown kidney (released code of He); so is the other kidney."""


@dataclass(frozen=True)
class Transferred:
    """A label map [z, y, x] on the stored grid of a sequence, how it got there, and what speaks against its use.

    ``transform`` maps points of the T1W image to the sequence; ``dsc`` is that of each kidney that T1W has.
    """

    sequence: str
    label: np.ndarray
    transform: Transform
    dsc: dict[str, float]
    criterion: str
    """What refuses the label map; empty: it may be used."""
    reason: str

    @property
    def accepted(self) -> bool:
        """Whether the label map may be used."""
        return not self.criterion

    def row(self, case: str, source: str, image: Volume) -> dict[str, object]:
        """Return the row of the ``transfers`` table for ``case``, whose labels come from the case ``source``."""
        return {
            "case": case,
            "source": source,
            "sequence": self.sequence,
            "decision": "accepted" if self.accepted else "refused",
            **{f"{kidney}_dsc": self.dsc.get(kidney) for kidney in KIDNEYS},
            "rotation_degrees": self.transform.degrees,
            "translation_mm": self.transform.inverse().translation_mm(image.geometry),
            "criterion": self.criterion,
            "reason": self.reason,
        }


def register_sequences(
    images: Mapping[str, Volume], settings: TransferSettings | None = None
) -> tuple[dict[str, Transform], dict[str, str]]:
    """Return the rigid map from the source to each other sequence of one patient, and why others have none.

    As in section 2.4 i of He, body masks are registered; T2W and DWI, whose contours are unclear, as images to the
    arterial phase; out-of-phase takes the map of in-phase. A sequence without its partner is registered on its mask.

    Args:
        images: upright volumes by sequence, any orientation and grid.

    Raises:
        CaseError: when the source is missing.
    """
    settings = settings or TransferSettings()
    source = settings.source
    if source not in images:
        raise CaseError(
            "no_source", "", f"no {source} image among {', '.join(sorted(images))}", "Add that image.", common=True
        )
    masks: dict[str, Volume] = {}
    found: dict[str, Transform] = {}

    def mask(name: str) -> Volume:
        if name not in masks:
            masks[name] = Volume(body_mask(images[name]), images[name].geometry)
        return masks[name]

    def find(name: str) -> Transform:
        if name in found:
            return found[name]
        leader, partner = settings.follows.get(name, ""), settings.on_images.get(name, "")
        if leader in images:
            found[name] = find(leader)
        elif partner in images:
            found[name] = find(partner).then(register(images[partner], images[name], "rigid", "images"))
        else:
            found[name] = register(mask(source), mask(name), "rigid", "masks")
        return found[name]

    failed = {}
    for name in images:
        try:
            if name != source:
                find(name)
        except CaseError as error:
            failed[name] = error.found
    return found, failed


def transfer(
    images: Mapping[str, Volume],
    label: Volume,
    scheme: ClassScheme,
    settings: TransferSettings | None = None,
) -> list[Transferred]:
    """Carry ``label``, which lies on the source image, to the other sequences, and judge each by its kidneys.

    A sequence that cannot be registered is refused, with an empty label map.
    """
    settings = settings or TransferSettings()
    carried = {}
    found, failed = register_sequences(images, settings)
    for name, transform in found.items():
        array = apply(transform.inverse(), label, images[name].geometry, labels=True)
        carried[name] = transform, array
    scores = {
        name: kidney_dsc(images[name], Volume(array, images[name].geometry), scheme, name, settings)
        for name, (_, array) in carried.items()
        if settings.follows.get(name) not in carried
    }
    result = []
    for name, reason in failed.items():
        nothing = np.zeros(images[name].array.shape, np.uint8)
        result.append(Transferred(name, nothing, Transform(), {}, "not_registered", f"not registered: {reason}"))
    for name, (transform, array) in carried.items():
        leader = settings.follows.get(name, "")
        dsc = scores[name if name in scores else leader]
        criterion, reason = kidney_test(name, dsc, settings)
        reason = reason if name in scores else f"as {leader}: {reason}"
        result.append(Transferred(name, array, transform, dsc, criterion, reason))
    return result


def kidney_test(sequence: str, dsc: Mapping[str, float], settings: TransferSettings) -> tuple[str, str]:
    """Return by which criterion labels do not fit a sequence (empty: they do), and why in words (He, section 2.4 ii).

    One kidney must exceed 0.85; in in-phase, out-of-phase, T2W and DWI, both 0.8 besides. A patient with one kidney
    is judged by that one; without any, nothing is known and the transfer is refused.
    """
    if not dsc:
        return "no_kidney", "no kidney of the source lies on this image"
    best, worst = max(dsc.values()), min(dsc.values())
    if not best > settings.one_kidney_dsc:
        return "one_kidney", f"no kidney above {settings.one_kidney_dsc:g}: the better has {best:.3f}"
    if sequence in settings.both and not worst > settings.both_kidneys_dsc:
        return "both_kidneys", f"a kidney not above {settings.both_kidneys_dsc:g}: {worst:.3f}"
    return "", f"a kidney above {settings.one_kidney_dsc:g}: {best:.3f}"


def kidney_dsc(
    image: Volume, label: Volume, scheme: ClassScheme, sequence: str, settings: TransferSettings | None = None
) -> dict[str, float]:
    """Return the DSC of each kidney in ``label`` with the coarse kidney that ``image`` shows around it."""
    settings = settings or TransferSettings()
    array, labels = canonical(image).array, canonical(label).array
    spacing = canonical(image).geometry.spacing_zyx
    scores = {}
    for name in KIDNEYS:
        kidney = labels == scheme.ids[name]
        if kidney.any():
            others = np.isin(labels, [scheme.ids[other] for other in NO_KIDNEY if other != name])
            box = _around(kidney, 2 * max(settings.dilate_mm, settings.dilate_z_mm), spacing)
            shown = coarse_kidney(array[box], kidney[box], others[box], spacing, sequence, settings)
            scores[name] = 2 * int((shown & kidney[box]).sum()) / int(shown.sum() + kidney.sum())
    return scores


def coarse_kidney(
    image: np.ndarray,
    kidney: np.ndarray,
    others: np.ndarray,
    spacing: tuple[float, float, float],
    sequence: str,
    settings: TransferSettings,
) -> np.ndarray:
    """Return what looks like a kidney within the grown ``kidney``, as a mask (He, section 2.4 ii).

    Otsu's threshold parts the grown kidney, without ``others``; the bright part, in-phase the dark one, is opened,
    its largest component closed and filled. The released code does so in voxels, and for most sequences slice by slice.

    Args:
        image, kidney, others: canonical arrays [z, y, x].
        spacing: voxel size (z, y, x) in mm.
    """
    z, y, x = spacing
    region = _grown(kidney, 1.0, (z / settings.dilate_z_mm, y / settings.dilate_mm, x / settings.dilate_mm)) & ~others
    threshold = otsu(image[region])
    dark = sequence in settings.dark_kidneys
    shown = region & ((image <= threshold) & (image > 0) if dark else image > threshold)
    opened = _grown(_shrunk(shown, settings.open_mm, spacing), settings.open_mm, spacing) & shown
    core = largest_component(opened if opened.any() else shown, connectivity=6)
    closed = _shrunk(_grown(core, settings.close_mm, spacing), settings.close_mm, spacing) | core
    return largest_component(np.stack([binary_fill_holes(section) for section in closed & region]), connectivity=6)


def _grown(mask: np.ndarray, by_mm: float, spacing: tuple[float, float, float]) -> np.ndarray:
    if not mask.any():
        return mask
    return edt.edt(np.ascontiguousarray(~mask), anisotropy=tuple(spacing), black_border=False, parallel=1) <= by_mm


def _shrunk(mask: np.ndarray, by_mm: float, spacing: tuple[float, float, float]) -> np.ndarray:
    if mask.all():
        return mask
    return edt.edt(np.ascontiguousarray(mask), anisotropy=tuple(spacing), black_border=False, parallel=1) > by_mm


def _around(mask: np.ndarray, margin_mm: float, spacing: tuple[float, float, float]) -> tuple[slice, ...]:
    box = []
    for axis, step in enumerate(spacing):
        found = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(margin_mm / step))
        box.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1))
    return tuple(box)
