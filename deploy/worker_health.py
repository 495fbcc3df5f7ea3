"""Health check of the worker image. It exits with status 0 if the container's worker is sending heartbeats.

A worker has no port to check. It sends a heartbeat every second once its model is loaded, so the check also
works for ``docker compose up --wait`` and ``depends_on``.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import aclosing

from llava_wire.errors import QueueUnavailable
from llava_wire.operator.sharded_inspector import ShardedInspector
from llava_worker.settings import load_settings


async def _problem() -> str | None:
    try:
        async with aclosing(ShardedInspector(load_settings([]).shards)) as inspector:
            status = await inspector.status()  # read-only, so the Redis user of a worker may do it
    except QueueUnavailable as error:
        return str(error)
    host = socket.gethostname()  # worker IDs begin with the host name of the container
    if any(worker.heartbeat.worker_id.startswith(f"{host}-") for worker in status.workers):
        return None
    return f"No worker on {host} is sending heartbeats. It is still loading its model, or it has hung."


if __name__ == "__main__":
    sys.exit(asyncio.run(_problem()))
