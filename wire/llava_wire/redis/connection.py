"""Connections to Redis without implicit retries, and functions that run scripts.

By default, redis-py resends a command if its reply was lost. A script may be repeated only as a whole and
with *identical* arguments. Retries in redis-py are therefore disabled, and callers repeat whole scripts.
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

__all__ = ["UNAVAILABLE", "Arg", "Link", "backoff", "queue_unavailable", "retry_briefly", "retry_forever"]

Arg: TypeAlias = str | bytes | int | float

NUM_BRIEF_TRIES = 3
SHARED_PARTS = ("base", "images", "fair_queue", "jobs")  # each part uses only earlier ones
# Errors that mean that Redis is temporarily unavailable. Any other error indicates a bug and is propagated.
UNAVAILABLE = (
    exceptions.ConnectionError,  # includes loading, failed authentication and an exhausted pool
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,  # a primary that has become a replica
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.OutOfMemoryError,
    OSError,
)


class Link:
    """A pool of connections to a Redis server. Each command returns or fails within ``timeout_s``.

    ``on_connect`` is called for each new connection, because the connection may be to a different server or
    to a server that was restarted with older data.
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
            socket_timeout=None,  # else redis-py can swallow a cancellation (wait_for in Python < 3.12)
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,  # the default reads package metadata from disk for each connection (3.5 ms)
            redis_connect_func=self._connected,
        )
        self._redis: Redis = Redis.from_pool(pool)

    async def _connected(self, connection: AbstractConnection) -> None:
        await connection.on_connect()
        if self._on_connect:
            self._on_connect()

    async def command(self, *args: Arg) -> Any:
        """Run one command and return its raw reply. Raise an ``UNAVAILABLE`` error on failure."""
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
        raise exceptions.TimeoutError(f"no reply within {self._timeout_s:g} s")

    async def script(self, name: str, *args: Arg) -> Any:
        """Run ``scripts/{name}.lua`` once. Raise an ``UNAVAILABLE`` error on failure."""
        text, sha = _script(name)
        try:
            return await self.command("EVALSHA", sha, 0, *args)
        except exceptions.NoScriptError:  # new server, or SCRIPT FLUSH
            return await self.command("EVAL", text, 0, *args)

    async def run_id(self) -> str:
        """Return the run ID of the server. The run ID changes each time the server restarts."""
        info = await self.command("INFO", "server")
        return str(info["run_id"])

    async def aclose(self) -> None:
        await self._redis.aclose()


async def backoff(attempt: int, *, first_s: float = 0.02, max_s: float = 1.0) -> None:
    """Wait before a retry. The delay doubles with each ``attempt`` (0-based) up to ``max_s``, with jitter."""
    await asyncio.sleep(random.uniform(0.5, 1.0) * min(max_s, first_s * 2 ** min(attempt, 16)))


async def retry_forever(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat ``call`` until Redis replies, and return its result. ``call`` must be idempotent."""
    attempt = 0
    while True:
        with contextlib.suppress(*UNAVAILABLE):
            return await call()
        await backoff(attempt)
        attempt += 1


async def retry_briefly(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return the result of ``call``, retrying for a fraction of a second. ``call`` must be idempotent.

    Raise QueueUnavailable if all attempts fail. A timeout is not retried, because the caller has already
    waited.
    """
    try:
        for attempt in range(NUM_BRIEF_TRIES - 1):
            with contextlib.suppress(exceptions.ConnectionError):
                return await call()
            await backoff(attempt)
        return await call()
    except UNAVAILABLE as error:
        raise queue_unavailable(error) from error


def queue_unavailable(error: Exception) -> QueueUnavailable:
    """Convert an ``UNAVAILABLE`` error to a QueueUnavailable exception."""
    reason = str(error).rstrip(".")
    return QueueUnavailable(f"Redis is unavailable: {reason}.")


async def _abandon(task: asyncio.Task[Any]) -> None:
    """Cancel a command and close its connection, so that the late reply is not read by the next command."""
    task.cancel()
    await asyncio.wait({task})


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of an abandoned command, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


@cache
def _script(name: str) -> tuple[str, str]:
    """Return the text of a script, preceded by the shared parts, and the SHA-1 hash of this text."""
    folder = files("llava_wire") / "redis" / "scripts"
    paths = [*(folder / "shared" / f"{part}.lua" for part in SHARED_PARTS), folder / f"{name}.lua"]
    text = "\n".join(path.read_text("utf-8") for path in paths)
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
