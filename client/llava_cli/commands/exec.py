"""Commands that replace this process with the server, a worker or an operator tool.

Operator tools use the queue of a running ``llava-serve up`` unless a queue is given.
"""

from __future__ import annotations

import os
import sys

import typer

from llava_cli.exit_codes import EXIT_USAGE, fail
from llava_cli.extras import install_line, missing_modules
from llava_cli.up.redis_process import private_redis_urls

__all__ = ["dlq", "doctor", "keys", "server", "top", "worker"]

_QUEUE_SETTINGS = ("LLAVA_REDIS_URL", "LLAVA_REDIS_URL_FILE", "LLAVA_QUEUE_URLS", "LLAVA_QUEUE_URLS_FILE")


def server(context: typer.Context) -> None:
    """Run the HTTP server. Use --help to list its flags."""
    _exec("server", "llava_server", context.args)


def keys(context: typer.Context) -> None:
    """Create, list and revoke API keys. Use --help to list its commands."""
    _exec_operator("api_keys", context.args)


def worker(context: typer.Context) -> None:
    """Run one worker. Use --help to list its flags."""
    _exec("worker", "llava_worker", context.args)


def top(context: typer.Context) -> None:
    """Show a live view of workers, streams and queues. Requires access to the server's Redis."""
    _exec_operator("", ["top", *context.args])


def doctor(context: typer.Context) -> None:
    """Check Redis, the system clocks and the running processes. Requires access to the server's Redis."""
    _exec_operator("", ["doctor", *context.args])


def dlq(context: typer.Context) -> None:
    """Show and replay requests that caused workers to crash. Requires access to the server's Redis."""
    _exec_operator("", ["dlq", *context.args])


def _exec_operator(module: str, arguments: list[str]) -> None:
    """Run an operator tool. Exits with an error if several queues of ``up`` are running and none is given."""
    has_queue = any(os.environ.get(name) for name in _QUEUE_SETTINGS)
    if not has_queue and not any(each == "--help" or each.startswith("--redis-url") for each in arguments):
        urls = private_redis_urls()
        if len(urls) > 1:
            fail(
                f"Several `up` commands are running. Set LLAVA_REDIS_URL to one of: {' '.join(urls)}",
                EXIT_USAGE,
            )
        for url in urls:
            sys.stderr.write(f"llava-serve: using the queue of `up`: {url}\n")
            os.environ["LLAVA_REDIS_URL"] = url
    _exec("server", "llava_server.operator.cli" + (f".{module}" if module else ""), arguments)


def _exec(name: str, module: str, arguments: list[str]) -> None:
    model = "echo" if {"echo", "--model=echo"} & set(arguments) else ""
    if missing := missing_modules(name, model=model):
        modules, command = ", ".join(missing), install_line(name)
        fail(f"The {name} requires modules that are not installed: {modules}. Run: {command}", EXIT_USAGE)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
