"""Where the server is and how to say who we are: from arguments, then the environment, then the default."""

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
    """A server's address without a trailing slash or ``/v1``, and the key, which no repr shows."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def resolve(cls, base_url: str | None = None, api_key: str | None = None) -> Connection:
        """Fill what is None from ``LLAVA_BASE_URL`` and ``LLAVA_API_KEY``. Raises ConfigurationError."""
        url = base_url or os.environ.get("LLAVA_BASE_URL") or DEFAULT_BASE_URL
        return cls(_validate_url(url), api_key or os.environ.get("LLAVA_API_KEY") or None)

    def url(self, path: str) -> str:
        """The full address of ``path``, which begins with a slash."""
        return self.base_url + path

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine: then no proxy of the environment lies between."""
        return is_loopback(urlsplit(self.base_url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether ``host`` names this machine and is reachable from nowhere else."""
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
    except ValueError:  # a port that is none
        is_valid = False
    if not is_valid:
        raise ConfigurationError(
            f"base URL {url!r} is not an http:// or https:// address: use one like {DEFAULT_BASE_URL}"
        )
    return url.rstrip("/").removesuffix("/v1")
