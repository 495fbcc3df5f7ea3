"""The tree of subcommands: which words there are and which module answers to each."""

from __future__ import annotations

import typer

from llava_cli.commands import ask, batch, bench, chat, embed, models
from llava_cli.commands import exec as programs
from llava_cli.exit_codes import EXIT_CODES
from llava_cli.up import up

__all__ = ["app", "main"]

_FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(
    name="llava-serve",
    help="Serve LLaVA and ask it about pictures.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("models")(models.models)
app.command("batch")(batch.batch)
app.command("embed")(embed.embed)
app.command("bench")(bench.bench)
app.command("server", context_settings=_FORWARDED)(programs.server)
app.command("keys", context_settings=_FORWARDED)(programs.keys)
app.command("worker", context_settings=_FORWARDED)(programs.worker)
app.command("top", context_settings=_FORWARDED)(programs.top)
app.command("doctor", context_settings=_FORWARDED)(programs.doctor)
app.command("dlq", context_settings=_FORWARDED)(programs.dlq)


def main() -> None:
    """Run the command line and end the process with a documented exit code."""
    app()
