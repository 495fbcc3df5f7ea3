"""Hosts that serve pictures, real servers on loopback, and a network that takes public numbers there.

The fetcher refuses loopback, so the tests give names public addresses and let the dialled number lead to the
local server: what is counted is what was dialled.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpcore2
from llava_server.images.errors import ImageError
from llava_server.images.fetch import FetchRules, ImageFetcher

TLS = Path(__file__).parents[1] / "data" / "tls"
PUBLIC = "93.184.216.34"
NAME = "pictures.example"

Route = bytes | list[bytes]  # an answer, or its pieces with a pause between


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode() + body


def found(body: bytes) -> bytes:
    return answer(200, body, content_length=str(len(body)))


def moved(location: str) -> bytes:
    return answer(302, location=location, content_length="0")


class PictureHost:
    """A server on loopback that answers by path; ``requests`` holds the heads it was sent."""

    def __init__(self, routes: dict[str, Route], *, is_tls: bool = True) -> None:
        self.requests: list[str] = []
        self.server_names: list[str | None] = []
        self.num_sent_bytes = 0
        self._routes = routes
        self._is_tls = is_tls
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> PictureHost:
        context = None
        if self._is_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
            context.sni_callback = lambda _socket, name, _context: self.server_names.append(name)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            route = self._routes.get(head.split(" ")[1], answer(404, content_length="0"))
            for piece in [route] if isinstance(route, bytes) else route:
                writer.write(piece)
                await writer.drain()
                self.num_sent_bytes += len(piece)
                await asyncio.sleep(0)
            if not isinstance(route, bytes):
                await reader.read()  # until the client gives up
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()


class Network(httpcore2.AsyncNetworkBackend):
    """Public addresses lead to ``host``; ``dialled`` are all that were asked for, allowed or not."""

    def __init__(self, host: PictureHost) -> None:
        self.dialled: list[tuple[str, int]] = []
        self._host = host
        self._real = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        self.dialled.append((host, port))
        return await self._real.connect_tcp("127.0.0.1", self._host.port, timeout)


class Names:
    """A resolver; each look-up of a name takes the next of its answers, and the last for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.num_lookups = 0
        self._answers = answers

    async def __call__(self, host: str, port: int) -> list[str]:
        self.num_lookups += 1
        answers = self._answers.get(host.replace(".", "_"), [[PUBLIC]])
        return answers.pop(0) if len(answers) > 1 else answers[0]


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(TLS / "certificate.pem"))


class Fetched:
    """What one fetch came to."""

    def __init__(self, result: bytes | str, host: PictureHost, network: Network, names: Names) -> None:
        self.result = result  # the file, or the refusal's sentence
        self.host = host
        self.dialled = [address for address, _ in network.dialled]
        self.ports = [port for _, port in network.dialled]
        self.names = names


async def fetch(
    url: str,
    routes: dict[str, Route] | None = None,
    *,
    names: Names | None = None,
    is_tls: bool = True,
    tls: ssl.SSLContext | None = None,
    **rules: Any,
) -> Fetched:
    names = names or Names()
    rules = {"hosts": frozenset({NAME, "cdn.pictures.example", "*.wild.example"}), **rules}
    async with PictureHost(routes or {}, is_tls=is_tls) as host:
        network = Network(host)
        fetcher = ImageFetcher(FetchRules(**rules), resolver=names, network=network, tls=tls or trusting())
        try:
            result: bytes | str = await fetcher.fetch(url)
        except ImageError as refused:
            result = refused.message
        return Fetched(result, host, network, names)
