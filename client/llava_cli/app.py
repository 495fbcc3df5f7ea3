"""The subcommands of ``llava-serve``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module

import typer

from llava_cli.exit_codes import EXIT_CODES
from llava_cli.streams import safe_streams

__all__ = ["create_app", "main"]

# The module and the function of each command. A module is imported only if its command is used or listed.
_COMMANDS = {
    "up": ("llava_cli.up.up", "up"),
    "ask": ("llava_cli.commands.ask", "ask"),
    "chat": ("llava_cli.commands.chat", "chat"),
    "models": ("llava_cli.commands.models", "models"),
    "batch": ("llava_cli.commands.batch", "batch"),
    "embed": ("llava_cli.commands.embed", "embed"),
    "bench": ("llava_cli.commands.bench", "bench"),
    "eval": ("llava_cli.commands.eval", "evaluate"),
    "server": ("llava_cli.commands.exec", "server"),
    "keys": ("llava_cli.commands.exec", "keys"),
    "worker": ("llava_cli.commands.exec", "worker"),
    "top": ("llava_cli.commands.exec", "top"),
    "doctor": ("llava_cli.commands.exec", "doctor"),
    "dlq": ("llava_cli.commands.exec", "dlq"),
}
_FORWARDING = "llava_cli.commands.exec"  # its commands pass all arguments on
_FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def create_app(names: Iterable[str] = tuple(_COMMANDS)) -> typer.Typer:
    """Return the application with these commands, by default with all of them."""
    app = typer.Typer(
        name="llava-serve",
        help="Serve LLaVA and ask questions about images.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_group)
    for name in names:
        module, function = _COMMANDS[name]
        settings = _FORWARDED if module == _FORWARDING else None
        app.command(name, context_settings=settings)(getattr(import_module(module), function))
    return app


def _group() -> None:
    """Make the application a group even if it has only one command."""


def main() -> None:
    """Run the command and exit with a documented exit code."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    with safe_streams():
        create_app([command] if command in _COMMANDS else _COMMANDS)()
