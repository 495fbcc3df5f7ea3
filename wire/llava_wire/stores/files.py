"""Uploaded files and batch output files, with expiry and size limits.

Like jobs, files are stored in Redis, so that any controller can serve any file and a batch survives a restart
of any process. A shared folder would be a second store, which would have to be kept consistent with Redis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from llava_wire.errors import StoreFull
from llava_wire.redis.connection import Arg, Link, retry_briefly
from llava_wire.redis.link_owner import LinkOwner

__all__ = ["FileLimits", "FileStore", "StoredFile", "store_full"]

_PART_BYTES = 1 << 20  # maximum per command, so that Redis can serve token streams between commands


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of a file. ``created_at`` and ``expires_at`` are in Unix seconds."""

    file_id: str
    name: str
    purpose: str
    created_at: int
    size: int = 0
    expires_at: int = 0


@dataclass(frozen=True)
class FileLimits:
    """Limits on stored files. ``bytes`` limits the total size of the files and batches of all tenants.

    A tenant can use at most as many bytes as are free, so that one tenant alone uses at most half of them.
    ``tenant_bytes`` is an additional limit.
    """

    tenant_files: int
    tenant_bytes: int
    bytes: int


class FileStore(LinkOwner):
    """The files in Redis. All methods raise QueueUnavailable if Redis is unavailable."""

    def __init__(self, url: str, *, ttl_s: float, limits: FileLimits, timeout_s: float = 5.0) -> None:
        self._ttl_ms = int(ttl_s * 1000)
        self._limits = limits
        super().__init__(Link(url, timeout_s=timeout_s, max_connections=8))

    async def add(
        self,
        file: StoredFile,
        data: bytes,
        *,
        tenant: str,
        is_limited: bool = True,
        ttl_s: float | None = None,
    ) -> None:
        """Store a file and make it visible to all controllers. The call can be repeated with the same file.

        The file expires after ``ttl_s`` or the TTL of the store, whichever is shorter. Raise StoreFull if a
        limit would be exceeded. Set ``is_limited`` to False for batch output, which is exempt from the
        limits.
        """
        limits = self._limits
        bounds = (limits.tenant_files, limits.tenant_bytes, limits.bytes) if is_limited else (0, 0, 0)
        payload = msgspec.msgpack.encode(file)
        reply = await self._call("reserve", file.file_id, tenant, len(data), payload, *bounds)
        if reply[0] != b"ok":
            raise store_full("file", len(data), *reply)
        for offset in range(0, len(data), _PART_BYTES):
            part = data[offset : offset + _PART_BYTES]
            await self._call("write", file.file_id, tenant, offset, part)
        ttl_ms = self._ttl_ms if ttl_s is None else min(self._ttl_ms, int(ttl_s * 1000))
        await self._call("seal", file.file_id, tenant, ttl_ms)

    async def find(self, file_id: str, *, tenant: str) -> StoredFile | None:
        """Return a file's metadata.

        Return None if the file does not exist, has expired, or belongs to another tenant.
        """
        reply = await self._call("read", file_id, tenant)
        return _stored_file(reply) if reply else None

    async def read(self, file: StoredFile, *, tenant: str) -> bytes | None:
        """Return the contents of a file, or None in the same cases as ``find``."""
        parts: list[bytes] = []
        for first in range(0, max(file.size, 1), _PART_BYTES):
            part = await self.read_part(file, first, _PART_BYTES, tenant=tenant)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    async def read_part(self, file: StoredFile, first: int, size: int, *, tenant: str) -> bytes | None:
        """Return up to ``size`` bytes from the offset ``first``, or None in the same cases as ``find``."""
        part = await self._call("part", file.file_id, tenant, first, first + size - 1)
        return None if part is None else bytes(part)

    async def renew(self, file_id: str, *, tenant: str) -> bool:
        """Restart the file's TTL, and return whether the file exists."""
        return bool(await self._call("seal", file_id, tenant, self._ttl_ms))

    async def list_files(self, *, tenant: str) -> list[StoredFile]:
        """Return the metadata of a tenant's files, newest first."""
        files = [_stored_file(reply) for reply in await self._call("list", "", tenant)]
        return sorted(files, key=lambda file: (file.created_at, file.file_id), reverse=True)

    async def remove(self, file_id: str, *, tenant: str) -> bool:
        """Remove the file and return whether it existed."""
        return bool(await self._call("remove", file_id, tenant))

    async def _call(self, step: str, *args: Arg) -> Any:
        return await retry_briefly(lambda: self._link.script("files", step, *args))


def _stored_file(reply: list[Any]) -> StoredFile:
    payload, size, ends_ms = reply
    file = msgspec.msgpack.decode(payload, type=StoredFile)
    return msgspec.structs.replace(file, size=size, expires_at=int(ends_ms) // 1000)


def store_full(name: str, size: int, scope: bytes, used: int, limit: int) -> StoreFull:
    """Return the error for a file or batch that needs ``size`` bytes.

    The other arguments are a reply of the script: the exceeded limit, the current usage and the limit.
    """
    if scope == b"files":
        return StoreFull(
            f"This API key has {used} files; the limit is {limit}. Delete some files.", is_own=True
        )
    if scope == b"tenant":
        return StoreFull(
            f"The files and batches of this API key use {used} bytes, and this {name} needs {size}; the "
            f"limit is {limit} bytes at the moment. Delete some files.",
            is_own=True,
        )
    return StoreFull(
        f"The files and batches of all API keys use {used} bytes, and this {name} needs {size}; the limit is "
        f"{limit} bytes. Retry later.",
        is_own=False,
    )
