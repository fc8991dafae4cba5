"""Where the voxels of a volume with a text header lie (MetaImage, NRRD), and how they are taken from checked bytes.

ITK fills up in silence what a damaged or shortened stream leaves open, with whatever lies in memory, and passes over
what is too much. What it is asked for is where the grid lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labelloop.images.nifti import unpacked


@dataclass(frozen=True)
class Layout:
    """Layout of the voxels, as a header has it.

    Args:
        length: bytes of the header.
        dtype: type of a voxel, in the file's byte order.
        packed: whether the voxels are a stream of gzip or zlib.
        size: bytes of the voxels.
        start: byte, of what is unpacked, at which the voxels begin; None: so that they end with the file.
        oriented: whether the header says which way the axes run.
    """

    length: int
    dtype: np.dtype
    packed: bool
    size: int
    start: int | None
    oriented: bool

    def voxels(self, content: Sequence[bytes], shape: tuple[int, int, int]) -> np.ndarray:
        """Return the voxels [z, y, x], in the machine's byte order.

        Args:
            content: of the header's file, and of that with the voxels where there are two.
            shape: (x, y, z).

        Raises:
            RefusedError: when the content is damaged, or there is less or more of it than the header says.
        """
        data = memoryview(content[1]) if len(content) > 1 else memoryview(content[0])[self.length :]
        start = max(0, len(data) - self.size) if self.start is None else self.start
        return unpacked(data, self.packed, start, self.dtype, shape)
