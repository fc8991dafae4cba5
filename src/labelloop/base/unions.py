"""Settings of which there are several kinds, each with keys of its own (tagged unions), and where errors are in them.

A kind is told by the key ``kind``, or by the one key that only this kind has: its verb.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Discriminator, Tag

from labelloop.base.classes import Strict
from labelloop.base.documents import MARK, marks_kind
from labelloop.base.errors import nearest

Family = Mapping[str, type[Strict]]
"""The kinds of one union, by name."""


class Verb(Strict):
    """Settings that are told by one of their keys, which stands first."""

    verb: ClassVar[str]
    what: ClassVar[str] = "step"
    """What settings of this family are called in messages."""


def tag(name: str) -> Tag:
    """Mark a member of a union as the kind ``name``."""
    return Tag(MARK + name)


def by_kind(kinds: Sequence[str], default: str | None = None) -> Discriminator:
    """Tell the members of a union by their key ``kind``; without it, by the ``default``."""

    def kind_of(value: Any) -> str | None:
        kind = value.get("kind", default) if isinstance(value, Mapping) else getattr(value, "kind", None)
        return f"{MARK}{kind}" if kind in kinds else None

    return _told(kind_of, f"expected kind: {_or(kinds)}")


def by_verb(verbs: Sequence[str], what: str = "a step") -> Discriminator:
    """Tell the members of a union by the first of ``verbs`` among their keys.

    Args:
        what: what a member is called in messages.
    """

    def verb_of(value: Any) -> str | None:
        if isinstance(value, Verb):
            return MARK + value.verb
        found = [key for key in value if key in verbs] if isinstance(value, Mapping) else []
        return MARK + str(found[0]) if found else None

    return _told(verb_of, f"expected {what} with one of the keys {_or(verbs)}")


def by_form(form_of: Callable[[Any], str], expected: str) -> Discriminator:
    """Tell the members of a union by what ``form_of`` says of a value.

    Args:
        expected: said of a value that is none of them.
    """
    return _told(lambda value: MARK + form_of(value), expected)


def _told(by: Callable[[Any], str | None], otherwise: str) -> Discriminator:
    return Discriminator(by, custom_error_type="no_such_kind", custom_error_message=otherwise)


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def kind_at(place: Sequence[Any]) -> str | None:
    """Return the kind of which a key at ``place`` would be a key; None where there are no kinds."""
    last = place[-2] if len(place) > 1 else None
    return last.removeprefix(MARK) if marks_kind(last) else None


def why_unknown(key: str, kind: str, family: Family) -> str:
    """Say why ``kind`` has no such key: which kinds of the ``family`` have it, or which key may be meant."""
    if key in family:
        what = getattr(family[kind], "what", "step")
        return f"a {what} does one thing, and this one is {kind!r}. Make {key!r} a {what} of its own"
    others = [name for name, settings in family.items() if key in keys_of(settings)]
    if others:
        return f"belongs to {_or(others) if len(others) > 1 else others[0]}, and this is {kind}"
    return f"unknown key of {kind}{nearest(key, keys_of(family[kind]))}"


def keys_of(settings: type[Strict]) -> list[str]:
    """Return the keys of settings as a file has them."""
    return [field.alias or name for name, field in settings.model_fields.items()]
