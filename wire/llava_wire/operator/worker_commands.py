"""Send a command to a worker: which model to load.

A worker has one command at a time. It receives it with the reply to a heartbeat, and its heartbeats report
the status from then on. A command is kept until a minute after the worker's last heartbeat.
"""

from __future__ import annotations

import uuid

import msgspec

from llava_wire.messages.commands import ModelCommand
from llava_wire.redis.connection import Link, retry_briefly

__all__ = ["CommandSender"]


class CommandSender:
    """Sends commands to workers. Raises QueueUnavailable if Redis does not answer."""

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
        self._link = Link(url, timeout_s=timeout_s, max_connections=2)

    async def send(self, worker_id: str, command: ModelCommand) -> tuple[str, bool] | None:
        """Return the ID of the worker's command and whether it is this one; None if no such worker is live.

        An equal command, sent again before the first one has finished, is the same command. A different one
        is not accepted until then.
        """
        packed = msgspec.msgpack.encode(command)
        command_id = f"order-{uuid.uuid4().hex}"
        reply = await retry_briefly(lambda: self._link.script("command", worker_id, command_id, packed))
        return (reply[1].decode(), reply[0] == b"ok") if reply else None

    async def aclose(self) -> None:
        await self._link.aclose()
