"""The worker image's health check: status 0 while the worker of this container announces itself on the queue.

A worker has no port to ask. It renews its announcement each second, and it begins when the model is loaded;
both ends of that are what ``docker compose up --wait`` and ``depends_on`` want to know.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import QueueUnavailable
from llava_worker.settings import load_settings


async def _complaint() -> str | None:
    url = load_settings([]).redis_url.get_secret_value()
    try:
        producer = await JobProducer.connect(url)
        try:
            workers = await producer.heartbeats()
        finally:
            await producer.aclose()
    except QueueUnavailable as error:
        return str(error)
    host = socket.gethostname()  # a container's own name begins its worker's id
    if any(worker.worker_id.startswith(f"{host}-") for worker in workers):
        return None
    return f"no worker on {host} announces itself: it loads its model, or hangs"


if __name__ == "__main__":
    sys.exit(asyncio.run(_complaint()))
