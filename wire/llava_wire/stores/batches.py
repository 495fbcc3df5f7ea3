"""The specifications, drivers and results of batches.

The driver of a batch is the controller that holds its lease. When the lease expires, another controller can
take over. Only the first result for each line is stored.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from llava_wire.errors import StoreFull
from llava_wire.redis.connection import Arg, Link, retry_briefly
from llava_wire.redis.link_owner import LinkOwner
from llava_wire.stores.files import FileLimits, store_full

__all__ = ["Batch", "BatchIssue", "BatchSpec", "BatchStore", "BatchStats", "ClaimedBatch", "RecordOutcome"]

RecordOutcome = Literal["recorded", "duplicate", "not_driver", "too_large"]
_OUTCOMES: dict[int, RecordOutcome] = {1: "recorded", 0: "duplicate", -1: "not_driver", -2: "too_large"}


class BatchIssue(msgspec.Struct, frozen=True):
    """A reason why a batch was not started. ``line`` is 1-based."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A batch as specified in the request.

    ``created_at`` is in Unix seconds. ``trace`` is the W3C traceparent of the request, or empty if tracing is
    disabled.
    """

    batch_id: str
    tenant: str
    input_file_id: str
    endpoint: str
    completion_window: str
    created_at: int
    metadata: dict[str, str] | None = None
    issues: tuple[BatchIssue, ...] = ()
    trace: str = ""


@dataclass(frozen=True)
class Batch:
    """The current state of a batch.

    ``timestamps`` contains the time in Unix seconds at which the batch entered each state, keyed by state.
    """

    spec: BatchSpec
    state: str
    expires_at: int
    num_lines: int
    num_completed: int
    num_failed: int
    output_file_id: str | None
    error_file_id: str | None
    timestamps: dict[str, int]


@dataclass(frozen=True)
class ClaimedBatch:
    """A batch driven by this controller. ``remaining_s`` is the time until the batch expires."""

    batch: Batch
    remaining_s: float


@dataclass(frozen=True)
class BatchStats:
    """Statistics on the unfinished batches of all tenants.

    ``num_batches`` is keyed by state. The other fields count the lines of these batches.
    """

    num_batches: dict[str, int]
    num_waiting: int
    num_completed: int
    num_failed: int


class BatchStore(LinkOwner):
    """The batches in Redis. All methods raise QueueUnavailable if Redis is unavailable."""

    def __init__(
        self,
        url: str,
        *,
        keep_s: float,
        lease_s: float,
        max_unfinished: int,
        limits: FileLimits,
        timeout_s: float = 5.0,
    ) -> None:
        self._keep_ms = int(keep_s * 1000)
        self._lease_ms = int(lease_s * 1000)
        self._max_unfinished = max_unfinished
        self._limits = (limits.tenant_bytes, limits.bytes)
        self._driver = secrets.token_hex(16)
        super().__init__(Link(url, timeout_s=timeout_s, max_connections=16))

    async def create(self, spec: BatchSpec, *, num_lines: int, window_s: float) -> None:
        """Store a batch. If ``spec`` contains issues, the state of the batch is "failed".

        Raise StoreFull if the tenant has too many unfinished batches, or if a limit on files is exceeded.
        """
        state, window_ms = "failed" if spec.issues else "validating", int(window_s * 1000)
        payload = msgspec.msgpack.encode(spec)
        sizes = (num_lines, window_ms, window_ms + self._keep_ms, self._max_unfinished, *self._limits)
        reply = await self._call("create", spec.batch_id, spec.tenant, payload, state, *sizes)
        if reply[0] in (b"tenant", b"all"):
            raise store_full("batch", len(payload), *reply)
        if reply[0] != b"ok":
            num_unfinished, limit = reply[1], self._max_unfinished
            raise StoreFull(
                f"This API key has {num_unfinished} unfinished batches; the limit is {limit}. Wait for a "
                "batch to finish, or cancel one.",
                is_own=True,
            )

    async def find(self, batch_id: str, *, tenant: str) -> Batch | None:
        """Return a batch, or None if it does not exist, has expired, or belongs to another tenant."""
        return _batch(await self._call("read", batch_id, tenant))

    async def list_batches(self, *, tenant: str, after: str, limit: int) -> list[Batch]:
        """Return a page of batches, newest first.

        ``after`` is the last batch ID on the previous page. It is empty for the first page.
        """
        replies = await self._call("list", "", tenant, after, limit)
        return [batch for reply in replies if (batch := _batch(reply)) is not None]

    async def cancel(self, batch_id: str, *, tenant: str) -> Batch | None:
        """Request cancellation of a batch and return it. The driver then ends the batch within seconds.

        Return None in the same cases as ``find``.
        """
        return _batch(await self._call("cancel", batch_id, tenant))

    async def claim(self) -> ClaimedBatch | None:
        """Claim the next batch that has no driver. The claim lasts until the lease expires.

        Return None if there is no such batch.
        """
        reply = await self._call("claim", "", self._driver, self._lease_ms)
        batch = _batch(reply[1]) if reply else None
        return ClaimedBatch(batch, reply[2] / 1000) if batch is not None else None

    async def renew(self, batch_id: str) -> tuple[str, float] | None:
        """Renew the lease. Return the state of the batch and the time in seconds until the batch expires.

        Return None if this controller is no longer the driver.
        """
        reply = await self._call("renew", batch_id, self._driver, self._lease_ms)
        return (reply[0].decode(), reply[1] / 1000) if reply else None

    async def finished_lines(self, batch_id: str) -> set[int]:
        """Return the numbers of the lines that have a result."""
        return {int(line) for line in await self._call("finished_lines", batch_id, self._driver)}

    async def record(
        self, batch_id: str, line: int, data: bytes, *, is_completed: bool, max_bytes: int
    ) -> RecordOutcome:
        """Store the result of a line, unless the line already has one.

        ``max_bytes`` limits the total size of the results of the batch, which also count as files.
        """
        outcome = "completed" if is_completed else "failed"
        args = (line, outcome, data, max_bytes, *self._limits)
        reply = await self._call("result", batch_id, self._driver, *args)
        return _OUTCOMES[reply]

    async def results(self, batch_id: str, lines: Sequence[int]) -> list[bytes | None]:
        """Return the results of these lines in the same order."""
        results: list[bytes | None] = await self._call("results", batch_id, self._driver, *lines)
        return results

    async def finish(self, batch_id: str, state: str, *, output_file_id: str, error_file_id: str) -> bool:
        """End the batch. Return False if this controller is not its driver."""
        return bool(await self._call("finish", batch_id, self._driver, state, output_file_id, error_file_id))

    async def release(self, batch_id: str) -> None:
        """Release the lease, so that another controller can claim the batch immediately."""
        await self._call("release", batch_id, self._driver)

    async def stats(self) -> BatchStats:
        """Return statistics for /metrics."""
        rows = [(row[0].decode(), *map(int, row[1:])) for row in await self._call("stats", "")]
        total, completed, failed = (sum(row[column] for row in rows) for column in (1, 2, 3))
        states = dict(Counter(row[0] for row in rows))
        return BatchStats(states, total - completed - failed, completed, failed)

    async def _call(self, step: str, *args: Arg) -> Any:
        return await retry_briefly(lambda: self._link.script("batches", step, *args))


def _batch(reply: list[bytes]) -> Batch | None:
    fields = {name.decode(): value for name, value in zip(reply[::2], reply[1::2], strict=True)}
    if not fields:
        return None
    return Batch(
        spec=msgspec.msgpack.decode(fields["payload"], type=BatchSpec),
        state=fields["state"].decode(),
        expires_at=int(fields["ends"]) // 1000,
        num_lines=int(fields["total"]),
        num_completed=int(fields["completed"]),
        num_failed=int(fields["failed"]),
        output_file_id=fields.get("output_file", b"").decode() or None,
        error_file_id=fields.get("error_file", b"").decode() or None,
        timestamps={
            name.removesuffix("_at"): int(value) for name, value in fields.items() if name.endswith("_at")
        },
    )
