"""One hostile client: connections from its own address, with its own API key. Counts the responses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import anyio

from tests.security.raw_http import is_closed

__all__ = ["Attacker", "forever"]

_PAUSE_S = 0.5  # after each error, so that the attackers leave some CPU time to the server
_MAX_ABORT_S = 0.05
_SMALL_BUFFER_BYTES = 4096  # receive buffer of clients that do not read
_HOLD_INTERVAL_S = 1.0
_START_INTERVAL_S = 0.002


@dataclass
class Attacker:
    """A client of the server at ``url`` with an IPv4 address and an API key, which is empty if anonymous.

    ``counts`` contains the number of requests ("sent"), of responses by status, of connections that were held
    open ("held") and of those that the server closed ("released").
    """

    url: str
    address: str
    key: str
    counts: Counter[str] = field(default_factory=Counter)

    def request(
        self,
        path: str,
        body: bytes = b"",
        *,
        method: str = "POST",
        headers: tuple[str, ...] = (),
        length: int | None = None,
    ) -> bytes:
        """Return a request. It is incomplete if ``length`` is larger than the body."""
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            "Connection: close",
            f"Content-Length: {len(body) if length is None else length}",
            *([f"Authorization: Bearer {self.key}"] if self.key else []),
            *(headers or ("Content-Type: application/json",)),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def json_request(self, path: str, fields: dict[str, Any], *headers: str) -> bytes:
        headers = ("Content-Type: application/json", *headers)
        return self.request(path, json.dumps(fields).encode(), headers=headers)

    async def send(self, request: bytes) -> bytes:
        """Send a request and return the body of the response. Count the response by its status."""
        loop = asyncio.get_running_loop()
        with self._connection() as connection:
            await self._connect(connection)
            self.counts["sent"] += 1
            sending = asyncio.ensure_future(loop.sock_sendall(connection, request))
            response = b""
            try:
                while part := await loop.sock_recv(connection, 1 << 20):
                    response += part
            finally:
                sending.cancel()  # the server can respond before the end of the request
                await asyncio.gather(sending, return_exceptions=True)
                self.counts[response[9:12].decode() or "reset"] += 1
        if not response.startswith(b"HTTP/1.1 200 "):
            await asyncio.sleep(_PAUSE_S)
        return response.partition(b"\r\n\r\n")[2]

    async def abort(self, request: bytes) -> None:
        """Send a request, and close the connection after up to 50 ms without reading the response."""
        loop = asyncio.get_running_loop()
        with self._connection() as connection:
            await self._connect(connection)
            self.counts["sent"] += 1
            await loop.sock_sendall(connection, request)
            await asyncio.sleep(random.uniform(0, _MAX_ABORT_S))

    async def hold(self, request: bytes, *, more: bytes = b"") -> None:
        """Send a request and do not read the response. Send ``more`` once per second until it is closed."""
        loop = asyncio.get_running_loop()
        with self._connection() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
            await self._connect(connection)
            self.counts["held"] += 1
            try:
                await loop.sock_sendall(connection, request)
                while not is_closed(connection):
                    await asyncio.sleep(_HOLD_INTERVAL_S)
                    await loop.sock_sendall(connection, more)
            finally:
                self.counts["released"] += 1

    @contextlib.contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.bind((self.address, 0))
            yield connection

    async def _connect(self, connection: socket.socket) -> None:
        url = urlsplit(self.url)
        await asyncio.get_running_loop().sock_connect(connection, (url.hostname, url.port))


async def forever(step: Callable[[], Awaitable[object]], *, concurrency: int) -> None:
    """Repeat ``step`` in ``concurrency`` tasks, which are started one after another."""

    async def repeat() -> None:
        while True:
            is_complete = False
            with contextlib.suppress(OSError):  # the server has closed the connection
                await step()
                is_complete = True
            if not is_complete:
                await asyncio.sleep(_PAUSE_S)

    async with anyio.create_task_group() as tasks:
        for _ in range(concurrency):
            tasks.start_soon(repeat)
            await asyncio.sleep(_START_INTERVAL_S)
