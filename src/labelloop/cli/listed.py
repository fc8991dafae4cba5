"""``labelloop dataset`` and ``classes``, and the ``copy`` of all that is looked up by name."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Typer

datasets = Typer(no_args_is_help=True, help="Look at and copy data sets: what label ids mean.")
classes = Typer(no_args_is_help=True, help="Look at and copy class schemes: names, ids, rules of anatomy.")


def add_copy(app: Typer, kind: str) -> None:
    """Add the command that copies one of a ``kind`` of files."""

    @app.command()
    def copy(
        name: Annotated[str, Argument(help="name, or a file")],
        file: Annotated[
            Path | None, Argument(help=f"file to write; default: config/{kind}/NAME.yaml", show_default=False)
        ] = None,
    ) -> None:
        """Copy one to edit it."""
        from labelloop.cli.project import copy as copy_file

        print(copy_file(kind, name, file))


@datasets.command("list")
def list_datasets() -> None:
    """Name all data sets."""
    from labelloop.base.lookup import known
    from labelloop.images.datasets import read_dataset

    for name in known("datasets"):
        dataset = read_dataset(name)
        print(f"{name:22}{dataset.modality}: {', '.join(dataset.annotated) or 'in each case what its row says'}")


@classes.command("list")
def list_classes() -> None:
    """Name all class schemes."""
    from labelloop.base.classes import load_classes
    from labelloop.base.lookup import known

    for name in known("classes"):
        print(f"{name:22}{', '.join(load_classes(name).names)}")


add_copy(datasets, "datasets")
add_copy(classes, "classes")
