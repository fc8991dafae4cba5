"""Lists of lists."""

from collections.abc import Iterable
from itertools import chain
from typing import TypeVar

T = TypeVar("T")


def flat(lists: Iterable[Iterable[T]]) -> list[T]:
    """Return the elements of all ``lists``, in their order."""
    return list(chain.from_iterable(lists))
