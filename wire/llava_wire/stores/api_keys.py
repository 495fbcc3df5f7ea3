"""API keys that all controllers share, as hashes, and what the holder of each may ask for.

A key is 256 random bits, so that its plain SHA-256 gives nothing away; the key itself is shown once, by
whoever makes it, and is nowhere in Redis. Controllers keep a copy of the ring and ask for changes by version.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from llava_wire.redis.connection import Arg, Link, try_briefly

__all__ = ["ApiKey", "KeyLimits", "ApiKeyStore"]


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one key may do; None is no limit of its own.

    ``max_jobs`` counts jobs that wait or run. Between keys that wait for the same model, one of ``weight`` 2
    gets twice the tokens of one of 1. ``priority`` is added to that of each job.
    """

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    max_jobs: int | None = None
    priority: int = 0
    weight: float = 1.0


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key. ``digest`` is its SHA-256 in hex, ``name`` is for people, ``created_at`` Unix seconds."""

    digest: str
    name: str
    created_at: float
    limits: KeyLimits = KeyLimits()


class ApiKeyStore:
    """The keys in Redis. Every call raises QueueUnavailable if Redis does not answer."""

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
        self._link = Link(url, timeout_s=timeout_s, max_connections=2)

    async def add(self, key: ApiKey) -> None:
        """Add the key, or give a known one another name and other limits."""
        await self._call("key_add", key.digest, msgspec.msgpack.encode(key), _new_version())

    async def remove(self, digest: str) -> bool:
        """Take the key away; whether it was there. Controllers refuse it within seconds."""
        return bool(await self._call("key_remove", digest, _new_version()))

    async def read(self, version: str = "") -> tuple[str, list[ApiKey]] | None:
        """The ring's version and every key, oldest first; None if it still has ``version``."""
        answer = await self._call("key_read", version)
        if answer is None:
            return None
        keys = [msgspec.msgpack.decode(key, type=ApiKey) for key in answer[1:]]
        return answer[0].decode(), sorted(keys, key=lambda key: key.created_at)

    async def aclose(self) -> None:
        await self._link.aclose()

    async def _call(self, script: str, *args: Arg) -> Any:
        return await try_briefly(lambda: self._link.script(script, *args))


def _new_version() -> str:
    return secrets.token_hex(8)
