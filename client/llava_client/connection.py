"""The server's URL and the API key, read from arguments, environment variables or defaults."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx2

from llava_client.errors import ConfigurationError
from llava_client.loopback import is_loopback

__all__ = ["DEFAULT_BASE_URL", "Connection"]

_KEY = re.compile("[!-~]+")
DEFAULT_BASE_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Connection:
    """The server's URL, without a trailing slash or ``/v1``, and the API key, which the repr omits."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def resolve(cls, base_url: str | None = None, api_key: str | None = None) -> Connection:
        """Create a connection. Missing values are read from ``LLAVA_BASE_URL`` and ``LLAVA_API_KEY``.

        Raises ConfigurationError if the URL or the key is invalid.
        """
        url = base_url or os.environ.get("LLAVA_BASE_URL") or DEFAULT_BASE_URL
        return cls(_validate_url(url), _validate_key(api_key or os.environ.get("LLAVA_API_KEY")))

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


def _validate_key(key: str | None) -> str | None:
    if not key:
        return None
    if not _KEY.fullmatch(key):
        raise ConfigurationError("The API key contains a space or a character that is not printable ASCII.")
    return key


def _validate_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):  # an invalid port or host, or a lone surrogate
        is_valid = False
    if not is_valid:
        raise ConfigurationError(
            f"Invalid base URL {url!r}. Use an http:// or https:// URL, such as {DEFAULT_BASE_URL}."
        )
    return url.rstrip("/").removesuffix("/v1")
