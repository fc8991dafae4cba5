"""Read YAML, JSON and tensors that somebody else may have written: within limits, and nothing in them is executed."""

import errno
import json
import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from labelloop.base.errors import UserError, may_pass
from labelloop.base.sequences import flat
from labelloop.base.wording import first_of

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LARGEST_BYTES = 32 * 2**20
"""More than any description, recipe or scheme needs."""
DEEPEST = 32
ANYTHING = re.compile(r"(?s:.*)")
PLAIN = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "tag:yaml.org,2002:float": re.compile(r"[^:_]*"),
    "tag:yaml.org,2002:bool": re.compile(r"(?i:true|false)"),
}
"""Numbers and switches that everybody reads alike. YAML 1.1 reads 010 as 8, 1:30 as 90, and no as false."""
HALF = re.compile(r"\\u[dD][89a-fA-F]")
MOST_LINES = 50
MOST_VALUES = 200_000
"""In a YAML file, with what its aliases repeat."""
MARK = "is:"
"""Begins the parts of an error's place that tell the kind of what stands there; no key of a file begins so."""
OF_FILES = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EINVAL, None)
"""What the system says of a file that is not there to be read, or is cut. Its other errors are the disk's."""
Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: str | Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        UserError: when it is missing, is no YAML, names a key twice, or is larger or deeper than any of ours is.
    """
    text = _text(path)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=LOADER):  # the loader itself goes as deep as the file says
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UserError(f"{path}: nested more than {DEEPEST} deep")
        wrong = _wrong(yaml.compose(text, Loader=LOADER))
        if wrong is not None:
            node, what = wrong
            raise UserError(f"{path}: line {node.start_mark.line + 1}: {short(node.value, 80)} {what}")
        content = yaml.load(text, Loader=LOADER)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not YAML: {short(error)}") from None
    _measure(path, content, DEEPEST, {})
    return content


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the content of a JSON file that holds names with values.

    Raises:
        UserError: when it is missing, or holds something else.
    """
    text = _text(path)
    try:
        content = json.loads(text, object_pairs_hook=_unique)
        if HALF.search(text):
            json.dumps(content, ensure_ascii=False).encode()  # halves of characters are no text, and no file name
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {short(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a {type(content).__name__}, expected names with a value each")
    return content


def _wrong(root: yaml.Node | None) -> tuple[yaml.Node, str] | None:
    """Return the first key or value that a loader would take for something else without a word, and what to do."""
    waiting, seen = [root], {id(None)}
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode) and not PLAIN.get(node.tag, ANYTHING).fullmatch(node.value):
            return node, f"would be read as {yaml.safe_load(node.value)}; write that, or put it in quotes"
        children = list(node.value) if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            doubled = _doubled(node)
            if doubled is not None:
                return doubled, "stands twice; keep one"
            children = flat(children)
        waiting += reversed(children)
    return None


def _doubled(node: yaml.MappingNode) -> yaml.Node | None:
    """Return the last key that stands twice in a mapping, of which a loader would take the last value."""
    scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    times = Counter((key.tag, key.value) for key in scalars)
    return next((key for key in reversed(scalars) if times[key.tag, key.value] > 1), None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{short(name, 80)} stands twice; keep one")
    return content


def validated(model: type[Model], content: Any, path: str | Path) -> Model:
    """Return ``content`` of the file ``path`` as ``model``. Raises UserError: what is wrong, a line each."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        wrong = [(place_of(e["loc"]) or "file", e) for e in error.errors()]
        lines = [f"{path}: {place}: {e['msg']}{found_in(e)}" for place, e in wrong]
        raise UserError("\n".join(first_of(lines, MOST_LINES))) from None


def place_of(place: Sequence[Any]) -> str:
    """Return the place of an error as the file has it: its keys, joined by dots."""
    return ".".join(str(part) for part in place if not marks_kind(part))


def marks_kind(part: Any) -> TypeGuard[str]:
    """Say whether a part of an error's place is no key, but the kind of what stands there (``base.unions``)."""
    return isinstance(part, str) and part.startswith(MARK)


def found_in(error: Mapping[str, Any]) -> str:
    """Return what pydantic found in the place of a value, in a few words; nothing for a mapping."""
    value = error["input"]
    return "" if isinstance(value, dict) else f" (found {short(repr(value), 80)})"


def load_tensors(path: str | Path, otherwise: str, also: Sequence[Any] = ()) -> dict[str, Any]:
    """Return the dictionary of tensors, numbers and texts in a file that ``torch.save`` wrote, on the CPU.

    Errors that tell of the machine, not of the file (see ``errors.may_pass``), are left as they are.

    Args:
        otherwise: what to do about a file that cannot be read.
        also: what else the file may hold (see ``torch.serialization.safe_globals``).

    Raises:
        UserError: when the file is missing or may not be read, is damaged, or holds anything else, e.g. code.
    """
    import torch

    try:
        with torch.serialization.safe_globals(list(also)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. {otherwise}") from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
        if may_pass(error) and not (isinstance(error, OSError) and error.errno in OF_FILES):
            raise
        raise UserError(f"{path} cannot be read ({short(error)}). {otherwise}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} cannot be read (it holds a {type(content).__name__}). {otherwise}")
    return content


def _text(path: str | Path) -> str:
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise UserError(f"{path}: {size} bytes, expected at most {LARGEST_BYTES}: this is another kind of file")
        return path.read_text(encoding="utf-8-sig")  # Windows begins a text with a mark
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _measure(path: str | Path, content: Any, deepest: int, known: dict[int, int]) -> int:
    """Return the number of values in ``content``; what aliases repeat counts each time, but is walked once."""
    if not isinstance(content, (dict, list)):
        return 1
    if id(content) not in known:
        if not deepest:
            raise UserError(f"{path}: nested more than {DEEPEST} deep")
        parts = [*content.keys(), *content.values()] if isinstance(content, dict) else content
        known[id(content)] = 0  # a list that holds itself
        known[id(content)] = 1 + sum(_measure(path, part, deepest - 1, known) for part in parts)
    if known[id(content)] == 0:
        raise UserError(f"{path}: a value that holds itself")
    if known[id(content)] > MOST_VALUES:
        raise UserError(f"{path}: more than {MOST_VALUES} values, as aliases repeat them")
    return known[id(content)]


def short(text: object, most: int = 300) -> str:
    """Return a text, or the message of an error, in one line that is not too long."""
    text = " ".join(str(text).split()) or type(text).__name__
    return text if len(text) <= most else text[:most] + " ..."
