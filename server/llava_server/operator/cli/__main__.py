"""The operator's commands. Exit status: 0 well, 1 something is wrong, 2 wrong usage, 69 no queue."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Annotated, Any

import typer
from llava_wire.errors import QueueUnavailable
from llava_wire.operator.inspector import Inspector
from rich.console import Console

from llava_server.operator.cli import dead_letters
from llava_server.operator.cli.doctor import examine, report
from llava_server.operator.cli.top import watch

__all__ = ["app"]

_EXIT_NO_QUEUE = 69  # sysexits' EX_UNAVAILABLE

app = typer.Typer(
    name="llava-serve", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
letters = typer.Typer(
    name="dlq", help="Requests that killed the workers that ran them.", no_args_is_help=True
)
app.add_typer(letters)

RedisUrl = Annotated[
    str,
    typer.Option("--redis-url", envvar="LLAVA_REDIS_URL", help="The queue: redis://, rediss:// or unix://."),
]
DEFAULT_URL = "redis://127.0.0.1:6379/0"


@app.command("top")
def top(
    redis_url: RedisUrl = DEFAULT_URL,
    once: Annotated[bool, typer.Option("--once", help="Print one moment and end.")] = False,
) -> None:
    """Watch workers, streams and queues; Ctrl-C ends."""
    _run(redis_url, lambda inspector: watch(inspector, Console(), is_once=once))


@app.command("doctor")
def doctor(redis_url: RedisUrl = DEFAULT_URL) -> None:
    """Check what the queue's server, the clocks and the fleet should be; status 1 if something is wrong."""

    async def check(inspector: Inspector) -> bool:
        return report(await examine(inspector), Console())

    raise SystemExit(0 if _run(redis_url, check) else 1)


@letters.command("show")
def show(redis_url: RedisUrl = DEFAULT_URL) -> None:
    """List them, the latest first: when, what, why."""
    _run(redis_url, lambda inspector: dead_letters.show(inspector, Console()))


@letters.command("replay")
def replay(
    job_id: Annotated[str, typer.Argument(help="The job's id, as 'show' prints it.")],
    redis_url: RedisUrl = DEFAULT_URL,
) -> None:
    """Run one of them again under a new id and print its answer; it may kill workers again."""
    raise SystemExit(_run(redis_url, lambda inspector: dead_letters.replay(inspector, redis_url, job_id)))


def _run(url: str, work: Any) -> Any:
    async def working() -> Any:
        inspector = Inspector(url)
        try:
            done: Coroutine[Any, Any, Any] = work(inspector)
            return await done
        finally:
            await inspector.aclose()

    try:
        return asyncio.run(working())
    except QueueUnavailable as error:
        sys.stderr.write(f"llava-serve: {error}; is --redis-url right?\n")
        raise SystemExit(_EXIT_NO_QUEUE) from None
    except KeyboardInterrupt:
        raise SystemExit(0) from None


if __name__ == "__main__":
    app(prog_name="llava-serve")
