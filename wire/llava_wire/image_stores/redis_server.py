"""Images on a Redis server of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from llava_wire.errors import ImageStoreUnavailable, QueueUnavailable
from llava_wire.image_stores.interface import ImageStore
from llava_wire.redis.connection import Arg, Link, retry_briefly
from llava_wire.redis.keys import PREFIX, blob_key

__all__ = ["RedisImageStore"]


class RedisImageStore(ImageStore):
    """Stores each image in one key, which Redis removes when its TTL has passed.

    ``prefix`` is that of the queue shard, so that a Redis cluster distributes the images of the shards.
    """

    def __init__(self, url: str, *, prefix: str = PREFIX, timeout_s: float = 2.0) -> None:
        """Create a store without connecting. Raises RedisURLError."""
        self._prefix = prefix
        self._link = Link(url, timeout_s=timeout_s, prefix=prefix)

    @property
    def num_errors(self) -> Counter[str]:
        return self._link.num_errors

    async def put(self, digest: str, tiles: bytes, *, ttl_s: float) -> None:
        await self._command("SET", self._key(digest), tiles, "PX", _milliseconds(ttl_s))

    async def get(self, digest: str) -> bytes | None:
        tiles: bytes | None = await self._command("GET", self._key(digest))
        return tiles

    async def touch(self, digest: str, *, ttl_s: float) -> bool:
        key, ttl_ms = self._key(digest), _milliseconds(ttl_s)
        if int(await self._command("PTTL", key)) >= ttl_ms:
            return True
        return bool(await self._command("PEXPIRE", key, ttl_ms))

    async def delete(self, digests: Iterable[str]) -> None:
        if keys := [self._key(digest) for digest in digests]:
            await self._command("UNLINK", *keys)

    async def capacity_bytes(self) -> int:
        info: dict[str, Any] = await self._command("INFO", "memory")
        return int(info.get("maxmemory") or 0)

    async def remove_expired(self) -> None:
        """Do nothing: Redis removes expired keys."""

    async def aclose(self) -> None:
        await self._link.aclose()

    def _key(self, digest: str) -> str:
        return blob_key(digest, self._prefix)

    async def _command(self, *args: Arg) -> Any:
        try:
            return await retry_briefly(lambda: self._link.command(*args))
        except QueueUnavailable as error:
            raise ImageStoreUnavailable(str(error), kind=error.kind) from error


def _milliseconds(seconds: float) -> int:
    return max(int(seconds * 1000), 1)
