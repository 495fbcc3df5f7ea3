"""Turns of the event loop, which API keys share fairly.

Receiving a request takes CPU time of the event loop: its headers and body are read and parsed, and its job is
submitted, or it is rejected. A client that sends thousands of requests per second would delay all others. At
most one request per iteration of the event loop therefore takes its turn, and the API key whose turns have
taken the least time is first (see ``FairSlots``). The requests of a flood wait for each other, and a request
of another key waits for one turn of each key that is sending requests.

While a request waits, its body is not read. If its client disconnects, the request ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llava_server.fair_slots import FairSlots, SlotLimits
from llava_server.metrics import Metrics

__all__ = ["Turns"]


class Turns:
    """The turns of one event loop. ``weight_of`` returns the weight of a tenant."""

    def __init__(self, metrics: Metrics, weight_of: Callable[[str], float]) -> None:
        limits = SlotLimits(num_slots=1, has_reserve=False)
        self._slots = FairSlots("event_loop", "the event loop", limits, metrics, weight_of=weight_of)

    async def take(self, tenant: str) -> None:
        """Wait for a turn. It ends when the caller waits for something else.

        After a long turn, no other one begins for the same time, in which jobs and streams make progress.
        """
        slot = await self._slots.acquire(tenant)
        asyncio.get_running_loop().call_soon(slot.rest)
