"""What a command is about to write: refused before anything runs, where it would destroy what somebody needs.

Every command that writes asks here first, with all that it reads and all that it will write.
"""

import csv
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from functools import cache
from pathlib import Path

from labelloop.base.errors import UserError
from labelloop.base.files import write_text
from labelloop.base.tables import TABLES
from labelloop.base.wording import first_of, named, shown

CLAIMS, MANIFEST = "shards/.infer.names", "shards/infer.csv"
"""Where the output folder of ``labelloop infer`` says which files labelloop wrote, and what became of the cases."""


def refuse_overwriting(
    outputs: Iterable[str | Path], inputs: Iterable[str | Path], ours: Callable[[Path], bool] = lambda _: False
) -> None:
    """Check files that a command will write, before it reads or writes anything.

    Args:
        outputs: files to write.
        inputs: files that the command reads. Links are followed, so the same file under another name counts.
        ours: says of a file that exists whether labelloop wrote it, and may write it anew.

    Raises:
        UserError: when an output is an input, a folder, in a place where there can be none, named twice (also but for
            capitals, where the disk does not tell them apart), or a file that labelloop did not write.
    """
    read = set().union(*map(_names, inputs))
    files = [Path(path) for path in outputs]
    problems = [f"{shown(path)}: named twice as a file to write" for path in _twice(files)]
    problems += one_on_this_disk(map(str, files), lambda name: Path(name).parent)
    for path in files:
        blocking = _blocking(path.parent)
        if not read.isdisjoint(_names(path)):
            problems.append(f"{shown(path)}: would be written over, but it is read; write somewhere else")
        elif path.is_dir():
            problems.append(f"{shown(path)}: is a folder; a file is to be written there")
        elif blocking is not None:
            problems.append(f"{shown(blocking)}: {_is_no('folder', blocking)}")
        elif _is_dead(path):
            problems.append(f"{shown(path)}: {_is_no('file', path)}")
        elif os.path.lexists(path) and not ours(path):
            problems.append(f"{shown(path)}: exists, and labelloop did not write it; move it away or write elsewhere")
    problems = list(dict.fromkeys(problems))
    if problems:
        raise UserError("\n".join(first_of(problems)))


def alike_but_for_capitals(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the names that differ from an earlier one in capitals alone, after that one."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(name.casefold(), name), name) for name in names]
    return [(earlier, name) for earlier, name in pairs if earlier != name]


def one_on_this_disk(names: Iterable[str], folder_of: Callable[[str], Path]) -> list[str]:
    """Return a line for each two names of files that are one file where they are to be written.

    So it is on disks of macOS and Windows, and on many shares.
    """
    return [
        f"{shown(name)}: differs from {shown(earlier)} in capitals alone, which the disk of {shown(folder_of(name))} "
        "does not tell apart; rename one of them, or write to another disk"
        for earlier, name in alike_but_for_capitals(names)
        if _ignores_capitals(folder_of(name))
    ]


@cache
def _ignores_capitals(folder: Path) -> bool:
    """Say whether the disk of a folder (or of that above which is there) takes A and a for one. Writes there to see."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    with tempfile.NamedTemporaryFile(dir=there, prefix=".capitals-") as probe:
        return Path(probe.name).with_name(Path(probe.name).name.swapcase()).exists()


def refuse_folder_of_inputs(out: Path, folders: Iterable[Path]) -> None:
    """Check a folder to write to: it must be none of the ``folders`` that inputs lie in.

    Raises:
        UserError: when it is one of them, under whatever name.
    """
    there = os.path.realpath(out)
    if there in map(_folder, folders):
        raise UserError(f"{shown(out)}: the output folder ({shown(there)}) holds the inputs; write to another folder")


def refuse_inputs_among(results: Path, written: Container[str], inputs: Iterable[str | Path]) -> None:
    """Check that no input of a run lies where the run writes.

    Args:
        results: folder of the run's results.
        written: names of the files and folders in ``results`` that the run writes.
        inputs: files that it reads.

    Raises:
        UserError: naming the first inputs that it would write over.
    """
    there = f"{_folder(results)}{os.sep}"
    wrong = []
    for path in inputs:
        folder, name = os.path.split(path)
        place = f"{_folder(folder)}{os.sep}{name}"
        if place.startswith(there) and place.removeprefix(there).partition(os.sep)[0] in written:
            wrong.append(shown(path))
    if wrong:
        raise UserError(
            f"{shown(results)}: the run would write over its inputs: {named(wrong)}. Choose another folder for the "
            "results, or copy these files out of it"
        )


def claims(folder: Path) -> set[Path]:
    """Return the files of an output folder that labelloop wrote, or was about to write when it was killed."""
    names: set[str] = set()
    register, manifest = folder / CLAIMS, folder / MANIFEST
    if register.is_file():
        names |= set(register.read_text(encoding="utf-8", errors="replace").splitlines())
    if is_table("manifest")(manifest):  # of a version that kept no register
        with manifest.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        names |= {row["file"] for row in rows if row["file"]} | {f"previews/{row['case']}.png" for row in rows}
        names |= {path.name for path in folder.glob("*.csv") if any(is_table(kind)(path) for kind in TABLES)}
    return {folder / name for name in names}


def claim(folder: Path, names: Iterable[str]) -> None:
    """Note names of files, relative to an output folder, as labelloop's own before they are written."""
    mine = {str(path.relative_to(folder)) for path in claims(folder)} | set(names)
    write_text(folder / CLAIMS, "".join(f"{name}\n" for name in sorted(mine)))


def release(folder: Path) -> None:
    """Forget the names of files that were claimed and not written: what others put there is theirs."""
    there = [str(path.relative_to(folder)) for path in claims(folder) if path.exists()]
    write_text(folder / CLAIMS, "".join(f"{name}\n" for name in sorted(there)))


def is_table(kind: str) -> Callable[[Path], bool]:
    """Return what says of a file whether it is a table of a ``kind`` of :data:`labelloop.base.tables.TABLES`."""

    return lambda path: has_columns(path, list(TABLES[kind]))


def has_columns(path: Path, columns: Sequence[str]) -> bool:
    """Say whether a file is a CSV table with these columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            return next(csv.reader(handle), []) == list(columns)
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def _names(path: str | Path) -> set[str]:
    """Return the full name of a file, and that of the file that it links to."""
    folder, name = os.path.split(path)
    full = os.path.join(_folder(folder), name)  # noqa: PTH118
    return {full, os.path.realpath(path)} if os.path.islink(path) else {full}  # noqa: PTH114


@cache
def _folder(path: str | Path) -> str:
    return os.path.realpath(path)


def _is_no(kind: str, path: Path) -> str:
    """Say of what stands in a place that it is no ``kind``, and what to do; a dead link is told by where it leads."""
    if _is_dead(path):
        return f"is a dead link, to {shown(path.readlink())}; remove it, or write elsewhere"
    return f"is no {kind}; write elsewhere"


def _is_dead(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _twice(paths: list[Path]) -> list[str]:
    times = Counter(min(_names(path)) for path in paths)
    return [path for path, number in times.items() if number > 1]


def _blocking(folder: Path) -> Path | None:
    """Return the file that stands where ``folder`` would have to be made."""
    nearest = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), None)
    return nearest if nearest is not None and not nearest.is_dir() else None
