"""Fetch images by URL from allowed hosts.

Resolve the name once, check all its addresses and connect to one of them. Fetching is disabled unless at
least one host is allowed. The same checks apply to redirects. A name is never resolved a second time, because
the second lookup could return an internal address. Responses from allowed hosts are treated as untrusted,
like uploads.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import httpcore2

from llava_server.fair_slots import FairSlots
from llava_server.images.errors import ImageError
from llava_server.images.host_rules import ImageUrl, parse_image_url, redirect_target
from llava_server.images.public_addresses import is_public

__all__ = ["FetchRules", "ImageFetcher", "Resolver", "is_remote", "resolve"]

Resolver = Callable[[str, int], Awaitable[list[str]]]

_MAX_REDIRECTS = 3
_CONNECT_S = 5.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class FetchRules:
    """The rules for fetching images.

    Each entry in ``hosts`` is ``name`` or ``*.name`` with an optional ``:port``.
    """

    hosts: frozenset[str] = frozenset()
    allow_http: bool = False
    timeout_s: float = 10.0  # for one image, including redirects
    max_bytes: int = 20 * 2**20


async def resolve(host: str, port: int) -> list[str]:
    """Return all addresses that the system resolver finds for a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_remote(url: str) -> bool:
    """Return whether the URL has the scheme http or https."""
    return url[:8].lower().startswith(("http://", "https://"))


class ImageFetcher:
    """The image fetcher of this process. A fetch holds one of the slots.

    Tests pass their own resolver and network.
    """

    def __init__(
        self,
        rules: FetchRules,
        slots: FairSlots,
        *,
        resolver: Resolver = resolve,
        network: httpcore2.AsyncNetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules
        self._resolver = resolver
        self._network = network or httpcore2.AnyIOBackend()
        self._tls = tls or ssl.create_default_context()
        self._slots = slots

    async def fetch(self, url: str, *, tenant: str) -> bytes:
        """Return the image file. ``tenant`` is the API key.

        Raises ImageError with a message that reveals nothing about internal networks, or ApiError (429, 503)
        if the tenant has too many waiting fetches or the wait takes too long.
        """
        if not self._rules.hosts:
            raise ImageError(
                "invalid_image_url",
                "this server does not fetch remote images. Send the image as data:image/png;base64,...",
            )
        rules = self._rules
        image_url = parse_image_url(url, allow_http=rules.allow_http)
        try:
            async with self._slots.hold(tenant):
                return await asyncio.wait_for(self._follow_redirects(image_url), rules.timeout_s)
        except asyncio.TimeoutError as error:
            raise ImageError(
                "invalid_image_url",
                f"the image could not be fetched within {rules.timeout_s:g} seconds. "
                "Retry, or send the image as data:image/png;base64,...",
            ) from error
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.TimeoutException,
            OSError,
        ) as error:
            raise ImageError(
                "invalid_image_url", "the image host is unreachable or closed the connection. Check the URL."
            ) from error

    async def _follow_redirects(self, url: ImageUrl) -> bytes:
        for _ in range(1 + _MAX_REDIRECTS):
            result = await self._get(url)
            if isinstance(result, bytes):
                return result
            url = result
        raise ImageError(
            "invalid_image_url",
            f"the image host redirected more than {_MAX_REDIRECTS} times. Use the final URL.",
        )

    async def _get(self, url: ImageUrl) -> bytes | ImageUrl:
        """Return the image file, or the target of a redirect."""
        network = _PinnedNetwork(self._network, await self._public_addresses(url))
        headers = [("host", url.authority), ("accept", "image/*"), ("accept-encoding", "identity")]
        target = httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        async with (
            httpcore2.AsyncConnectionPool(ssl_context=self._tls, network_backend=network) as pool,
            pool.stream(
                "GET", target, headers=headers, extensions={"timeout": {"connect": _CONNECT_S}}
            ) as response,
        ):
            received = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                location = received.get(b"location", b"").decode("latin-1")
                return redirect_target(url, location, allow_http=self._rules.allow_http)
            if response.status != 200:
                raise ImageError(
                    "invalid_image_url",
                    f"the image host responded with status {response.status}. Check the URL.",
                )
            return await self._read(response, received.get(b"content-length", b""))

    async def _read(self, response: httpcore2.Response, content_length: bytes) -> bytes:
        self._check_size(int(content_length) if content_length.isdigit() else 0)
        parts, num_bytes = [], 0
        async for part in response.aiter_stream():
            num_bytes += len(part)
            self._check_size(num_bytes)
            parts.append(part)
        return b"".join(parts)

    def _check_size(self, num_bytes: int) -> None:
        rules = self._rules
        if num_bytes > rules.max_bytes:
            raise ImageError(
                "image_too_large",
                f"the image exceeds the limit of {rules.max_bytes} bytes. Use a smaller file.",
            )

    async def _public_addresses(self, url: ImageUrl) -> list[str]:
        """Return all addresses of the host. Raises ImageError if any of them is not public."""
        if not url.is_among(self._rules.hosts):
            raise ImageError(
                "invalid_image_url",
                f"this server does not fetch images from {url.authority}. "
                "Send the image as data:image/png;base64,...",
            )
        addresses = await self._resolver(url.host, url.port)
        if not addresses or not all(is_public(address) for address in addresses):
            raise ImageError(
                "invalid_image_url", "the image host is unreachable or closed the connection. Check the URL."
            )
        return addresses


class _PinnedNetwork(httpcore2.AsyncNetworkBackend):
    """A network backend that connects only to checked addresses.

    TLS and the Host header use the host name.
    """

    def __init__(self, network: httpcore2.AsyncNetworkBackend, addresses: list[str]) -> None:
        self._network = network
        self._addresses = addresses

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 (not resolved again)
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        *others, last = self._addresses
        for address in others:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):  # noqa: PERF203
                continue
        return await self._network.connect_tcp(last, port, timeout, local_address, socket_options)
