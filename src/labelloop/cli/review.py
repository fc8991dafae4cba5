"""``labelloop review``: what a run asks people about its labels, as a page or as files, and their answers."""

import getpass
from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option, Typer

from labelloop.base.classes import Idle
from labelloop.base.errors import UserError
from labelloop.base.wording import count
from labelloop.cli.idle import refuse_idle

IDLE = (
    Idle(("reviewer",), lambda o: o["export"], "with --export: who fills in the files is said with --import"),
    Idle(("port", "browser"), lambda o: o["export"] or o["take"], "with --export and --import, which open no page"),
)
app = Typer()


@app.command(epilog="Example: labelloop review results/run")
def review(
    context: Context,
    results: Annotated[Path, Argument(help="folder of the results of a run")],
    export: Annotated[Path | None, Option(metavar="DIR", help="new folder to write the queue to, as files")] = None,
    take: Annotated[
        Path | None, Option("--import", metavar="DIR", help="folder that --export wrote, filled in, to read back")
    ] = None,
    reviewer: Annotated[
        str, Option(metavar="NAME", help="who decides; default, on the page: your name on this machine")
    ] = "",
    labels: Annotated[str | None, Option(metavar="SET", help="label set; default: the newest with a queue")] = None,
    reviews: Annotated[
        Path | None, Option(metavar="DIR", help="folder of decisions about it; default: the one that the run reads")
    ] = None,
    port: Annotated[int, Option(min=0, max=65535, help="port of the page; 0: any free one")] = 0,
    browser: Annotated[bool, Option(help="open the page in the browser")] = True,
) -> int:
    """Look at doubtful labels, and say what is right: the next run learns from it.

    Without --export and --import, says how far a review is, and opens a page on this machine where labels are judged
    and edited, while there is something to ask.
    """
    from labelloop.review.desk import Desk
    from labelloop.review.export import export_folder
    from labelloop.review.imports import import_folder

    if export and take:
        raise UserError("--export and --import: name one of them")
    refuse_idle(context, IDLE)
    desk = Desk(results, labels, reviews)
    problems = desk.problems()
    if export:
        problems += export_folder(desk, export)
        print(f"{export}: read its README.txt")
    elif take:
        made, found = import_folder(desk, take, reviewer)
        problems += found
        print(f"{desk.folder}: {count(len(made), 'decision')} of {reviewer}. Type the command of the run again.")
    for problem in problems:
        print(problem)
    if not (export or take):
        _show(desk, reviewer.strip() or _own_name(), port, browser)
    return int(bool(problems))


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have a number alone
        raise UserError("--reviewer: say who decides; this machine has no name for you") from None


def _show(desk, reviewer: str, port: int, browser: bool) -> None:
    """Say how far a review is, and serve its page while there is something to ask."""
    from labelloop.review.server import serve

    def tell() -> int:
        asked = desk.asked()
        left = sum(one.is_open for one in asked)
        print(f"label set {desk.labels}: {left} of {count(len(asked), 'label')} to look at, decisions in {desk.folder}")
        return left

    if not tell():
        print("There is nothing to ask.")
        return
    serve(desk, reviewer, port, browser)
    tell()
    print("Type the command of the run again.")
