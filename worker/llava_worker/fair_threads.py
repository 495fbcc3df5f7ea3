"""Threads that tenants (API keys) share fairly, for work that one tenant can make expensive.

A free thread is given to the waiting tenant that uses the fewest threads. Among these tenants, the one with
the lowest virtual time comes first, which is the total duration of its calls (start-time fair queueing). A
tenant that was idle resumes at the current virtual time, so that it does not accumulate credit. A tenant that
uses ``n`` threads gets another one only if more than ``n`` are free, so a single tenant leaves half of the
threads to others. Calls of one tenant start in the order in which they arrive.

If a call is cancelled before it starts, it never runs. A running call cannot be interrupted, so its thread
becomes free when it returns.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = ["FairThreads"]

_T = TypeVar("_T")


@dataclass(eq=False)
class _Tenant:
    """``served_s`` is the virtual time in seconds. ``waiting`` contains a future for each waiting call."""

    served_s: float
    num_running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class FairThreads:
    """A pool of threads with a fair queue. Must be used in one event loop. Call ``close`` after use."""

    def __init__(self, num_threads: int, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._clock = clock
        self._num_free = num_threads
        self._tenants: dict[str, _Tenant] = {}
        self._virtual_s = 0.0  # virtual time of the tenant that was served last

    async def run(self, tenant: str, call: Callable[[], _T]) -> _T:
        """Return the result of ``call``, which runs in a thread once it is the tenant's turn."""
        caller = await self._wait_for_turn(tenant)
        began_at = self._clock()
        result = asyncio.get_running_loop().run_in_executor(self._threads, call)

        def release(done: asyncio.Future[_T]) -> None:
            done.exception()  # if the caller was cancelled, it does not read the error
            self._release(caller, self._clock() - began_at)

        result.add_done_callback(release)
        return await asyncio.shield(result)

    def close(self) -> None:
        """Wait until all running calls have returned."""
        self._threads.shutdown(wait=True)

    async def _wait_for_turn(self, name: str) -> _Tenant:
        tenant = self._tenants.setdefault(name, _Tenant(self._virtual_s))
        if not tenant.num_running and not tenant.waiting:
            tenant.served_s = max(tenant.served_s, self._virtual_s)
        turn = asyncio.get_running_loop().create_future()
        tenant.waiting.append(turn)
        self._dispatch()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in tenant.waiting:
                tenant.waiting.remove(turn)
            elif not turn.cancelled():  # the thread was assigned in the meantime
                self._release(tenant, 0.0)
            raise
        return tenant

    def _dispatch(self) -> None:
        """Give the free threads to waiting tenants."""
        while candidates := [
            tenant
            for tenant in self._tenants.values()
            if tenant.waiting and tenant.num_running < self._num_free
        ]:
            tenant = min(candidates, key=lambda each: (each.num_running, each.served_s))
            turn = tenant.waiting.popleft()
            if turn.cancelled():
                continue
            self._virtual_s = max(self._virtual_s, tenant.served_s)
            tenant.num_running += 1
            self._num_free -= 1
            turn.set_result(None)

    def _release(self, tenant: _Tenant, duration_s: float) -> None:
        tenant.num_running -= 1
        tenant.served_s += duration_s
        self._num_free += 1
        self._dispatch()
        self._drop_idle()

    def _drop_idle(self) -> None:
        """Drop idle tenants that would resume at the current virtual time, or all if all are idle."""
        idle = [name for name, each in self._tenants.items() if not each.num_running and not each.waiting]
        is_idle = len(idle) == len(self._tenants)
        for name in idle:
            if is_idle or self._tenants[name].served_s <= self._virtual_s:
                del self._tenants[name]
