"""Batches: who asked for them, who drives them, and what has come of each line so far.

A driver is a controller under a lease; another takes over where it ends. Each line has one result, the first.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from llava_wire.errors import StoreFull
from llava_wire.redis.connection import Arg, Link, try_briefly

__all__ = ["Batch", "BatchIssue", "BatchSpec", "BatchStore", "BatchStats", "ClaimedBatch", "RecordedResults"]

RecordedResults = Literal["recorded", "known", "not_ours", "no_room"]
_RECORDED: dict[int, RecordedResults] = {1: "recorded", 0: "known", -1: "not_ours", -2: "no_room"}


class BatchIssue(msgspec.Struct, frozen=True):
    """Why a batch was not begun; ``line`` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for. ``created_at`` is in Unix seconds; ``trace`` is the W3C traceparent of who asked,
    empty where nobody traces."""

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
    """A batch as it stands. ``times`` are Unix seconds by state: when it came to it."""

    order: BatchSpec
    state: str
    expires_at: int
    num_lines: int
    num_completed: int
    num_failed: int
    output_file_id: str | None
    error_file_id: str | None
    times: dict[str, int]


@dataclass(frozen=True)
class ClaimedBatch:
    """A batch in this driver's hands."""

    batch: Batch
    left_s: float


@dataclass(frozen=True)
class BatchStats:
    """Everybody's unfinished batches: how many by state, and their lines."""

    num_batches: dict[str, int]
    num_waiting: int
    num_completed: int
    num_failed: int


class BatchStore:
    """One controller's connection. Every call raises QueueUnavailable if Redis does not answer."""

    def __init__(
        self, url: str, *, keep_s: float, lease_s: float, max_unfinished: int, timeout_s: float = 5.0
    ) -> None:
        self._keep_ms = int(keep_s * 1000)
        self._lease_ms = int(lease_s * 1000)
        self._max_unfinished = max_unfinished
        self._driver = secrets.token_hex(16)
        self._link = Link(url, timeout_s=timeout_s, max_connections=16)

    async def aclose(self) -> None:
        await self._link.aclose()

    async def create(self, order: BatchSpec, *, num_lines: int, window_s: float) -> None:
        """One with issues has failed already. Raises StoreFull."""
        state, window_ms = "failed" if order.issues else "validating", int(window_s * 1000)
        payload = msgspec.msgpack.encode(order)
        sizes = (num_lines, window_ms, window_ms + self._keep_ms, self._max_unfinished)
        answer = await self._call("create", order.batch_id, order.tenant, payload, state, *sizes)
        if answer[0] != b"ok":
            raise StoreFull(
                f"this key has {answer[1]} unfinished batches, and may have {self._max_unfinished}: "
                "wait for one to end, or cancel one",
                is_own=True,
            )

    async def find(self, batch_id: str, *, tenant: str) -> Batch | None:
        """None if it is unknown, another tenant's, or not there any more."""
        return _batch(await self._call("read", batch_id, tenant))

    async def page(self, *, tenant: str, after: str, number: int) -> list[Batch]:
        """The latest first; ``after`` is the last that the reader has, empty for none."""
        answers = await self._call("list", "", tenant, after, number)
        return [batch for answer in answers if (batch := _batch(answer)) is not None]

    async def cancel(self, batch_id: str, *, tenant: str) -> Batch | None:
        """The batch, which its driver ends within seconds unless it has ended; None as in ``find``."""
        return _batch(await self._call("cancel", batch_id, tenant))

    async def take(self) -> ClaimedBatch | None:
        """The next batch that nobody drives, until the lease's end."""
        answer = await self._call("take", "", self._driver, self._lease_ms)
        batch = _batch(answer[1]) if answer else None
        return ClaimedBatch(batch, answer[2] / 1000) if batch is not None else None

    async def renew(self, batch_id: str) -> tuple[str, float] | None:
        """State and seconds left; None if it is not ours any more."""
        answer = await self._call("renew", batch_id, self._driver, self._lease_ms)
        return (answer[0].decode(), answer[1] / 1000) if answer else None

    async def done(self, batch_id: str) -> set[int]:
        """The lines that have their result."""
        return {int(line) for line in await self._call("done", batch_id, self._driver)}

    async def record(
        self, batch_id: str, line: int, data: bytes, *, is_completed: bool, max_bytes: int
    ) -> RecordedResults:
        """The line's result, unless it has one; ``max_bytes`` is of all the batch's results together."""
        outcome = "completed" if is_completed else "failed"
        answer = await self._call("result", batch_id, self._driver, line, outcome, data, max_bytes)
        return _RECORDED[answer]

    async def results(self, batch_id: str, lines: Sequence[int]) -> list[bytes | None]:
        """Those of these lines, in their order."""
        answer: list[bytes | None] = await self._call("results", batch_id, self._driver, *lines)
        return answer

    async def finish(self, batch_id: str, state: str, *, output_file_id: str, error_file_id: str) -> bool:
        """The batch's end; False if it is not ours any more."""
        return bool(await self._call("finish", batch_id, self._driver, state, output_file_id, error_file_id))

    async def give_back(self, batch_id: str) -> None:
        """Another controller may take it at once."""
        await self._call("give_back", batch_id, self._driver)

    async def survey(self) -> BatchStats:
        """For /metrics."""
        rows = [(row[0].decode(), *map(int, row[1:])) for row in await self._call("survey", "")]
        total, completed, failed = (sum(row[place] for row in rows) for place in (1, 2, 3))
        states = dict(Counter(row[0] for row in rows))
        return BatchStats(states, total - completed - failed, completed, failed)

    async def _call(self, step: str, *args: Arg) -> Any:
        return await try_briefly(lambda: self._link.script("batches", step, *args))


def _batch(answer: list[bytes]) -> Batch | None:
    fields = {name.decode(): value for name, value in zip(answer[::2], answer[1::2], strict=True)}
    if not fields:
        return None
    return Batch(
        order=msgspec.msgpack.decode(fields["payload"], type=BatchSpec),
        state=fields["state"].decode(),
        expires_at=int(fields["ends"]) // 1000,
        num_lines=int(fields["total"]),
        num_completed=int(fields["completed"]),
        num_failed=int(fields["failed"]),
        output_file_id=fields.get("output_file", b"").decode() or None,
        error_file_id=fields.get("error_file", b"").decode() or None,
        times={
            name.removesuffix("_at"): int(value) for name, value in fields.items() if name.endswith("_at")
        },
    )
