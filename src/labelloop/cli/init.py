"""``labelloop init`` and ``schema``: files to edit, and what tells editors how."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Typer

from labelloop.base.errors import UserError

app = Typer()


@app.command(epilog="Example: labelloop init mine")
def init(folder: Annotated[Path, Argument(help="folder to write to; files that are there are kept")]) -> None:
    """Write a configuration, profiles and an example of a case table to edit."""
    from labelloop.cli.project import write_project

    for file, new in write_project(folder):
        print(file if new else f"{file}: kept, it was there already")
    print(f"Next, in {folder}: labelloop cases, then labelloop run -n")


@app.command(hidden=True)
def schema() -> None:
    """For developers: write the JSON schemas and the reference page anew."""
    from labelloop.base.files import write_text
    from labelloop.base.lookup import PACKED, PROJECT
    from labelloop.cli.schemas import generated

    if PROJECT == PACKED:
        raise UserError("schema: writes files of labelloop's own, so it needs a checkout; this one is installed")
    for path, text in generated(PROJECT).items():
        write_text(path, text)
