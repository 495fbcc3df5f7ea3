"""API keys and their limits, shared by all controllers. Only hashes of the keys are stored.

A key contains 256 random bits, so it cannot be recovered from its unsalted SHA-256 hash. The key itself is
shown only once, when it is created. Each controller caches all keys and polls a version string to detect
changes.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from llava_wire.redis.connection import Arg, Link, retry_briefly
from llava_wire.redis.link_owner import LinkOwner

__all__ = ["ApiKey", "ApiKeyStore", "KeyLimits"]


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The limits of one key. None means that the key has no limit of its own.

    ``max_jobs`` limits the number of waiting and running jobs. For each controller, ``max_open_requests``
    limits the number of concurrent requests, and ``max_inflight_body_mb`` the size of their bodies in MiB.
    Among keys with jobs waiting for the same model, a key with ``weight`` 2 is served twice as many tokens as
    a key with ``weight`` 1. ``priority`` is the highest priority of the key's jobs, and the priority of
    requests that do not select one.
    """

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    max_jobs: int | None = None
    max_open_requests: int | None = None
    max_inflight_body_mb: int | None = None
    priority: int = 0
    weight: float = 1.0


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key. ``digest`` is its SHA-256 hash in hex, and ``created_at`` is in Unix seconds."""

    digest: str
    name: str
    created_at: float
    limits: KeyLimits = KeyLimits()


class ApiKeyStore(LinkOwner):
    """The API keys in Redis. All methods raise QueueUnavailable if Redis is unavailable."""

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
        super().__init__(Link(url, timeout_s=timeout_s, max_connections=2))

    async def add(self, key: ApiKey) -> None:
        """Add the key, or replace the name and limits of an existing key."""
        await self._call("add_api_key", key.digest, msgspec.msgpack.encode(key), _new_version())

    async def remove(self, digest: str) -> bool:
        """Remove the key and return whether it existed. Controllers start rejecting it within seconds."""
        return bool(await self._call("remove_api_key", digest, _new_version()))

    async def read(self, version: str = "") -> tuple[str, list[ApiKey]] | None:
        """Return the current version and all keys, oldest first. Return None if ``version`` is current."""
        reply = await self._call("read_api_keys", version)
        if reply is None:
            return None
        keys = [msgspec.msgpack.decode(key, type=ApiKey) for key in reply[1:]]
        return reply[0].decode(), sorted(keys, key=lambda key: key.created_at)

    async def _call(self, script: str, *args: Arg) -> Any:
        return await retry_briefly(lambda: self._link.script(script, *args))


def _new_version() -> str:
    return secrets.token_hex(8)
