"""Measures a controller and its Redis from outside while they are attacked."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil
import redis

from tests.processes import ControllerProcess
from tests.waiting import async_wait_until

__all__ = ["Levels", "Monitor", "monitor"]

_REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_PROBE_INTERVAL_S = 0.02
_REDIS_INTERVAL_S = 0.25
_KILLED = "the controller exited"


@dataclass
class Levels:
    """The highest values of an interval. Redis commands are counted per second."""

    stall_cpu_s: float = 0.0
    rss_bytes: int = 0
    redis_bytes: int = 0
    redis_commands_per_s: float = 0.0

    def maximum(self, other: Levels) -> Levels:
        return Levels(
            max(self.stall_cpu_s, other.stall_cpu_s),
            max(self.rss_bytes, other.rss_bytes),
            max(self.redis_bytes, other.redis_bytes),
            max(self.redis_commands_per_s, other.redis_commands_per_s),
        )

    def __str__(self) -> str:
        return (
            f"longest stall {self.stall_cpu_s * 1000:.0f} ms of CPU time, RSS {self.rss_bytes >> 20} MiB, "
            f"Redis {self.redis_bytes >> 20} MiB, {self.redis_commands_per_s:.0f} commands/s"
        )


class Monitor:
    """Samples a controller and its Redis. ``levels`` contains the highest values since ``reset``.

    A stall is measured as the CPU time that the whole process consumes between two responses to ``/livez``,
    which only the event loop can send. Unlike the wall time, it does not depend on other programs. It
    includes the CPU time of other threads, because they can block the event loop by holding the GIL.
    """

    def __init__(self, controller: ControllerProcess, queue: redis.Redis) -> None:
        self._controller = controller
        self._queue = queue
        self._process = psutil.Process(controller.pid)
        self.levels = Levels()

    def reset(self) -> None:
        self.levels = Levels()

    @property
    def rss_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    async def watch_event_loop(self) -> None:
        before_s = self._cpu_s()
        while True:
            await self._probe()
            now_s = self._cpu_s()
            self.levels.stall_cpu_s = max(self.levels.stall_cpu_s, now_s - before_s)
            self.levels.rss_bytes = max(self.levels.rss_bytes, self.rss_bytes)
            before_s = now_s
            await asyncio.sleep(_PROBE_INTERVAL_S)

    async def watch_redis(self) -> None:
        before, before_at = None, 0.0
        while True:
            info = await asyncio.to_thread(self._queue.info)
            now = time.monotonic()
            num_commands = info["total_commands_processed"]
            if before is not None:
                per_s = (num_commands - before) / (now - before_at)
                self.levels.redis_commands_per_s = max(self.levels.redis_commands_per_s, per_s)
            self.levels.redis_bytes = max(self.levels.redis_bytes, info["used_memory"])
            before, before_at = num_commands, now
            await asyncio.sleep(_REDIS_INTERVAL_S)

    def _cpu_s(self) -> float:
        # The clock ID of the CPU time of another process, see clock_getcpuclockid(3).
        return time.clock_gettime((~self._controller.pid << 3) | 2)

    async def _probe(self) -> None:
        url = urlsplit(self._controller.url)
        assert url.hostname and url.port
        while True:
            assert self._controller.status is None, f"{_KILLED} with status {self._controller.status}"
            with contextlib.suppress(OSError):  # retried, because the connection can be replaced by another
                reader, writer = await asyncio.open_connection(url.hostname, url.port)
                try:
                    writer.write(_REQUEST)
                    response = await reader.read(-1)
                finally:
                    writer.transport.abort()
                if response.startswith(b"HTTP/1.1 200 "):
                    return


@asynccontextmanager
async def monitor(controller: ControllerProcess, queue: redis.Redis) -> AsyncIterator[Monitor]:
    """Yield a monitor that is sampling."""
    monitor = Monitor(controller, queue)
    tasks = [asyncio.create_task(monitor.watch_event_loop()), asyncio.create_task(monitor.watch_redis())]
    try:
        await async_wait_until(lambda: monitor.levels.redis_bytes and monitor.levels.rss_bytes)
        yield monitor
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [each for each in results if isinstance(each, Exception)]
    if errors:
        raise errors[0]
