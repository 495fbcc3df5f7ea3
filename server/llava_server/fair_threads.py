"""Threads for work that would delay the event loop, such as parsing large bodies, with a fair queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from llava_server.fair_slots import FairSlots

__all__ = ["FairThreads"]

T = TypeVar("T")


class FairThreads:
    """One thread for each slot in ``slots``. Call ``close`` after use."""

    def __init__(self, slots: FairSlots) -> None:
        self._slots = slots
        self._threads = ThreadPoolExecutor(slots.num_slots, thread_name_prefix="tenant-work")

    async def run(self, tenant: str, call: Callable[[], T]) -> T:
        """Return the result of ``call``, which runs in a thread.

        Raises the same errors as ``FairSlots.acquire``. If the caller is cancelled, the slot is released when
        ``call`` returns, because a thread cannot be interrupted. After a long call, the slot rests, because
        the call shared the interpreter's lock with the event loop.
        """
        slot = await self._slots.acquire(tenant)
        result = asyncio.get_running_loop().run_in_executor(self._threads, call)
        result.add_done_callback(lambda _: slot.rest())
        return await asyncio.shield(result)

    def close(self) -> None:
        """Wait until all calls have returned."""
        self._threads.shutdown(wait=True)
