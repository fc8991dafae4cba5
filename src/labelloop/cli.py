"""The command line: ``labelloop phantom | cases | infer | evaluate | check | recipe | schema``."""

import argparse
import logging
import sys
from pathlib import Path

from labelloop.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 fine, 1 some cases failed, 2 nothing could be done."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"labelloop: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="labelloop", description="Models make labels; checked labels make models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_phantom, _add_cases, _add_infer, _add_evaluate, _add_check, _add_recipe, _add_schema):
        add(commands)
    return parser


def _add_phantom(commands) -> None:
    parser = commands.add_parser("phantom", help="write a synthetic abdomen collection to try things on")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.set_defaults(run=_phantom)


def _phantom(options) -> None:
    from labelloop.phantom import write_phantom

    print(write_phantom(options.out, options.cases, options.seed))


def _add_recipe(commands) -> None:
    parser = commands.add_parser("recipe", help="look at a recipe")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print the chain of a recipe")
    show.add_argument("name", help="name in config/recipes, or a file")
    show.add_argument("--graph", action="store_true", help="print a mermaid flowchart instead of text")
    show.add_argument("--rounds", type=int, help="override the number of rounds")
    show.set_defaults(run=_show_recipe)


def _show_recipe(options) -> None:
    from labelloop.chain import describe, mermaid
    from labelloop.recipe import load_recipe

    recipe = load_recipe(options.name, rounds=options.rounds)
    print(mermaid(recipe) if options.graph else describe(recipe), end="")
