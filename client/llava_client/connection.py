"""The server's URL and the API key, read from arguments, environment variables or defaults."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from llava_client.errors import ConfigurationError

__all__ = ["DEFAULT_BASE_URL", "Connection", "is_loopback"]

DEFAULT_BASE_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Connection:
    """The server's URL, without a trailing slash or ``/v1``, and the API key, which the repr omits."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def resolve(cls, base_url: str | None = None, api_key: str | None = None) -> Connection:
        """Create a connection. Missing values are read from ``LLAVA_BASE_URL`` and ``LLAVA_API_KEY``.

        Raises ConfigurationError if the URL is invalid.
        """
        url = base_url or os.environ.get("LLAVA_BASE_URL") or DEFAULT_BASE_URL
        return cls(_validate_url(url), api_key or os.environ.get("LLAVA_API_KEY") or None)

    def url(self, path: str) -> str:
        """Return the full URL of ``path``, which begins with a slash."""
        return self.base_url + path

    @property
    def headers(self) -> dict[str, str]:
        """The headers sent with every request."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine. If so, proxy environment variables are ignored."""
        return is_loopback(urlsplit(self.base_url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether ``host`` is localhost or a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _validate_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is invalid
        is_valid = False
    if not is_valid:
        raise ConfigurationError(
            f"Invalid base URL {url!r}. Use an http:// or https:// URL, such as {DEFAULT_BASE_URL}."
        )
    return url.rstrip("/").removesuffix("/v1")
