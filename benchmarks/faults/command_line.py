"""The command line that the benchmarks of this folder share."""

import argparse
from pathlib import Path

from labelloop.base.files import write_text

RESULTS = Path(__file__).resolve().parents[1] / "results"


def parser(about: str, count: str, default: int, out: str) -> argparse.ArgumentParser:
    """Return a parser: a folder, how often (an option named ``count``), a seed, whether to write the table."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("out", type=lambda text: Path(text).resolve(), help=out)
    made.add_argument(f"--{count}", type=int, default=default)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--write", action="store_true", help="write the table to benchmarks/results")
    return made


def show(text: str, name: str, write: bool) -> None:
    """Print a table, and write it if asked."""
    print(text)
    if write:
        write_text(RESULTS / f"{name}.md", text)
