"""``labelloop run``: Snakemake with the workflow that labelloop brings, in the folder in which the command is typed."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import yaml

from labelloop.base.errors import UserError
from labelloop.base.lookup import CONFIG, PROJECT

USUAL = Path("config/config.yaml")
"""What the Snakefile reads in the working folder, if it is there."""
WHERE_TO_RUN = ("-c", "--cores", "-j", "--jobs", "-e", "--executor", "--profile", "--workflow-profile")
"""Options of Snakemake's that say how much may run at once. Without one, all cores of this machine do."""


def launch(command: Sequence[str]) -> NoReturn:
    """Become Snakemake: its exit code is ours; Ctrl-C, SIGTERM and the terminal reach it as if it had been typed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], list(command))


def snakemake_command(
    config: Path | None, given: Mapping[str, str | None], settings: Sequence[str], options: Sequence[str]
) -> list[str]:
    """Return the command line of Snakemake.

    Args:
        config: config file; its keys go before those of ``config/config.yaml`` in the working folder.
        given: keys of the configuration with values, which go before those of the files; None: not given.
        settings: more of them, as ``KEY=VALUE``.
        options: options and targets of Snakemake's.

    Raises:
        UserError: there is nothing to run, no such config file, or an option that would replace ours.
    """
    if config is not None and not config.is_file():
        raise UserError(f"{config}: no such config file; `labelloop init` writes one")
    if config is None and not USUAL.is_file():
        if given["cases"] is None:
            raise UserError(
                f"what shall be run? Name a case table (--cases) or a config file; {USUAL}, which `labelloop init` "
                "writes, is not in this folder"
            )
        config = CONFIG / "config.yaml"  # the Snakefile wants one
    replaced = [option for option in options if option.startswith(("--config", "-C", "--snakefile", "-s"))]
    if replaced:
        raise UserError(f"{replaced[0]} stands after `--`, where it would replace what labelloop says; write it before")
    values = [f"{key}={_value(value)}" for key, value in given.items() if value is not None]
    values += settings
    return [
        *(sys.executable, "-P", "-m", "snakemake"),  # -P: a random.py of the user's is not Python's
        *(["--config", *values] if values else []),
        *(["--configfile", str(config)] if config else []),
        *("--snakefile", str(PROJECT / "Snakefile")),
        *([] if any(map(_says_where, options)) or "SNAKEMAKE_PROFILE" in os.environ else ["--cores", "all"]),
        *_with_profiles(options),
    ]


def _value(text: str) -> str:
    """Return a text so that Snakemake takes it as it is: it drops outer quotes and reads numbers, True, False and YAML.

    What needs no quotes gets none: Snakemake's way to the jobs of a cluster breaks values with both kinds of quotes.
    """
    plain = text not in ("", "True", "False") and text == text.strip("'\"")
    with suppress(ValueError):
        float(text)
        plain = False
    with suppress(yaml.YAMLError):
        plain = plain and yaml.load(text, Loader=yaml.BaseLoader) == text
    return text if plain else f" {json.dumps(text, ensure_ascii=False)} "


def _says_where(option: str) -> bool:
    short = option[:2] in WHERE_TO_RUN and not option.startswith("--")
    return short or option.partition("=")[0] in WHERE_TO_RUN


def _with_profiles(options: Sequence[str]) -> list[str]:
    """Return ``options`` with the folder of each profile in place of its name."""
    result = list(options)
    for place, option in enumerate(options):
        if place > 0 and options[place - 1] == "--profile":
            result[place] = _profile(option)
        elif option.startswith("--profile="):
            result[place] = f"--profile={_profile(option.partition('=')[2])}"
    return result


def _profile(name: str) -> str:
    """Return the folder of a profile: the user's, else the one that labelloop brings; else leave it to Snakemake."""
    folders = (Path(name), Path("profiles", name), PROJECT / "profiles" / name)
    return next((str(folder) for folder in folders if (folder / "profile.yaml").is_file()), name)
