"""Send commands that make workers load or unload a model.

A worker handles one command at a time. It receives the command in the reply to a heartbeat and reports the
command's status in subsequent heartbeats. A command expires one minute after the worker's last heartbeat.
"""

from __future__ import annotations

import uuid

import msgspec

from llava_wire.messages.load_command import ModelCommand
from llava_wire.redis.connection import Link, retry_briefly
from llava_wire.redis.link_owner import LinkOwner

__all__ = ["CommandSender"]


class CommandSender(LinkOwner):
    """Sends commands to workers. All methods raise QueueUnavailable if Redis is unavailable."""

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
        super().__init__(Link(url, timeout_s=timeout_s, max_connections=2))

    async def send(self, worker_id: str, command: ModelCommand) -> tuple[str, bool] | None:
        """Send a command. Return the ID of the worker's pending command, and whether it equals ``command``.

        If another command is already pending, ``command`` is not sent, and the returned ID is that of the
        pending command. Return None if there is no live worker with this ID.
        """
        packed = msgspec.msgpack.encode(command)
        command_id = f"order-{uuid.uuid4().hex}"
        reply = await retry_briefly(lambda: self._link.script("send_command", worker_id, command_id, packed))
        return (reply[1].decode(), reply[0] == b"ok") if reply else None
