"""Where recipes, class schemes and data sets lie: in the user's folder, else in what labelloop brings.

A name means ``config/<kind>/<name>.yaml``, in the working folder first. So an edited copy is used, and said to be.
"""

import logging
from pathlib import Path

from labelloop.base.errors import UserError, nearest
from labelloop.base.sequences import flat

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]
PACKED = PACKAGE / "project"
"""What setup.py puts into a wheel; not there in a checkout."""
PROJECT = PACKED if PACKED.is_dir() else PACKAGE.parents[1]
"""The folder with Snakefile, workflow, profiles and config: in the installed package, or a checkout's root."""
CONFIG = PROJECT / "config"
OWN = Path("config")
"""The user's folder, from the working folder."""
SUFFIXES = (".yaml", ".yml")
KINDS = {"recipes": "recipe", "classes": "class scheme", "datasets": "data set"}
_taken: dict[str, bool] = {}


def find(kind: str, name: str | Path, asked_by: Path | None = None) -> Path:
    """Return the file of a name, or of a path to a YAML file.

    Args:
        kind: ``recipes``, ``classes`` or ``datasets``.
        asked_by: the file that names it. The user's ``default.yaml`` that extends ``default`` means the other one.

    Raises:
        UserError: when there is none.
    """
    if str(name).endswith(SUFFIXES):
        if not Path(name).is_file():
            raise UserError(f"no {KINDS[kind]} {str(name)!r}: no such file{nearest(str(name), known(kind))}")
        return Path(name)
    own, brought = (folder / kind / f"{name}.yaml" for folder in (OWN, CONFIG))
    if not own.is_file() and not brought.is_file():
        raise UserError(f"no {KINDS[kind]} {str(name)!r}: neither {own} nor {brought}{nearest(str(name), known(kind))}")
    if not own.is_file() or (brought.is_file() and (own.samefile(brought) or _is(own, asked_by))):
        return brought
    _tell(KINDS[kind], str(name), own, brought)
    return own


def _is(file: Path, other: Path | None) -> bool:
    return other is not None and other.is_file() and file.samefile(other)


def _tell(kind: str, name: str, own: Path, brought: Path) -> None:
    """Log, once in a process, that a file of the user's is used."""
    differs = brought.is_file() and _without_comments(own) != _without_comments(brought)
    line = f"{kind} {name!r}: {own} of this folder is used"
    line += f"; it differs from the one that labelloop brings, {brought}" if differs else ""
    if line not in _taken:
        _taken[line] = differs
        log.info(line)


def _without_comments(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if not line.lstrip().startswith("#")]


def taken() -> dict[str, bool]:
    """Return what was said of the user's files that this process uses, and whether each differs from its namesake."""
    return dict(_taken)


def files(kind: str) -> list[Path]:
    """Return the files of a kind, the user's own and those that labelloop brings, without choosing between them."""
    folders = [folder / kind for folder in (OWN, CONFIG)]
    if folders[0].is_dir() and folders[0].samefile(folders[1]):
        del folders[0]
    return flat(sorted(folder.glob("*.yaml")) for folder in folders)


def known(kind: str) -> list[str]:
    """Return the names of a kind that there are."""
    return sorted({file.stem for file in files(kind)})
