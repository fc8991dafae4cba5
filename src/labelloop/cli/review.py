"""``labelloop review``: what a run asks people about its labels, as files, and their answers."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from labelloop.base.errors import UserError
from labelloop.base.wording import count

app = Typer()


@app.command(epilog="Example: labelloop review results/run --export to_review")
def review(
    results: Annotated[Path, Argument(help="folder of the results of a run")],
    export: Annotated[Path | None, Option(metavar="DIR", help="new folder to write the queue to, as files")] = None,
    take: Annotated[
        Path | None, Option("--import", metavar="DIR", help="folder that --export wrote, filled in, to read back")
    ] = None,
    reviewer: Annotated[str, Option(metavar="NAME", help="who decided, for --import")] = "",
    labels: Annotated[str | None, Option(metavar="SET", help="label set; default: the newest with a queue")] = None,
    reviews: Annotated[
        Path | None, Option(metavar="DIR", help="folder of decisions about it; default: the one that the run reads")
    ] = None,
) -> int:
    """Look at doubtful labels, and say what is right: the next run learns from it.

    Without --export and --import, says how far a review is.
    """
    from labelloop.review.desk import Desk
    from labelloop.review.export import export_folder, import_folder

    if export and take:
        raise UserError("--export and --import: name one of them")
    desk = Desk(results, labels, reviews)
    problems = [str(problem) for problem in desk.reviews.problems]
    if export:
        problems += export_folder(desk, export)
        print(f"{export}: read its README.txt")
    elif take:
        made, found = import_folder(desk, take, reviewer)
        problems += found
        print(f"{desk.folder}: {count(len(made), 'decision')} of {reviewer}. Type the command of the run again.")
    else:
        asked = desk.asked()
        left = sum(one.settled is None for one in asked)
        print(f"label set {desk.labels}: {left} of {count(len(asked), 'label')} to look at, decisions in {desk.folder}")
    for problem in problems:
        print(problem)
    return int(bool(problems))
