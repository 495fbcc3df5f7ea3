"""Base class of the objects that access Redis through one link."""

from __future__ import annotations

from collections import Counter

from llava_wire.redis.connection import Link

__all__ = ["LinkOwner"]


class LinkOwner:
    """An object that owns a link and closes it."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def num_redis_errors(self) -> Counter[str]:
        """The number of errors so far, keyed by kind. See ``Link.num_errors``."""
        return self._link.num_errors

    async def aclose(self) -> None:
        await self._link.aclose()
