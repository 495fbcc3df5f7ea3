"""Measures a controller and its Redis from outside while they are attacked."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

from tests.security.attacked_site import AttackedSite
from tests.security.running_tasks import running
from tests.waiting import async_wait_until

__all__ = ["Levels", "Monitor", "monitor"]

_PROBE_INTERVAL_S = 0.02
_REDIS_INTERVAL_S = 0.25
_REPORT_INTERVAL_S = 1.0  # shorter than an attack
_REPORTED_STALL = re.compile(rb"^llava_event_loop_stall_cpu_seconds (\S+)$", re.MULTILINE)
_KILLED = "the controller exited"


@dataclass
class Levels:
    """The highest values of an interval. Redis commands are counted per second."""

    probe_cpu_s: float = 0.0  # CPU time between two responses, which includes waiting for other requests
    reported_stall_cpu_s: float = 0.0  # the longest stall of the event loop according to the server
    rss_bytes: int = 0
    redis_bytes: int = 0
    redis_commands_per_s: float = 0.0

    def maximum(self, other: Levels) -> Levels:
        return Levels(
            max(self.probe_cpu_s, other.probe_cpu_s),
            max(self.reported_stall_cpu_s, other.reported_stall_cpu_s),
            max(self.rss_bytes, other.rss_bytes),
            max(self.redis_bytes, other.redis_bytes),
            max(self.redis_commands_per_s, other.redis_commands_per_s),
        )

    def __str__(self) -> str:
        return (
            f"longest stall {self.reported_stall_cpu_s * 1000:.0f} ms of CPU time, "
            f"{self.probe_cpu_s * 1000:.0f} ms between two responses to a probe, "
            f"RSS {self.rss_bytes >> 20} MiB, Redis {self.redis_bytes >> 20} MiB, "
            f"{self.redis_commands_per_s:.0f} commands/s"
        )


class Monitor:
    """Samples a controller and its Redis. ``levels`` contains the highest values since ``reset``.

    Stalls are reported by the server, in CPU time, which does not depend on other programs. The CPU time of
    the whole process between two responses to ``/livez`` is measured from outside. It includes other
    requests that take their turns in between.
    """

    def __init__(self, site: AttackedSite) -> None:
        self._controller = site.controller
        self._queue = site.queue
        self._key = site.key
        self._process = psutil.Process(site.controller.pid)
        self.levels = Levels()

    def reset(self) -> None:
        self.levels = Levels()

    @property
    def rss_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    async def watch_event_loop(self) -> None:
        before_s = self._cpu_s()
        while True:
            await self._request("/livez")
            now_s = self._cpu_s()
            self.levels.probe_cpu_s = max(self.levels.probe_cpu_s, now_s - before_s)
            self.levels.rss_bytes = max(self.levels.rss_bytes, self.rss_bytes)
            before_s = now_s
            await asyncio.sleep(_PROBE_INTERVAL_S)

    async def watch_reported_stalls(self) -> None:
        while True:
            found = _REPORTED_STALL.search(await self._request("/metrics"))
            assert found, "the server reports no stalls"
            self.levels.reported_stall_cpu_s = max(self.levels.reported_stall_cpu_s, float(found[1]))
            await asyncio.sleep(_REPORT_INTERVAL_S)

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

    async def _request(self, path: str) -> bytes:
        url = urlsplit(self._controller.url)
        assert url.hostname and url.port
        headers = f"Host: localhost\r\nAuthorization: Bearer {self._key}\r\nConnection: close"
        request = f"GET {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode()
        while True:
            assert self._controller.status is None, f"{_KILLED} with status {self._controller.status}"
            with contextlib.suppress(OSError):  # retried, because the connection can be replaced by another
                reader, writer = await asyncio.open_connection(url.hostname, url.port)
                try:
                    writer.write(request)
                    response = await reader.read(-1)
                finally:
                    writer.transport.abort()
                if response.startswith(b"HTTP/1.1 200 "):
                    return response


@asynccontextmanager
async def monitor(site: AttackedSite) -> AsyncIterator[Monitor]:
    """Yield a monitor that is sampling."""
    monitor = Monitor(site)
    watches = (monitor.watch_event_loop, monitor.watch_reported_stalls, monitor.watch_redis)
    async with running(watch() for watch in watches):
        await async_wait_until(lambda: monitor.levels.redis_bytes and monitor.levels.rss_bytes)
        yield monitor
