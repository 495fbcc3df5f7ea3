"""Files that a tenant has uploaded, and those that batches made for it: bytes under a time to live, counted.

They lie in Redis beside the jobs that they become, so that any controller serves any file and a batch
outlives every process; a folder shared by controllers would be a second owner of state, to be mounted and
kept in step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from llava_wire.errors import StoreFull
from llava_wire.redis.connection import Arg, Link, try_briefly

__all__ = ["FileLimits", "FileStore", "StoredFile"]

_PIECE_BYTES = 1 << 20  # a command: Redis serves streams between two of them


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file. ``created_at`` and ``expires_at`` are Unix seconds."""

    file_id: str
    name: str
    purpose: str
    created_at: int
    size: int = 0
    expires_at: int = 0


@dataclass(frozen=True)
class FileLimits:
    """Of one tenant, and the bytes of everybody's files together."""

    tenant_files: int
    tenant_bytes: int
    bytes: int


class FileStore:
    """Every call raises QueueUnavailable if Redis does not answer."""

    def __init__(self, url: str, *, ttl_s: float, limits: FileLimits, timeout_s: float = 5.0) -> None:
        self._ttl_ms = int(ttl_s * 1000)
        self._limits = limits
        self._link = Link(url, timeout_s=timeout_s, max_connections=8)

    async def aclose(self) -> None:
        await self._link.aclose()

    async def add(self, file: StoredFile, data: bytes, *, tenant: str, is_limited: bool = True) -> None:
        """There for all controllers when this returns; the same file may be added again.

        Raises StoreFull, unless it is not ``is_limited``: what has been computed is kept in any case.
        """
        limits = self._limits
        bounds = (limits.tenant_files, limits.tenant_bytes, limits.bytes) if is_limited else (0, 0, 0)
        payload = msgspec.msgpack.encode(file)
        answer = await self._call("reserve", file.file_id, tenant, len(data), payload, *bounds)
        if answer[0] != b"ok":
            raise _full(answer[0].decode(), int(answer[1]), len(data), limits)
        for offset in range(0, len(data), _PIECE_BYTES):
            piece = data[offset : offset + _PIECE_BYTES]
            await self._call("write", file.file_id, tenant, offset, piece)
        await self._call("seal", file.file_id, tenant, self._ttl_ms)

    async def find(self, file_id: str, *, tenant: str) -> StoredFile | None:
        """None if it is unknown, another tenant's, or not there any more."""
        answer = await self._call("read", file_id, tenant)
        return _file(answer) if answer else None

    async def read(self, file: StoredFile, *, tenant: str) -> bytes | None:
        """All its bytes; None if it is gone, as in ``find``."""
        pieces: list[bytes] = []
        for first in range(0, max(file.size, 1), _PIECE_BYTES):
            piece = await self._call("piece", file.file_id, tenant, first, first + _PIECE_BYTES - 1)
            if piece is None:
                return None
            pieces.append(piece)
        return b"".join(pieces)

    async def keep(self, file_id: str, *, tenant: str) -> bool:
        """Its life begins anew; whether it was there."""
        return bool(await self._call("seal", file_id, tenant, self._ttl_ms))

    async def all_of(self, *, tenant: str) -> list[StoredFile]:
        """The latest first."""
        files = [_file(answer) for answer in await self._call("list", "", tenant)]
        return sorted(files, key=lambda file: (file.created_at, file.file_id), reverse=True)

    async def remove(self, file_id: str, *, tenant: str) -> bool:
        """Whether it was there."""
        return bool(await self._call("remove", file_id, tenant))

    async def _call(self, step: str, *args: Arg) -> Any:
        return await try_briefly(lambda: self._link.script("files", step, *args))


def _file(answer: list[Any]) -> StoredFile:
    payload, size, ends_ms = answer
    file = msgspec.msgpack.decode(payload, type=StoredFile)
    return msgspec.structs.replace(file, size=size, expires_at=int(ends_ms) // 1000)


def _full(limit: str, has: int, size: int, limits: FileLimits) -> StoreFull:
    if limit == "files":
        return StoreFull(
            f"this key has {has} files, and may have {limits.tenant_files}: delete some", is_own=True
        )
    if limit == "tenant_bytes":
        return StoreFull(
            f"this key's files have {has} bytes and this one {size}; the limit is {limits.tenant_bytes}: "
            "delete some",
            is_own=True,
        )
    return StoreFull(
        f"all files together have {has} bytes and this one {size}; the limit is {limits.bytes}: try later",
        is_own=False,
    )
