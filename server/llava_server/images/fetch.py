"""Fetch a picture by URL, from listed hosts only: resolve once, check every address, dial the number.

Off unless a host is listed. Redirects are followed by hand, each hop through the same checks. What a listed
host answers is untrusted bytes like any upload; its name is not trusted to stay where it was looked up.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import httpcore2

from llava_server.images.errors import PictureRefused
from llava_server.images.host_rules import PictureUrl, is_public, parse_picture_url, redirected

__all__ = ["FetchRules", "PictureFetcher", "Resolve", "is_remote", "resolve"]

Resolve = Callable[[str, int], Awaitable[list[str]]]

_MAX_REDIRECTS = 3
_MAX_FETCHES = 32  # at once, of everybody; the rest wait
_CONNECT_S = 5.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class FetchRules:
    """What may be fetched. ``hosts``: ``name``, ``*.name``, either with ``:port``."""

    hosts: frozenset[str] = frozenset()
    allow_http: bool = False
    timeout_s: float = 10.0  # for all hops of one picture together
    max_bytes: int = 20 * 2**20


async def resolve(host: str, port: int) -> list[str]:
    """Every address of the name, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_remote(url: str) -> bool:
    """Whether the picture lies elsewhere."""
    return url[:8].lower().startswith(("http://", "https://"))


class PictureFetcher:
    """One for the process. ``look_up`` and ``network`` are how it reaches the world."""

    def __init__(
        self,
        rules: FetchRules,
        *,
        look_up: Resolve = resolve,
        network: httpcore2.AsyncNetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules
        self._look_up = look_up
        self._network = network or httpcore2.AnyIOBackend()
        self._tls = tls or ssl.create_default_context()
        self._free = asyncio.Semaphore(_MAX_FETCHES)

    async def fetch(self, url: str) -> bytes:
        """The file behind the URL. Raises PictureRefused; the sentence tells nothing of inner networks."""
        if not self._rules.hosts:
            raise PictureRefused(
                "invalid_image_url",
                "remote pictures are off by default: this server fetches nothing; "
                "send the picture itself as data:image/png;base64,...",
            )
        target = parse_picture_url(url, allow_http=self._rules.allow_http)
        try:
            return await asyncio.wait_for(self._follow(target), self._rules.timeout_s)
        except asyncio.TimeoutError as error:
            raise PictureRefused(
                "invalid_image_url", f"the picture did not arrive within {self._rules.timeout_s:g} s"
            ) from error
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.TimeoutException,
            OSError,
        ) as error:
            raise PictureRefused(
                "invalid_image_url", "the picture's host cannot be reached or broke off"
            ) from error

    async def _follow(self, url: PictureUrl) -> bytes:
        async with self._free:
            for _ in range(1 + _MAX_REDIRECTS):
                answer = await self._get(url)
                if isinstance(answer, bytes):
                    return answer
                url = answer
        raise PictureRefused(
            "invalid_image_url", f"the picture's host redirects more than {_MAX_REDIRECTS} times"
        )

    async def _get(self, url: PictureUrl) -> bytes | PictureUrl:
        """The file, or where a redirect leads."""
        network = _Pinned(self._network, await self._addresses(url))
        headers = [("host", url.authority), ("accept", "image/*"), ("accept-encoding", "identity")]
        target = httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        async with (
            httpcore2.AsyncConnectionPool(ssl_context=self._tls, network_backend=network) as pool,
            pool.stream(
                "GET", target, headers=headers, extensions={"timeout": {"connect": _CONNECT_S}}
            ) as response,
        ):
            answer = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                location = answer.get(b"location", b"").decode("latin-1")
                return redirected(url, location, allow_http=self._rules.allow_http)
            if response.status != 200:
                raise PictureRefused(
                    "invalid_image_url", f"the picture's host answered with status {response.status}"
                )
            return await self._read(response, answer.get(b"content-length", b""))

    async def _read(self, response: httpcore2.Response, announced: bytes) -> bytes:
        self._check_size(int(announced) if announced.isdigit() else 0)
        parts, num_bytes = [], 0
        async for part in response.aiter_stream():
            num_bytes += len(part)
            self._check_size(num_bytes)
            parts.append(part)
        return b"".join(parts)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._rules.max_bytes:
            raise PictureRefused(
                "image_too_large", f"the picture has more than {self._rules.max_bytes} bytes, the limit"
            )

    async def _addresses(self, url: PictureUrl) -> list[str]:
        """All of the host's addresses, if all are public. A mixed answer is an attack, not a choice."""
        if not url.is_among(self._rules.hosts):
            raise PictureRefused(
                "invalid_image_url",
                f"this server fetches no pictures from {url.authority}; send it as data:image/png;base64,...",
            )
        addresses = await self._look_up(url.host, url.port)
        if not addresses or not all(is_public(address) for address in addresses):
            raise PictureRefused("invalid_image_url", "the picture's host cannot be reached or broke off")
        return addresses


class _Pinned(httpcore2.AsyncNetworkBackend):
    """Dials the checked addresses whatever host is asked for; TLS and Host still speak of the name."""

    def __init__(self, network: httpcore2.AsyncNetworkBackend, addresses: list[str]) -> None:
        self._network = network
        self._addresses = addresses

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 (never looked up again)
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
