"""Image hosts on loopback, and a network backend that connects to them instead of public addresses.

The fetcher rejects loopback addresses, so the tests resolve names to public addresses. ``Network`` records
the addresses to which the fetcher connects.
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

from tests.server.image_slots import fair_slots

TLS = Path(__file__).parents[1] / "data" / "tls"
PUBLIC_ADDRESS = "93.184.216.34"
HOST = "pictures.example"

Route = bytes | list[bytes]  # a complete response, or the parts of a response that never ends


def http_response(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode() + body


def ok_response(body: bytes) -> bytes:
    return http_response(200, body, content_length=str(len(body)))


def redirect(location: str) -> bytes:
    return http_response(302, location=location, content_length="0")


class ImageHost:
    """A server on loopback with one response per path.

    ``requests`` contains the headers of received requests.
    """

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

    async def __aenter__(self) -> ImageHost:
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
            route = self._routes.get(head.split(" ")[1], http_response(404, content_length="0"))
            for piece in [route] if isinstance(route, bytes) else route:
                writer.write(piece)
                await writer.drain()
                self.num_sent_bytes += len(piece)
                await asyncio.sleep(0)
            if not isinstance(route, bytes):
                await reader.read()  # wait until the client disconnects
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()


class Network(httpcore2.AsyncNetworkBackend):
    """A network backend that redirects all connections to ``host`` and records the original addresses."""

    def __init__(self, host: ImageHost) -> None:
        self.addresses: list[tuple[str, int]] = []
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
        self.addresses.append((host, port))
        return await self._real.connect_tcp("127.0.0.1", self._host.port, timeout)


class Resolver:
    """A resolver with a list of results for each name.

    Each lookup returns the next result. The last result is repeated for any further lookups.
    """

    def __init__(self, **results: list[list[str]]) -> None:
        self.num_lookups = 0
        self._results = results

    async def __call__(self, host: str, port: int) -> list[str]:
        self.num_lookups += 1
        results = self._results.get(host.replace(".", "_"), [[PUBLIC_ADDRESS]])
        return results.pop(0) if len(results) > 1 else results[0]


def trusting_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(TLS / "certificate.pem"))


class FetchOutcome:
    """The result of a fetch, and the hosts that the fetcher contacted."""

    def __init__(self, result: bytes | str, host: ImageHost, network: Network, resolver: Resolver) -> None:
        self.result = result  # the file, or the error message
        self.host = host
        self.addresses = [address for address, _ in network.addresses]
        self.ports = [port for _, port in network.addresses]
        self.resolver = resolver


async def fetch(
    url: str,
    routes: dict[str, Route] | None = None,
    *,
    resolver: Resolver | None = None,
    is_tls: bool = True,
    tls: ssl.SSLContext | None = None,
    **rules: Any,
) -> FetchOutcome:
    resolver = resolver or Resolver()
    rules = {"hosts": frozenset({HOST, "cdn.pictures.example", "*.wild.example"}), **rules}
    async with ImageHost(routes or {}, is_tls=is_tls) as host:
        network = Network(host)
        fetcher = ImageFetcher(
            FetchRules(**rules),
            fair_slots(32),
            resolver=resolver,
            network=network,
            tls=tls or trusting_context(),
        )
        try:
            result: bytes | str = await fetcher.fetch(url, tenant="a")
        except ImageError as error:
            result = error.message
        return FetchOutcome(result, host, network, resolver)
