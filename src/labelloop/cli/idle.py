"""Options that count for nothing beside others are refused, as settings of recipes are (``base.classes.Idle``)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typer import Context

from labelloop.base.classes import Idle
from labelloop.base.errors import UserError


def refuse_idle(context: Context, idle: Sequence[Idle]) -> None:
    """Refuse options of a command that were typed and are without effect.

    Args:
        idle: names of the command's parameters; ``when`` gets all options, by name.

    Raises:
        UserError: a line for each reason, with the options as they are typed.
    """
    lines = list(_without_effect(context, idle))
    if lines:
        raise UserError("\n".join(lines))


def _without_effect(context: Context, idle: Sequence[Idle]) -> Iterator[str]:
    options: dict[str, Any] = context.params
    typed = {option.name: _as_typed(option, options) for option in context.command.params if _is_typed(context, option)}
    for keys, when, why in idle:
        given = [typed[key] for key in keys if key in typed]
        if given and when(options):
            yield f"{', '.join(given)}: without effect {why}. Leave it out"


def _is_typed(context: Context, option: Any) -> bool:
    source = context.get_parameter_source(option.name) if option.name else None
    return source is not None and source.name == "COMMANDLINE"


def _as_typed(option: Any, options: Mapping[str, Any]) -> str:
    """Return the name of an option; of a switch that was turned off, ``--no-<name>``."""
    off = option.secondary_opts if options[str(option.name)] is False else ()
    return (*off, *option.opts)[0]
