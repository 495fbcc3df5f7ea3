"""Operator commands. Exit statuses: 0 (success), 1 (failure), 2 (usage error), 69 (queue unavailable)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, TypeVar

import typer
from llava_wire.base_settings import redis_url_error
from llava_wire.errors import QueueUnavailable
from llava_wire.operator.sharded_inspector import ShardedInspector
from llava_wire.redis.shards import Shard, queue_shards
from rich.console import Console

from llava_server.operator.cli import dead_letters
from llava_server.operator.cli.doctor import print_findings, run_checks
from llava_server.operator.cli.run import run
from llava_server.operator.cli.top import watch
from llava_server.settings import load_settings

__all__ = ["app"]

T = TypeVar("T")

_EXIT_USAGE = 2
_EXIT_NO_QUEUE = 69  # EX_UNAVAILABLE in sysexits.h

app = typer.Typer(
    name="llava-serve", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
dead_letter_commands = typer.Typer(
    name="dlq",
    help="Inspect and replay dead letters, which are requests that caused workers to crash.",
    no_args_is_help=True,
)
app.add_typer(dead_letter_commands)

RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        help="URL of the job queue (see docs/deploy/compose.md). Defaults to LLAVA_REDIS_URL or the contents "
        "of LLAVA_REDIS_URL_FILE.",
    ),
]


@app.command("top")
def top(
    redis_url: RedisUrl = None,
    once: Annotated[bool, typer.Option("--once", help="Print the current state and exit.")] = False,
) -> None:
    """Show workers, streams and queues, refreshed every second. Press Ctrl-C to exit."""
    _run_with_inspector(redis_url, lambda inspector: watch(inspector, Console(), is_once=once))


@app.command("doctor")
def doctor(
    redis_url: RedisUrl = None,
    allow_eviction: Annotated[
        bool,
        typer.Option(
            "--allow-eviction",
            envvar="LLAVA_ALLOW_EVICTION",
            help="Report an evicting maxmemory-policy as a warning.",
        ),
    ] = False,
) -> None:
    """Check the Redis server, clocks, workers and controllers. Exit with status 1 if a check fails."""

    async def check(inspector: ShardedInspector) -> bool:
        settings = load_settings(())
        data_url = redis_url or settings.redis_url.get_secret_value()
        findings = await run_checks(inspector, settings, data_url, allow_eviction=allow_eviction)
        return print_findings(findings, Console())

    raise SystemExit(0 if _run_with_inspector(redis_url, check) else 1)


@dead_letter_commands.command("show")
def show(redis_url: RedisUrl = None) -> None:
    """List the time, job ID and reason of each dead letter, newest first."""
    _run_with_inspector(redis_url, lambda inspector: dead_letters.show(inspector, Console()))


@dead_letter_commands.command("replay")
def replay(
    job_id: Annotated[str, typer.Argument(help="Job ID, as printed by 'show'.")],
    redis_url: RedisUrl = None,
) -> None:
    """Replay a dead letter under a new job ID and print its output. The request may crash workers again."""
    shards = _shards(redis_url)
    raise SystemExit(
        _run_with_inspector(redis_url, lambda inspector: dead_letters.replay(inspector, shards, job_id))
    )


def _shards(flag: str | None) -> tuple[Shard, ...]:
    """Return the queue at the URL of the flag or, by default, of the server's settings.

    Exit if the URL is invalid.
    """
    if flag is None:
        return load_settings(()).shards
    if message := redis_url_error(flag):
        sys.stderr.write(f"llava-serve: {message}\n")
        raise SystemExit(_EXIT_USAGE)
    settings = load_settings(())
    return queue_shards([flag], settings.queue_shards or 1, settings.image_store.get_secret_value())


def _run_with_inspector(flag: str | None, command: Callable[[ShardedInspector], Awaitable[T]]) -> T:
    """Connect to Redis and run a command. Exit with an error message if Redis is unavailable."""

    async def run_command() -> T:
        async with aclosing(ShardedInspector(_shards(flag))) as inspector:
            return await command(inspector)

    try:
        return asyncio.run(run_command())
    except QueueUnavailable as error:
        uses_queue_urls = flag is None and load_settings(()).queue_urls.get_secret_value()
        setting = "LLAVA_QUEUE_URLS" if uses_queue_urls else "--redis-url"
        sys.stderr.write(f"llava-serve: {error} Check {setting}.\n")
        raise SystemExit(_EXIT_NO_QUEUE) from None
    except KeyboardInterrupt:
        raise SystemExit(0) from None


if __name__ == "__main__":
    run(app, prog_name="llava-serve")
