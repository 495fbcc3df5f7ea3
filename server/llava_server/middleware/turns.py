"""Turns of the event loop, which API keys share fairly.

Receiving a request takes CPU time of the event loop: reading its headers and body, parsing it, and submitting
its job or rejecting it. A client that sends thousands of requests per second would therefore delay all others.
At most one request per iteration of the event loop takes its turn, and the API key with the least CPU time is
first (see ``FairSlots``). A flood of requests of one key therefore waits for itself, and a request of another
key waits for one turn of each key that is sending requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from llava_server.fair_slots import FairSlots, SlotLimits
from llava_server.metrics import Metrics

__all__ = ["Turns"]


class Turns:
    """The turns of one event loop. ``weight_of`` returns the weight of a tenant."""

    def __init__(self, metrics: Metrics, weight_of: Callable[[str], float]) -> None:
        limits = SlotLimits(num_slots=1, has_reserve=False)
        clock = time.thread_time
        self._slots = FairSlots(
            "event_loop", "the event loop", limits, metrics, weight_of=weight_of, clock=clock
        )

    async def take(self, tenant: str) -> None:
        """Wait for a turn. It ends when the caller waits for something else."""
        slot = await self._slots.acquire(tenant)
        asyncio.get_running_loop().call_soon(slot.release)
