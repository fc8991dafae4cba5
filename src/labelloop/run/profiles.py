"""Say no to a misspelt ``--workflow-profile``, which Snakemake ignores in silence and then runs everything locally."""

from pathlib import Path

from labelloop.base.errors import UserError, nearest
from labelloop.base.sequences import flat

OPTION = "--workflow-profile"


def check_profiles(argv: list[str], root: Path) -> None:
    """Raise :class:`UserError` when the workflow profile that ``argv`` asks for does not exist.

    A misspelt ``--profile`` needs no help: Snakemake refuses it.

    Args:
        argv: Snakemake's command line, ``sys.argv``.
        root: folder of the Snakefile; Snakemake looks in the working folder and in ``profiles/`` of both.
    """
    name = _workflow_profile(argv)
    if name is None or name == "none":
        return
    folders = [Path("profiles"), root / "profiles"]
    if any((folder / name).exists() for folder in [Path(), *folders]):
        return
    known = sorted({path.name for path in flat(folder.iterdir() for folder in folders if folder.is_dir())})
    raise UserError(f"{OPTION} {name}: no such profile{nearest(name, known)}")


def _workflow_profile(argv: list[str]) -> str | None:
    """Return the value of the last ``--workflow-profile``, also when abbreviated or written with ``=``."""
    found = None
    arguments = argv[: argv.index("--")] if "--" in argv else argv
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        option, equals, value = argument.partition("=")
        if option.startswith("--workflow") and OPTION.startswith(option):
            found = value if equals else following
    return found
