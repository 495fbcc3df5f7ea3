"""What an operator orders a worker to do with its model, and how the worker says what came of it.

A worker has one order at a time: it reads it with its beat, and its heartbeats report on it from then on. An
order lives a minute after the worker's last beat, so one for a worker that is gone is gone as well.
"""

from __future__ import annotations

import uuid

import msgspec

from llava_wire.messages.commands import ModelCommand
from llava_wire.redis.connection import Link, try_briefly

__all__ = ["CommandSender"]


class CommandSender:
    """Where orders are given. Raises QueueUnavailable if Redis does not answer."""

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
        self._link = Link(url, timeout_s=timeout_s, max_connections=2)

    async def give(self, worker_id: str, instruction: ModelCommand) -> tuple[str, bool] | None:
        """The id of the worker's order, and whether it is this one; None if no such worker lives.

        The same instruction again is the same order while that is not settled; another one is not taken.
        """
        packed = msgspec.msgpack.encode(instruction)
        order_id = f"order-{uuid.uuid4().hex}"
        answer = await try_briefly(lambda: self._link.script("order", worker_id, order_id, packed))
        return (answer[1].decode(), answer[0] == b"ok") if answer else None

    async def aclose(self) -> None:
        await self._link.aclose()
