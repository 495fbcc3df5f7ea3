"""Rules for the URLs from which images may be fetched.

A URL that two parsers could interpret differently is rejected. Connections are made only to the addresses
that the host name resolved to, never to an address in the URL.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urljoin

from llava_server.images.errors import ImageError

__all__ = ["HOST_RULE", "ImageUrl", "parse_image_url", "redirect_target"]

_MAX_URL_CHARS = 2048
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = rf"{_LABEL}(?:\.{_LABEL})*\.(?=[a-z0-9-]*[a-z])(?!0x){_LABEL}"  # a numeric last label means IPv4
# An allowed host: a name, or *.name for its subdomains, with a port unless it is the scheme's default.
HOST_RULE = re.compile(rf"(?:\*\.)?{_NAME}(?::[1-9][0-9]{{0,4}})?")
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_NAME})(?::(?P<port>[1-9][0-9]{{0,4}}))?"
    r"(?P<target>(?:[/?][!$-\[\]_a-z~]*)?)(?:#[!-~]*)?",
    re.IGNORECASE | re.ASCII,  # without re.ASCII, the Kelvin sign would match k
)
_PORTS = {"http": 80, "https": 443}


class ImageUrl(NamedTuple):
    """A parsed image URL. ``host`` is a lower-case DNS name, never an IP address."""

    scheme: str
    host: str
    port: int
    target: str  # path and query

    @property
    def authority(self) -> str:
        """The value of the Host header, which is matched against the rules."""
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"

    def is_among(self, rules: frozenset[str]) -> bool:
        """Return whether a rule allows this host and port."""
        host, _, port = self.authority.partition(":")
        suffix = f":{port}" if port else ""
        parents = [host.split(".", n)[n] for n in range(1, host.count(".") + 1)]
        return self.authority in rules or any(f"*.{parent}{suffix}" in rules for parent in parents)


def parse_image_url(url: str, *, allow_http: bool) -> ImageUrl:
    """Parse an image URL. Raises ImageError with a message that contains no part of the URL."""
    match = _URL.fullmatch(url) if len(url) <= _MAX_URL_CHARS else None
    port = int(match["port"] or _PORTS[match["scheme"].lower()]) if match else 0
    if match is None or port > 65535:
        raise ImageError(
            "invalid_image_url",
            f"the URL is not supported. Use an https:// URL with a host name and at most {_MAX_URL_CHARS} "
            "ASCII characters, without a user name, password, backslashes or spaces. Percent-encode special "
            "characters.",
        )
    scheme = match["scheme"].lower()
    if scheme == "http" and not allow_http:
        raise ImageError("invalid_image_url", "http:// URLs are not allowed. Use an https:// URL.")
    target = match["target"]
    return ImageUrl(scheme, match["host"].lower(), port, target if target.startswith("/") else f"/{target}")


def redirect_target(url: ImageUrl, location: str, *, allow_http: bool) -> ImageUrl:
    """Return the target of a redirect. Raises ImageError if the redirect is from https to http."""
    try:
        joined = urljoin(f"{url.scheme}://{url.authority}{url.target}", location)
    except ValueError:  # brackets without a valid IPv6 address
        joined = ""
    target = parse_image_url(joined, allow_http=allow_http)
    if url.scheme == "https" and target.scheme == "http":
        raise ImageError(
            "invalid_image_url", "the image host redirected from https to http. Use the final https:// URL."
        )
    return target
