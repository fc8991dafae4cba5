"""What hypothesis draws for tests of many modules: how a volume is stored, its grid, seeds for random voxels."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st

ORIENTATIONS = [
    (permutation, flips)
    for permutation in itertools.permutations(range(3))
    for flips in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4))
]
"""All ways to store the axes of a canonical array [z, y, x]: their order, and which of the stored ones are flipped."""

orientations = st.sampled_from(ORIENTATIONS)
seeds = st.integers(0, 2**32 - 1)


def millimeters(low: float, high: float) -> st.SearchStrategy[float]:
    """Return lengths with two digits, as headers have them."""
    return st.integers(round(low * 100), round(high * 100)).map(lambda hundredths: hundredths / 100)


spacings = st.tuples(*[millimeters(0.4, 8)] * 3)


def few(share: int = 4) -> settings:
    """Return settings for a test that is slow: one example where others have ``share``."""
    return settings(max_examples=max(1, settings().max_examples // share))
