"""The one door to Redis: connections without hidden retries, and the scripts run over them.

redis-py repeats a command whose answer was lost; that is right for none of ours unless the whole script is
idempotent with *identical* arguments, so its retries are off and each caller repeats whole scripts itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from llava_wire.errors import QueueUnavailable

__all__ = ["UNAVAILABLE", "Arg", "Link", "pause", "try_briefly", "try_for_ever"]

Arg: TypeAlias = str | bytes | int | float

NUM_BRIEF_TRIES = 3
# What means "Redis is not there, or not able, at the moment"; anything else is a defect and stays.
UNAVAILABLE = (
    exceptions.ConnectionError,  # also: loading, authentication, a full pool
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,  # a primary that has become a replica
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.OutOfMemoryError,
    OSError,
)


class Link:
    """Connections to one Redis for one kind of use; each command is answered, or fails, in ``timeout_s``.

    ``on_connect`` is called each time that a connection is made anew: the moment at which another server, or
    the same one with an older memory, may have taken the place of the last.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        max_connections: int = 64,
        on_connect: Callable[[], None] | None = None,
    ) -> None:
        self._on_connect = on_connect
        self._timeout_s = timeout_s
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            protocol=2,
            socket_timeout=None,  # with one, redis-py swallows cancellation (wait_for of Python < 3.12)
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,  # its default reads package metadata from disk for each connection: 3.5 ms
            redis_connect_func=self._connected,
        )
        self._redis: Redis = Redis.from_pool(pool)

    async def _connected(self, connection: AbstractConnection) -> None:
        await connection.on_connect()
        if self._on_connect:
            self._on_connect()

    async def command(self, *args: Arg) -> Any:
        """The raw answer of one command. Raises one of ``UNAVAILABLE``."""
        task = asyncio.ensure_future(self._redis.execute_command(*args))
        task.add_done_callback(_look_at)
        try:
            await asyncio.wait({task}, timeout=self._timeout_s)
        except asyncio.CancelledError:
            await _abandon(task)
            raise
        if task.done():
            return task.result()
        await _abandon(task)
        raise exceptions.TimeoutError(f"no answer within {self._timeout_s:g} s")

    async def script(self, name: str, *args: Arg) -> Any:
        """Run ``scripts/{name}.lua`` once. Raises one of ``UNAVAILABLE``."""
        text, sha = _script(name)
        try:
            return await self.command("EVALSHA", sha, 0, *args)
        except exceptions.NoScriptError:  # a new server, or SCRIPT FLUSH
            return await self.command("EVAL", text, 0, *args)

    async def run_id(self) -> str:
        """Which life of which server this is."""
        info = await self.command("INFO", "server")
        return str(info["run_id"])

    async def aclose(self) -> None:
        await self._redis.aclose()


async def pause(attempt: int, *, first_s: float = 0.02, most_s: float = 1.0) -> None:
    """Wait before trying again: doubling with ``attempt`` (from 0) up to ``most_s``, with jitter."""
    await asyncio.sleep(random.uniform(0.5, 1.0) * min(most_s, first_s * 2 ** min(attempt, 16)))


async def try_for_ever(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer of ``call``, repeated until Redis gives one; ``call`` must be idempotent."""
    attempt = 0
    while True:
        with contextlib.suppress(*UNAVAILABLE):
            return await call()
        await pause(attempt)
        attempt += 1


async def try_briefly(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer of ``call``, repeated within a fraction of a second; ``call`` must be idempotent.

    Raises QueueUnavailable, at once if Redis hangs: waiting longer would not be failing fast.
    """
    try:
        for attempt in range(NUM_BRIEF_TRIES - 1):
            with contextlib.suppress(exceptions.ConnectionError):
                return await call()
            await pause(attempt)
        return await call()
    except UNAVAILABLE as error:
        raise QueueUnavailable(f"redis does not answer: {error}") from error


async def _abandon(task: asyncio.Task[Any]) -> None:
    """Closes the connection of a command under way: its answer would be taken for the next one's."""
    task.cancel()
    await asyncio.wait({task})


def _look_at(task: asyncio.Task[Any]) -> None:
    """Nobody asks for the error of an abandoned command; asyncio need not complain."""
    if not task.cancelled():
        task.exception()


@cache
def _script(name: str) -> tuple[str, str]:
    folder = files("llava_wire") / "redis" / "scripts"
    text = "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in ("queue", name))
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
