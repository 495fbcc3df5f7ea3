"""Where a picture may be fetched from: URLs read once and strictly, and addresses that are truly public.

A URL that two parsers could read differently is refused, not repaired. Nobody dials the string: what is
dialled is the number that a ``PictureUrl``'s host was found to have, once.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import urljoin

from llava_server.images.errors import PictureRefused

__all__ = ["HOST_RULE", "PictureUrl", "is_public", "parse_picture_url", "redirected"]

_MAX_URL_CHARS = 2048
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = (
    rf"{_LABEL}(?:\.{_LABEL})*\.(?=[a-z0-9-]*[a-z])(?!0x){_LABEL}"  # a last label of digits is an IPv4 form
)
# An entry of the list: a name, or *.name for everything below it, with a port if it is not the scheme's own.
HOST_RULE = re.compile(rf"(?:\*\.)?{_NAME}(?::[1-9][0-9]{{0,4}})?")
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_NAME})(?::(?P<port>[1-9][0-9]{{0,4}}))?"
    r"(?P<target>(?:[/?][!$-\[\]_a-z~]*)?)(?:#[!-~]*)?",
    re.IGNORECASE | re.ASCII,  # without ASCII, the Kelvin sign is a k
)
_PORTS = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_TRANSLATED = tuple(
    ipaddress.IPv6Network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")
)  # NAT64, local NAT64, IPv4-compatible, IPv4-translated: the last 32 bits are an IPv4 address
# Public by the registry, yet never a picture's: protocol assignments (Oracle's metadata), Azure's host agent.
_DENIED = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("168.63.129.16/32"))


class PictureUrl(NamedTuple):
    """A URL in its parts; ``host`` is a lower-case DNS name, never an address."""

    scheme: str
    host: str
    port: int
    target: str  # path and query

    @property
    def authority(self) -> str:
        """The Host header, and what a rule with a port is compared with."""
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"

    def is_among(self, rules: frozenset[str]) -> bool:
        """Whether a rule names this host and port."""
        host, _, port = self.authority.partition(":")
        suffix = f":{port}" if port else ""
        parents = [host.split(".", n)[n] for n in range(1, host.count(".") + 1)]
        return self.authority in rules or any(f"*.{parent}{suffix}" in rules for parent in parents)


def parse_picture_url(url: str, *, allow_http: bool) -> PictureUrl:
    """Raises PictureRefused; the sentence repeats nothing of the URL."""
    match = _URL.fullmatch(url) if len(url) <= _MAX_URL_CHARS else None
    port = int(match["port"] or _PORTS[match["scheme"].lower()]) if match else 0
    if match is None or port > 65535:
        raise PictureRefused(
            "invalid_image_url",
            f"not a plain https:// URL of at most {_MAX_URL_CHARS} ASCII characters with a host's name, "
            "without user, password, backslash or spaces (percent-encode what is special)",
        )
    scheme = match["scheme"].lower()
    if scheme == "http" and not allow_http:
        raise PictureRefused("invalid_image_url", "pictures are fetched by https:// only")
    target = match["target"]
    return PictureUrl(scheme, match["host"].lower(), port, target if target.startswith("/") else f"/{target}")


def redirected(url: PictureUrl, location: str, *, allow_http: bool) -> PictureUrl:
    """Where a redirect leads; never from https to http. Raises PictureRefused."""
    try:
        joined = urljoin(f"{url.scheme}://{url.authority}{url.target}", location)
    except ValueError:  # brackets that are no IPv6 address
        joined = ""
    following = parse_picture_url(joined, allow_http=allow_http)
    if url.scheme == "https" and following.scheme == "http":
        raise PictureRefused("invalid_image_url", "the picture's host redirects from https to http")
    return following


def is_public(text: str) -> bool:
    """Whether an address is on the internet for everyone, whatever IPv4 address is wrapped in it too."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:  # whatever the resolver meant, it is not dialled
        return False
    return all(_is_global(each) for each in (address, *_wrapped(address)))


def _is_global(address: Address) -> bool:
    is_denied = address.version == 4 and any(address in network for network in _DENIED)
    is_site_local = address.version == 6 and address.is_site_local
    is_special = address.is_multicast or address.is_reserved or is_site_local or is_denied
    return address.is_global and not is_special


def _wrapped(address: Address) -> list[Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _TRANSLATED):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]
