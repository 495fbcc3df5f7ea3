"""Waits until a server is ready. It does not use httpx2, whose clients take 0.05 s of CPU time to create."""

from __future__ import annotations

import asyncio
import json
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

__all__ = ["read_readiness", "wait_until_ready"]

_POLL_S = 0.05
_TIMEOUT_S = 2.0


async def wait_until_ready(base_url: str) -> None:
    """Wait until the server reports that it is ready, which requires at least one ready worker."""
    while await read_readiness(base_url) is None:
        await asyncio.sleep(_POLL_S)


async def read_readiness(base_url: str) -> dict[str, Any] | None:
    """Return the body of /readyz, or None if the server is not ready."""
    return await asyncio.to_thread(_read, base_url)


def _read(base_url: str) -> dict[str, Any] | None:
    address = urlsplit(base_url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = json.loads(response.read()) if response.status == 200 else None
    except (OSError, HTTPException, ValueError):  # not listening yet, or another program
        return None
    finally:
        connection.close()
    return body if isinstance(body, dict) else None
