"""Stored responses and chat completions with their input, so that clients can read and continue them later.

Each response refers to the response that it continues. A conversation is therefore a chain of responses, and
no part of it is stored twice. Storage is limited: if there is no room, the oldest responses are removed.
Reading a conversation restarts the TTL of all its responses, so a conversation in use does not lose its
beginning.

The output is added after the job has ended. ``due`` returns the responses whose output is still missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from llava_wire.errors import ResponseTooLarge
from llava_wire.redis.connection import Arg, Link, retry_briefly
from llava_wire.redis.link_owner import LinkOwner

__all__ = ["BrokenChain", "ResponseHead", "ResponseLimits", "ResponseStore", "StoredResponse"]

Data = Literal["input", "output"]
_PART_BYTES = 1 << 20  # maximum per command, so that Redis can serve token streams between commands


class ResponseHead(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The description of a response. ``created_at`` is in Unix seconds."""

    model: str
    created_at: int
    status: str = "in_progress"
    num_choices: int = 1
    metadata: dict[str, str] = {}


class StoredResponse(msgspec.Struct, frozen=True):
    """A stored response.

    ``input`` and ``output`` are opaque to this package. ``output`` is None until the response has ended, and
    both are empty in lists. ``previous_id`` is the ID of the response that this one continues, or empty.
    """

    response_id: str
    head: ResponseHead
    previous_id: str
    input: bytes
    output: bytes | None


@dataclass(frozen=True)
class ResponseLimits:
    """Limits on stored responses, in bytes. ``bytes`` limits the total size for all tenants."""

    tenant_bytes: int
    bytes: int


class BrokenChain(Exception):
    """A response of a conversation does not exist, has expired, or belongs to another tenant."""

    def __init__(self, response_id: str) -> None:
        super().__init__(response_id)
        self.response_id = response_id


class ResponseStore(LinkOwner):
    """The responses in Redis. All methods raise QueueUnavailable if Redis is unavailable."""

    def __init__(self, url: str, *, ttl_s: float, limits: ResponseLimits, timeout_s: float = 5.0) -> None:
        self._ttl_ms = int(ttl_s * 1000)
        self._limits = (limits.tenant_bytes, limits.bytes)
        super().__init__(Link(url, timeout_s=timeout_s, max_connections=8))

    async def add(self, response: StoredResponse, *, tenant: str, is_listed: bool = False) -> bool:
        """Store a response without its output, and return whether it is new.

        The call can be repeated with the same response. If ``is_listed`` is true, ``list_responses`` returns
        the response. Raise ResponseTooLarge if the response alone exceeds a limit.
        """
        payload, size = msgspec.msgpack.encode(response.head), len(response.input)
        args = (payload, response.previous_id, size, self._ttl_ms, *self._limits, int(is_listed))
        reply = await self._call("add", response.response_id, tenant, *args)
        if reply[0] == b"too_large":
            raise ResponseTooLarge(int(reply[1]), min(self._limits))
        if reply[0] == b"added":
            await self._write(response.response_id, "input", response.input, tenant=tenant)
        return bool(reply[0] == b"added")

    async def finish(self, response_id: str, head: ResponseHead, output: bytes, *, tenant: str) -> bool:
        """Store the output of a response. Return whether the response still exists."""
        payload = msgspec.msgpack.encode(head)
        await self._write(response_id, "output", output, tenant=tenant)
        return bool(await self._call("finish", response_id, tenant, payload, len(output), *self._limits))

    async def num_bytes(self, response_id: str, *, tenant: str, max_responses: int = 1) -> int:
        """Return the size of a response and of up to ``max_responses - 1`` responses that it continues.

        Missing responses, and outputs that are not stored yet, count 0 bytes.
        """
        return int(await self._call("size", response_id, tenant, max_responses))

    async def find(self, response_id: str, *, tenant: str) -> StoredResponse | None:
        """Return a response.

        Return None if the response does not exist, has expired, or belongs to another tenant.
        """
        found = await self._read(response_id, tenant=tenant, num_responses=1, ttl_ms=0)
        return found[0] if found else None

    async def conversation(
        self, response_id: str, *, tenant: str, max_responses: int
    ) -> list[StoredResponse]:
        """Return a response and all responses that it continues, oldest first, and restart their TTL.

        Raise BrokenChain if one of them is missing. Return at most ``max_responses`` responses. In this case,
        the first one still has a ``previous_id``.
        """
        chain: list[StoredResponse] = []
        next_id = response_id
        while next_id and len(chain) < max_responses:
            num_left = max_responses - len(chain)
            found = await self._read(next_id, tenant=tenant, num_responses=num_left, ttl_ms=self._ttl_ms)
            if not found:
                raise BrokenChain(next_id)
            chain += found
            next_id = found[-1].previous_id
        return chain[::-1]

    async def list_responses(
        self, *, tenant: str, order: Literal["asc", "desc"], after: str, limit: int
    ) -> list[StoredResponse]:
        """Return a page of listed responses, without data, in the order in which they were stored.

        ``after`` is the last ID on the previous page. It is empty for the first page.
        """
        reply = await self._call("list", "", tenant, order, after, limit)
        return [await self._response(row, tenant=tenant, has_data=False) for row in reply]

    async def update(self, response_id: str, head: ResponseHead, *, tenant: str) -> bool:
        """Replace the head of a response. Return whether the response exists."""
        return bool(await self._call("update", response_id, tenant, msgspec.msgpack.encode(head)))

    async def remove(self, response_id: str, *, tenant: str) -> bool:
        """Remove a response and return whether it existed."""
        return bool(await self._call("remove", response_id, tenant))

    async def due(self, limit: int, *, pause_s: float) -> list[tuple[str, str]]:
        """Return the IDs and tenants of up to ``limit`` responses without an output.

        The same responses are not returned again, to any controller, for ``pause_s``.
        """
        reply = await self._call("due", "", "", limit, int(pause_s * 1000))
        return [(response_id.decode(), tenant.decode()) for response_id, tenant in reply]

    async def _read(
        self, response_id: str, *, tenant: str, num_responses: int, ttl_ms: int
    ) -> list[StoredResponse]:
        reply = await self._call("read", response_id, tenant, num_responses, ttl_ms)
        return [await self._response(row, tenant=tenant) for row in reply]

    async def _response(self, row: list[Any], *, tenant: str, has_data: bool = True) -> StoredResponse:
        response_id, payload, previous_id, num_in, num_out, data_in, data_out = row
        if has_data and data_in is None:
            data_in = await self._parts(response_id, "input", num_in, tenant=tenant)
            data_out = await self._parts(response_id, "output", num_out, tenant=tenant)
        return StoredResponse(
            response_id=response_id.decode(),
            head=msgspec.msgpack.decode(payload, type=ResponseHead),
            previous_id=previous_id.decode(),
            input=data_in or b"",
            output=None if num_out < 0 else data_out or b"",
        )

    async def _write(self, response_id: str, kind: Data, data: bytes, *, tenant: str) -> None:
        for offset in range(0, len(data), _PART_BYTES):
            part = data[offset : offset + _PART_BYTES]
            await self._call("write", response_id, tenant, kind, offset, part)

    async def _parts(self, response_id: bytes, kind: Data, num_bytes: int, *, tenant: str) -> bytes:
        parts = [
            await self._call("part", response_id, tenant, kind, first, first + _PART_BYTES - 1) or b""
            for first in range(0, num_bytes, _PART_BYTES)
        ]
        return b"".join(parts)

    async def _call(self, step: str, *args: Arg) -> Any:
        return await retry_briefly(lambda: self._link.script("responses", step, *args))
