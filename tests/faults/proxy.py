"""A TCP proxy to the queue that simulates network faults: disconnects, stalls and delays.

The proxy runs in a separate thread with its own event loop, so that a busy test does not slow it down.
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
    """A proxy from 127.0.0.1:``port`` to a Unix socket. Faults persist until ``heal`` is called."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self._links: set[asyncio.Task[None]] = set()
        self._delay_s = 0.0
        self._is_disconnected = False
        self._may_forward: asyncio.Event
        self._server: asyncio.Server
        self.port = self._run(self._open)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def disconnect(self) -> None:
        """Close all connections. Until ``heal`` is called, close each new connection immediately."""
        self._run(self._disconnect)

    def redirect(self, target: Path) -> None:
        """Close all connections, and forward new connections to another server."""
        self._target = target
        self.disconnect()
        self.heal()

    def stall(self) -> None:
        """Keep connections open, but do not forward any data until ``heal`` is called."""
        self._loop.call_soon_threadsafe(self._may_forward.clear)

    def delay(self, seconds: float) -> None:
        """Delay each round trip by ``seconds``."""
        self._delay_s = seconds / 2

    def heal(self) -> None:
        self._is_disconnected, self._delay_s = False, 0.0
        self._loop.call_soon_threadsafe(self._may_forward.set)

    def close(self) -> None:
        self._run(self._disconnect)
        self._run(self._stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(scaled(10))
        self._loop.close()

    def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def working() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(working(), self._loop).result(scaled(10))

    async def _open(self) -> int:
        self._may_forward = asyncio.Event()
        self._may_forward.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        assert isinstance(port, int)
        return port

    async def _stop(self) -> None:
        """Stop after all connections have closed, so that no later test shows warnings about them."""
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        self._server.close()  # last, because asyncio would otherwise leak a connection that is being accepted
        await asyncio.sleep(0)  # aborted connections close their sockets in the next iteration of the loop

    async def _disconnect(self) -> None:
        self._is_disconnected = True
        for link in self._links:
            link.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._links.add(task)
        try:
            if not self._is_disconnected:
                await self._link(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one side has closed the connection, or disconnect() was called
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
            far_writer.transport.abort()  # before the awaits below, which may be cancelled
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await self._may_forward.wait()
            writer.write(data)
            await writer.drain()
