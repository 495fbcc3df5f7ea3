"""The memory for stored data that requests load from Redis.

The data counts toward the same limits as request bodies, from before it is loaded until the jobs of the
request have been submitted or, if it is part of the response, until the response has been sent. A small
request could otherwise load megabytes, and hundreds of them would wait for a thread or for a slow client with
their data in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import anyio
from llava_wire.stores.api_keys import KeyLimits

from llava_server.errors import ApiError

__all__ = ["LoadedBytes", "LoadedData"]

_MAX_WAIT_S = 30.0


class MemoryLimits(Protocol):
    """The limits on the memory of all requests. See ``OpenRequests``."""

    released: asyncio.Event

    def count_loaded(self, tenant: str, change: int) -> None: ...

    def loading_error(self, tenant: str, limits: KeyLimits, num_bytes: int) -> ApiError | None: ...


class LoadedBytes:
    """The bytes that one request has loaded. They are released by the ``with`` block of ``LoadedData``."""

    def __init__(self, budget: LoadedData, tenant: str) -> None:
        self._budget = budget
        self._tenant = tenant
        self.num_bytes = 0

    async def reserve(self, num_bytes: int) -> None:
        """Wait until the limits allow this many more bytes, and count them. The caller then loads the data.

        Raises ApiError (429, 503) if the wait takes too long.
        """
        await self._budget.wait(self._tenant, num_bytes)
        self.count(num_bytes)

    def count(self, num_bytes: int) -> None:
        """Count bytes that are already in memory, without checking the limits."""
        self.num_bytes += num_bytes
        self._budget.change(self._tenant, num_bytes)

    def release(self) -> None:
        self._budget.change(self._tenant, -self.num_bytes)
        self.num_bytes = 0


class LoadedData:
    """The data loaded by all requests of this server."""

    def __init__(self, memory: MemoryLimits, limits_of: Callable[[str], KeyLimits]) -> None:
        self._memory = memory
        self._limits_of = limits_of
        self.num_waiting = 0

    @contextmanager
    def hold(self, tenant: str) -> Iterator[LoadedBytes]:
        """Count the data that is loaded within the ``with`` block until the block ends."""
        loaded = LoadedBytes(self, tenant)
        try:
            yield loaded
        finally:
            loaded.release()

    def change(self, tenant: str, num_bytes: int) -> None:
        """Add or remove bytes. A removal wakes waiting requests."""
        self._memory.count_loaded(tenant, num_bytes)

    async def wait(self, tenant: str, num_bytes: int) -> None:
        """Wait until the limits allow this many bytes. Raises ApiError (429, 503)."""
        error = self._error(tenant, num_bytes)
        if error is None:
            return
        self.num_waiting += 1
        try:
            with anyio.move_on_after(_MAX_WAIT_S):
                while error is not None:
                    await self._memory.released.wait()
                    error = self._error(tenant, num_bytes)
        finally:
            self.num_waiting -= 1
        if error is not None:
            raise error

    def _error(self, tenant: str, num_bytes: int) -> ApiError | None:
        return self._memory.loading_error(tenant, self._limits_of(tenant), num_bytes)
