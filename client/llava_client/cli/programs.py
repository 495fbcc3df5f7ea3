"""Commands that are other programs: the process becomes the server, a worker or the operator's console."""

from __future__ import annotations

import os
import sys

import typer

from .extras import install_line, missing_modules
from .reporting import EXIT_USAGE, fail

__all__ = ["dlq", "doctor", "server", "top", "worker"]


def server(context: typer.Context) -> None:
    """Run the HTTP server; its own --help lists the flags."""
    _become("server", context.args)


def worker(context: typer.Context) -> None:
    """Run one worker; its own --help lists the flags."""
    _become("worker", context.args)


def top(context: typer.Context) -> None:
    """Watch workers, streams and queues live; needs the queue's URL."""
    _become("server", ["top", *context.args], module="llava_server.console")


def doctor(context: typer.Context) -> None:
    """Check the queue's server, the clocks and the fleet; needs the queue's URL."""
    _become("server", ["doctor", *context.args], module="llava_server.console")


def dlq(context: typer.Context) -> None:
    """Show and replay the requests that killed workers; needs the queue's URL."""
    _become("server", ["dlq", *context.args], module="llava_server.console")


def _become(name: str, arguments: list[str], *, module: str | None = None) -> None:
    model = "echo" if {"echo", "--model=echo"} & set(arguments) else ""
    if missing := missing_modules(name, model=model):
        fail(f"the {name} needs {', '.join(missing)}: {install_line(name)}", EXIT_USAGE)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module or f"llava_{name}", *arguments])
