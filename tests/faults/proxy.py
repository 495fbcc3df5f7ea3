"""A TCP path to the queue that can be cut, swallowed or slowed: the network between processes, for tests.

It runs in a thread with an event loop of its own, so that a busy test does not slow it down.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from tests.machine_speed import scaled

T = TypeVar("T")
_CHUNK = 65536


class FaultProxy:
    """Forwards 127.0.0.1:``port`` to a unix socket. Faults hold until ``heal``."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self._links: set[asyncio.Task[None]] = set()
        self._delay_s = 0.0
        self._is_cut = False
        self._passes: asyncio.Event
        self._server: asyncio.Server
        self.port = self._run(self._open)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        """Every connection breaks, and new ones too."""
        self._run(self._cut)

    def lead_to(self, target: Path) -> None:
        """Another server from now on; connections to the former one break."""
        self._target = target
        self.cut()
        self.heal()

    def swallow(self) -> None:
        """A black hole: connections stand, nothing comes through. What was sent arrives after ``heal``."""
        self._loop.call_soon_threadsafe(self._passes.clear)

    def delay(self, seconds: float) -> None:
        """Each piece that passes takes so much longer, in both directions together."""
        self._delay_s = seconds / 2

    def heal(self) -> None:
        self._is_cut, self._delay_s = False, 0.0
        self._loop.call_soon_threadsafe(self._passes.set)

    def close(self) -> None:
        self._run(self._cut)
        self._run(self._stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(scaled(10))
        self._loop.close()

    def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def working() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(working(), self._loop).result(scaled(10))

    async def _open(self) -> int:
        self._passes = asyncio.Event()
        self._passes.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        assert isinstance(port, int)
        return port

    async def _stop(self) -> None:
        """Ends when all that was accepted is closed: what a stopped loop holds warns in a later test."""
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        self._server.close()  # not sooner: asyncio loses what is just being accepted then
        await asyncio.sleep(0)  # aborted connections close their sockets in the loop's next round

    async def _cut(self) -> None:
        self._is_cut = True
        for link in self._links:
            link.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._links.add(task)
        try:
            if not self._is_cut:
                await self._link(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either side is gone, or we are: the other side must hear of it
        finally:
            self._links.discard(task)
            writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(str(self._target))
        pumps = [
            asyncio.ensure_future(self._pump(reader, far_writer)),
            asyncio.ensure_future(self._pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            far_writer.transport.abort()  # first: a cut may come while the pumps end
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await self._passes.wait()
            writer.write(data)
            await writer.drain()
