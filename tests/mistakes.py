"""One mistake in a recipe: somewhere a key is gone, or a value is another name, number, kind or list."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Place = tuple[str | int, ...]
GONE = object()
NUMBERS = (0, 1, 2, -1, 0.5, 1.5, 10**9, True, None, "three", [], {})
KINDS = ("supervised", "partial", "mean_teacher", "cross_pseudo", "slice_classifier", "translator")


@dataclass(frozen=True)
class Mistake:
    """A recipe as plain data with one mistake in it: where, and what stands there now (:data:`GONE`: nothing)."""

    recipe: dict[str, Any]
    place: Place
    value: Any

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.place))}: {'gone' if self.value is GONE else repr(self.value)}"

    @property
    def words(self) -> set[str]:
        """What a message may name: the key or its owner, what stood below it, or what stands there now."""
        given = {str(part) for part in self.place if isinstance(part, str)}
        if not isinstance(self.value, dict | list):
            given.add(str(self.value))
        return given


def places(part: Any, above: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield all places of a recipe, and what stands there."""
    below = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in below:
        yield (*above, key), value
        yield from places(value, (*above, key))


def changed(recipe: dict[str, Any], place: Place, value: Any) -> Mistake:
    """Return the recipe with another value at a place."""
    content = copy.deepcopy(recipe)
    part: Any = content
    for key in place[:-1]:
        part = part[key]
    if value is GONE:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    return Mistake(content, place, value)


def alternatives(recipe: dict[str, Any]) -> list[tuple[Place, Any]]:
    """Return every place of a recipe with each value that may stand there instead; see :func:`changed`."""
    names = sorted(set(_texts(recipe)))
    return [(place, value) for place, old in list(places(recipe)) for value in _instead(place, old, names)]


def _instead(place: Place, old: Any, names: list[str]) -> list[Any]:
    others: list[Any]
    if isinstance(old, str):
        others = [old + "s", *names, *(KINDS if place[-1] == "kind" else ())]
    elif isinstance(old, bool | int | float):
        others = [old * 2, -old, *NUMBERS]
    elif isinstance(old, list):
        others = [[], old[:1], old * 2, old[::-1], "none such"]
    else:
        others = [{}, [], None, (old or {}) | {"unheard_of": 1}]
    return [GONE, *(other for other in others if other != old)]


def _texts(part: Any) -> Iterator[str]:
    for place, value in places(part):
        yield from (text for text in (place[-1], value) if isinstance(text, str))
