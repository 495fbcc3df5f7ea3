"""Commands that are other programs: the process becomes the server, a worker or the operator's console."""

from __future__ import annotations

import os
import sys

import typer

from llava_cli.exit_codes import EXIT_USAGE, fail
from llava_cli.extras import install_line, missing_modules

__all__ = ["dlq", "doctor", "keys", "server", "top", "worker"]


def server(context: typer.Context) -> None:
    """Run the HTTP server; its own --help lists the flags."""
    _exec("server", "llava_server", context.args)


def keys(context: typer.Context) -> None:
    """Make, list and revoke API keys; its own --help lists the commands."""
    _exec("server", "llava_server.operator.cli.api_keys", context.args)


def worker(context: typer.Context) -> None:
    """Run one worker; its own --help lists the flags."""
    _exec("worker", "llava_worker", context.args)


def top(context: typer.Context) -> None:
    """Watch workers, streams and queues live; needs the queue's URL."""
    _exec("server", "llava_server.operator.cli", ["top", *context.args])


def doctor(context: typer.Context) -> None:
    """Check the queue's server, the clocks and the fleet; needs the queue's URL."""
    _exec("server", "llava_server.operator.cli", ["doctor", *context.args])


def dlq(context: typer.Context) -> None:
    """Show and replay the requests that killed workers; needs the queue's URL."""
    _exec("server", "llava_server.operator.cli", ["dlq", *context.args])


def _exec(name: str, module: str, arguments: list[str]) -> None:
    model = "echo" if {"echo", "--model=echo"} & set(arguments) else ""
    if missing := missing_modules(name, model=model):
        fail(f"the {name} needs {', '.join(missing)}: {install_line(name)}", EXIT_USAGE)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
