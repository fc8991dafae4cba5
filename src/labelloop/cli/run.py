"""``labelloop run``: a thin layer over Snakemake."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option, Typer

from labelloop.base.errors import UserError

app = Typer()


@app.command(
    options_metavar="[OPTIONS] [-- SNAKEMAKE_OPTIONS]",
    epilog="What follows `--` goes to Snakemake. Example: labelloop run --cases cases.csv -n -- --quiet rules",
)
def run(
    context: Context,
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="config file, which goes before config/config.yaml, if it is here; keys that go before both",
            show_default=False,
        ),
    ] = None,
    cases: Annotated[str | None, Option(help="case table")] = None,
    recipe: Annotated[
        str | None, Option(help="name of a recipe, or a file; default: the config file's, or `default`")
    ] = None,
    results: Annotated[
        str | None, Option(help="folder for everything produced; default: the config file's, or results/run")
    ] = None,
    settings: Annotated[
        list[str] | None,
        Option("--config", metavar="KEY=VALUE", help="other keys of the configuration, e.g. device=cpu"),
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", "-n", help="show what would be done, and change nothing")] = False,
    cores: Annotated[str | None, Option(help="cores of this machine to use; default: all")] = None,
    profile: Annotated[str | None, Option(help="`slurm`, or a profile of your own: where and how jobs are run")] = None,
) -> None:
    """Run a recipe on a case table, from labels to a trained student and its report.

    What is finished is kept: type the same command again to go on.
    """
    from labelloop.run.launch import launch, snakemake_command

    files = [word for word in words or [] if "=" not in word]
    if len(files) > 1:
        raise UserError(f"{', '.join(files)}: name one config file; other words are KEY=VALUE")
    values = [*(settings or []), *(word for word in words or [] if "=" in word)]
    flags = ["--dry-run"] if dry_run else []
    for name, value in {"cores": cores, "profile": profile}.items():
        flags += [f"--{name}", value] if value else []
    given = {"cases": cases, "recipe": recipe, "results": results}
    launch(snakemake_command(Path(files[0]) if files else None, given, values, [*flags, *context.obj]))
