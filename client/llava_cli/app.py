"""The subcommands of ``llava-serve``."""

from __future__ import annotations

import typer

from llava_cli.commands.ask import ask
from llava_cli.commands.batch import batch
from llava_cli.commands.bench import bench
from llava_cli.commands.chat import chat
from llava_cli.commands.embed import embed
from llava_cli.commands.eval import evaluate
from llava_cli.commands.exec import dlq, doctor, keys, server, top, worker
from llava_cli.commands.models import models
from llava_cli.exit_codes import EXIT_CODES
from llava_cli.streams import safe_streams
from llava_cli.up.up import up

__all__ = ["app", "main"]

_FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(
    name="llava-serve",
    help="Serve LLaVA and ask questions about images.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up)
app.command("ask")(ask)
app.command("chat")(chat)
app.command("models")(models)
app.command("batch")(batch)
app.command("embed")(embed)
app.command("bench")(bench)
app.command("eval")(evaluate)
app.command("server", context_settings=_FORWARDED)(server)
app.command("keys", context_settings=_FORWARDED)(keys)
app.command("worker", context_settings=_FORWARDED)(worker)
app.command("top", context_settings=_FORWARDED)(top)
app.command("doctor", context_settings=_FORWARDED)(doctor)
app.command("dlq", context_settings=_FORWARDED)(dlq)


def main() -> None:
    """Run the command and exit with a documented exit code."""
    with safe_streams():
        app()
