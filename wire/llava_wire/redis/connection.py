"""Connections to Redis without implicit retries, and functions that run scripts.

By default, redis-py resends a command if its reply was lost. A script may be repeated only as a whole and
with *identical* arguments. Retries in redis-py are therefore disabled, and callers repeat whole scripts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from llava_wire.errors import QueueUnavailable
from llava_wire.redis.address import parse_redis_url
from llava_wire.redis.error_replies import error_kind, is_defect, unavailable_reason
from llava_wire.redis.keys import PREFIX
from llava_wire.redis.primary import create_pool

__all__ = ["Arg", "Link", "backoff", "retry_briefly", "retry_forever"]

Arg: TypeAlias = str | bytes | int | float

NUM_BRIEF_TRIES = 3
NUM_SLICES = 10  # parts into which a timeout is divided, so that delays of the event loop can be discounted
# Each part uses only earlier ones.
SHARED_PARTS = ("base", "budget", "images", "tenant_load", "fair_queue", "jobs")


class Link:
    """A pool of connections to the primary Redis server.

    Each command fails if Redis does not reply within ``timeout_s``. Two delays that Redis does not cause are
    not counted: those of a blocked event loop, and the time in which a command waits for a connection while
    other commands receive replies. ``on_connect`` is called for each new connection, because the connection
    may be to a different server or to a server that was restarted with older data. ``prefix`` is the prefix
    of all keys of the scripts. In a cluster, it selects the slot.

    ``num_errors`` counts the errors by kind: the first word of an error reply, "timeout" or "connection".
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        max_connections: int = 64,
        on_connect: Callable[[], None] | None = None,
        prefix: str = PREFIX,
    ) -> None:
        """Create the pool without connecting. Raises RedisURLError."""
        self.prefix = prefix
        self.num_errors: Counter[str] = Counter()
        self._on_connect = on_connect
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(max_connections)
        self._num_replies = 0
        self._pool = create_pool(
            parse_redis_url(url),
            max_connections=max_connections,
            connect_timeout_s=timeout_s,
            on_connect=self._connected,
            prefix=prefix,
        )
        self._redis: Redis = Redis.from_pool(self._pool)

    async def command(self, *args: Arg) -> Any:
        """Run one command and return its raw reply.

        Raises QueueUnavailable if Redis is temporarily unavailable, which includes almost all error replies.
        An error reply that indicates a defect of this program is raised unchanged.
        """
        try:
            return await self._run(*args)
        except (exceptions.RedisError, OSError) as error:
            await self._raise_if_unavailable(error)
            raise

    async def script(self, name: str, *args: Arg) -> Any:
        """Run ``scripts/{name}.lua`` once. Raises the same errors as ``command``."""
        text, sha = _script(name, self.prefix)
        try:
            with contextlib.suppress(exceptions.NoScriptError):  # new server, or SCRIPT FLUSH
                return await self._run("EVALSHA", sha, 0, *args)
            return await self._run("EVAL", text, 0, *args)
        except (exceptions.RedisError, OSError) as error:
            await self._raise_if_unavailable(error)
            raise

    async def run_id(self) -> str:
        """Return the run ID of the server. The run ID changes each time the server restarts."""
        info = await self.command("INFO", "server")
        return str(info["run_id"])

    async def aclose(self) -> None:
        """Close all connections. Does not raise, even if a server does not respond."""
        with contextlib.suppress(exceptions.RedisError, OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._redis.aclose(), self._timeout_s)

    async def _run(self, *args: Arg) -> Any:
        has_connection = asyncio.Event()
        task = asyncio.ensure_future(self._execute(has_connection, *args))
        task.add_done_callback(_retrieve_exception)
        try:
            await self._wait(task, has_connection)
        except asyncio.CancelledError:
            await _abandon(task)
            raise
        if task.done():
            return task.result()
        await _abandon(task)
        raise exceptions.TimeoutError(f"no reply within {self._timeout_s:g} s")

    async def _execute(self, has_connection: asyncio.Event, *args: Arg) -> Any:
        async with self._free:
            has_connection.set()
            reply = await self._redis.execute_command(*args)
            self._num_replies += 1
            return reply

    async def _wait(self, task: asyncio.Task[Any], has_connection: asyncio.Event) -> None:
        """Wait until the task is done or has timed out."""
        slices = NUM_SLICES
        while slices and not task.done():
            num_replies = self._num_replies
            await asyncio.wait({task}, timeout=self._timeout_s / NUM_SLICES)
            if has_connection.is_set() or num_replies == self._num_replies:
                slices -= 1  # one slice, even if the event loop was blocked for longer

    async def _raise_if_unavailable(self, error: Exception) -> None:
        """Raise QueueUnavailable unless the error indicates a defect. Close all idle connections.

        A new connection authenticates again and finds the current primary.
        """
        kind = error_kind(error)
        self.num_errors[kind] += 1
        await self._pool.close_idle()
        if is_defect(error):
            return
        reason, is_disconnect = unavailable_reason(error), isinstance(error, exceptions.ConnectionError)
        message = f"Redis is unavailable: {reason}"
        raise QueueUnavailable(message, is_disconnect=is_disconnect, kind=kind) from error

    async def _connected(self, connection: AbstractConnection) -> None:
        await connection.on_connect()
        if self._on_connect:
            self._on_connect()


async def backoff(attempt: int, *, first_s: float = 0.02, max_s: float = 1.0) -> None:
    """Wait before a retry. The delay doubles with each ``attempt`` (0-based) up to ``max_s``, with jitter."""
    await asyncio.sleep(random.uniform(0.5, 1.0) * min(max_s, first_s * 2 ** min(attempt, 16)))


async def retry_forever(
    call: Callable[[], Awaitable[Any]], on_error: Callable[[QueueUnavailable], None] | None = None
) -> Any:
    """Repeat ``call`` until Redis is available, and return its result. ``call`` must be idempotent.

    ``on_error`` is called after each failed attempt.
    """
    attempt = 0
    while True:
        try:
            return await call()
        except QueueUnavailable as error:
            if on_error is not None:
                on_error(error)
        await backoff(attempt)
        attempt += 1


async def retry_briefly(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return the result of ``call``, retrying for a fraction of a second. ``call`` must be idempotent.

    Raises QueueUnavailable if all attempts fail. Only closed connections are retried. After a timeout, the
    caller has already waited, and the state behind an error reply rarely passes in a fraction of a second.
    """
    for attempt in range(NUM_BRIEF_TRIES - 1):
        try:
            return await call()
        except QueueUnavailable as error:
            if not error.is_disconnect:
                raise
        await backoff(attempt)
    return await call()


async def _abandon(task: asyncio.Task[Any]) -> None:
    """Cancel a command and close its connection, so that the late reply is not read by the next command."""
    task.cancel()
    await asyncio.wait({task})


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of an abandoned command, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


@cache
def _script(name: str, prefix: str) -> tuple[str, str]:
    """Return the text of a script and its SHA-1 hash. The text includes the prefix and the shared parts."""
    folder = files("llava_wire") / "redis" / "scripts"
    paths = [*(folder / "shared" / f"{part}.lua" for part in SHARED_PARTS), folder / f"{name}.lua"]
    text = "\n".join([f"local PREFIX = '{prefix}'", *(path.read_text("utf-8") for path in paths)])
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
