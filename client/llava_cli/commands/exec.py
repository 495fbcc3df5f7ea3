"""Commands that replace this process with the server, a worker or an operator tool."""

from __future__ import annotations

import os
import sys

import typer

from llava_cli.exit_codes import EXIT_USAGE, fail
from llava_cli.extras import install_line, missing_modules

__all__ = ["dlq", "doctor", "keys", "server", "top", "worker"]


def server(context: typer.Context) -> None:
    """Run the HTTP server. Use --help to list its flags."""
    _exec("server", "llava_server", context.args)


def keys(context: typer.Context) -> None:
    """Create, list and revoke API keys. Use --help to list its commands."""
    _exec("server", "llava_server.operator.cli.api_keys", context.args)


def worker(context: typer.Context) -> None:
    """Run one worker. Use --help to list its flags."""
    _exec("worker", "llava_worker", context.args)


def top(context: typer.Context) -> None:
    """Show a live view of workers, streams and queues. Requires access to the server's Redis."""
    _exec("server", "llava_server.operator.cli", ["top", *context.args])


def doctor(context: typer.Context) -> None:
    """Check Redis, the system clocks and the running processes. Requires access to the server's Redis."""
    _exec("server", "llava_server.operator.cli", ["doctor", *context.args])


def dlq(context: typer.Context) -> None:
    """Show and replay requests that caused workers to crash. Requires access to the server's Redis."""
    _exec("server", "llava_server.operator.cli", ["dlq", *context.args])


def _exec(name: str, module: str, arguments: list[str]) -> None:
    model = "echo" if {"echo", "--model=echo"} & set(arguments) else ""
    if missing := missing_modules(name, model=model):
        modules, command = ", ".join(missing), install_line(name)
        fail(f"The {name} requires modules that are not installed: {modules}. Run: {command}", EXIT_USAGE)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
