"""The command line: ``labelloop init``, ``cases``, ``run``, ``infer``, ``evaluate``, ``check``, and others."""

import logging
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from labelloop.base.errors import UserError
from labelloop.base.heartbeat import speaking
from labelloop.cli import cases, infer, init, labels, listed, recipe, review, run

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells and typer have it."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for commands in (init, cases, run, infer, labels, review):
    app.add_typer(commands.app)
for name, group in {"recipe": recipe.app, "dataset": listed.datasets, "classes": listed.classes}.items():
    app.add_typer(group, name=name)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 fine, 1 some cases failed, 2 nothing could be done."""
    given = sys.argv[1:] if arguments is None else arguments
    end = given.index("--") if given[:1] == ["run"] and "--" in given else len(given)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("labelloop").setLevel(logging.INFO)
    try:
        with speaking(given[0] if given else ""):
            code = app(given[:end], prog_name="labelloop", standalone_mode=False, obj=given[end + 1 :]) or 0
    except typer.TyperException as error:
        if error.format_message():  # else it is the help that was asked for by typing no command
            print(f"labelloop: {error.format_message()} See labelloop --help.", file=sys.stderr)
        return error.exit_code
    except UserError as error:
        print(f"labelloop: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"labelloop: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    if code == INTERRUPTED:
        print("labelloop: interrupted. Type the same command again to go on: finished cases are kept.", file=sys.stderr)
    return code


def _show_version(asked: bool) -> None:
    if asked:
        print(f"labelloop {version('labelloop')}")
        raise typer.Exit


@app.callback()
def labelloop(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Models make labels; checked labels make models."""
