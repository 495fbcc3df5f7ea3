"""Connections to Redis without hidden retries, and the scripts that run over them.

redis-py repeats a command whose reply was lost. A script may only be repeated as a whole, with *identical*
arguments, so redis-py's retries are off and each caller repeats whole scripts.
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

__all__ = ["UNAVAILABLE", "Arg", "Link", "backoff", "retry_briefly", "retry_forever"]

Arg: TypeAlias = str | bytes | int | float

NUM_BRIEF_TRIES = 3
SHARED_PARTS = ("base", "images", "fair_queue", "jobs")  # each uses the ones before it
# Errors that mean "Redis is unavailable at the moment". Any other error is a defect and propagates.
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
    """A pool of connections to one Redis; each command gets its reply, or fails, within ``timeout_s``.

    ``on_connect`` is called for each new connection: from then on, the server may be another one, or the same
    one with an older state.
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
        """Return the raw reply of one command. Raises one of ``UNAVAILABLE``."""
        task = asyncio.ensure_future(self._redis.execute_command(*args))
        task.add_done_callback(_retrieve_exception)
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
        """The ID of this run of the server; it changes with each restart."""
        info = await self.command("INFO", "server")
        return str(info["run_id"])

    async def aclose(self) -> None:
        await self._redis.aclose()


async def backoff(attempt: int, *, first_s: float = 0.02, max_s: float = 1.0) -> None:
    """Wait before a retry: doubling with ``attempt`` (from 0) up to ``max_s``, with jitter."""
    await asyncio.sleep(random.uniform(0.5, 1.0) * min(max_s, first_s * 2 ** min(attempt, 16)))


async def retry_forever(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return the result of ``call``, repeated until Redis replies; ``call`` must be idempotent."""
    attempt = 0
    while True:
        with contextlib.suppress(*UNAVAILABLE):
            return await call()
        await backoff(attempt)
        attempt += 1


async def retry_briefly(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return the result of ``call``, repeated within a fraction of a second; ``call`` must be idempotent.

    Raises QueueUnavailable; without a retry after a timeout, since the caller has waited long enough.
    """
    try:
        for attempt in range(NUM_BRIEF_TRIES - 1):
            with contextlib.suppress(exceptions.ConnectionError):
                return await call()
            await backoff(attempt)
        return await call()
    except UNAVAILABLE as error:
        raise QueueUnavailable(f"redis does not answer: {error}") from error


async def _abandon(task: asyncio.Task[Any]) -> None:
    """Cancel a command, which closes its connection: its reply would be taken for the next command's."""
    task.cancel()
    await asyncio.wait({task})


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from logging the error of an abandoned command."""
    if not task.cancelled():
        task.exception()


@cache
def _script(name: str) -> tuple[str, str]:
    """The text of a script, with the shared parts in front, and its SHA-1."""
    folder = files("llava_wire") / "redis" / "scripts"
    paths = [*(folder / "shared" / f"{part}.lua" for part in SHARED_PARTS), folder / f"{name}.lua"]
    text = "\n".join(path.read_text("utf-8") for path in paths)
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
