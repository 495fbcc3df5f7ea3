"""Works batches off: a few lines at a time, behind whatever people wait for.

    BatchStore.take  ->  drive: line -> chat -> job -> answer -> BatchStore.record  ->  two files  ->  finish

A line's jobs follow from the batch and the line's number, so whoever drives it after this controller finds
the answer that is under way, or done, instead of a second one. What cannot be done now (a full queue, no
worker, a key's limits) is tried again until the batch's window is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import anyio
from llava_wire.errors import QueueUnavailable
from llava_wire.stores.batches import Batch, BatchStore, ClaimedBatch, RecordOutcome
from llava_wire.stores.files import FileStore, StoredFile

from llava_server.api.batches.jsonl import answered, lines_of, refused, unanswered
from llava_server.api.batches.request import BatchLine
from llava_server.api.parse import parse_request
from llava_server.errors import ApiError
from llava_server.request_metrics import Metrics
from llava_server.tracing import linked_span, set_error_type

__all__ = ["AskLine", "BatchDriver", "Line"]

logger = logging.getLogger(__name__)

_LOOK_S = 5.0  # between two looks for a batch that nobody drives
_RENEW_S = 1.0
_AGAIN_S = 5.0
_MAX_RUNNING = 4
_GIVE_BACK_TIMEOUT_S = 3.0
_NUM_TOGETHER = 256  # results read at once
_GOOD, _BAD = b"+", b"-"  # before each result, so that it finds its file
_NOT_NOW = frozenset({408, 409, 429})  # and 503: the same line may be answered later
_SHORTAGE = "insufficient_memory"  # 503 too, but it would fail again
_WHY = {
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request had its answer"),
    "expired": ("batch_expired", "the batch's window was over before this request had its answer"),
    "no_room": ("batch_output_full", "the batch's answers take all the bytes that they may: make it smaller"),
}


@dataclass(frozen=True)
class Line:
    """A line on its way. ``is_unwanted``: nobody will ask for its answer any more, here or elsewhere."""

    batch: Batch
    number: int
    request: BatchLine
    is_unwanted: Callable[[], bool]

    @property
    def key(self) -> str:
        """By which its answer is known again, in place of an Idempotency-Key."""
        return f"{self.batch.spec.batch_id}:{self.number}"


@dataclass
class _Run:
    """A batch being driven; ``ending`` is why it stops before its lines are done."""

    batch: Batch
    until: float  # monotonic
    ending: str | None = None
    is_lost: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def is_ending(self) -> bool:
        return self.ending is not None

    def stop(self, ending: str | None) -> None:
        self.ending = self.ending or ending
        self.scope.cancel()


# The body of a chat completion; raises ApiError.
AskLine: TypeAlias = Callable[[Line], Awaitable[dict[str, Any]]]


class BatchDriver:
    """Runs batches. Set ``changed`` when a batch was created or cancelled."""

    def __init__(
        self,
        batches: BatchStore,
        files: FileStore,
        ask: AskLine,
        metrics: Metrics,
        changed: asyncio.Event,
        *,
        num_parallel: int,
        max_result_bytes: int,
    ) -> None:
        self._batches = batches
        self._files = files
        self._ask = ask
        self._metrics = metrics
        self._turns = asyncio.Semaphore(num_parallel)  # first come, first served: batches take turns
        self._num_parallel = num_parallel
        self._max_result_bytes = max_result_bytes
        self._num_driven = 0
        self._changed = changed
        self._scope = anyio.CancelScope()

    def stop(self) -> None:
        """Release the batches that run here, so that another server continues them at once."""
        self._scope.cancel()

    async def run(self) -> None:
        """Run until cancelled or stopped."""
        with self._scope:
            async with anyio.create_task_group() as tasks:
                while True:
                    self._changed.clear()
                    driven = await self._take()
                    if driven is not None:
                        self._num_driven += 1
                        tasks.start_soon(self._drive, driven)
                        continue
                    with anyio.move_on_after(_LOOK_S):
                        await self._changed.wait()

    async def _take(self) -> ClaimedBatch | None:
        if self._num_driven >= _MAX_RUNNING:
            return None
        try:
            return await self._batches.claim()
        except QueueUnavailable:
            return None  # the registry says so, once

    async def _drive(self, driven: ClaimedBatch) -> None:
        batch_id = driven.batch.spec.batch_id
        run = _Run(driven.batch, time.monotonic() + driven.remaining_s)
        logger.info("batch %s is driven here", batch_id)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep, run)
                await self._work_off(run)
                tasks.cancel_scope.cancel()
        except QueueUnavailable as error:
            logger.warning("batch %s is put aside: %s", batch_id, error)
        finally:
            self._num_driven -= 1
            with (
                anyio.move_on_after(_GIVE_BACK_TIMEOUT_S, shield=True),
                contextlib.suppress(QueueUnavailable),
            ):
                await self._batches.release(batch_id)
            self._changed.set()

    async def _keep(self, run: _Run) -> None:
        """Renews the lease, and sees the batch's end come."""
        while True:
            try:
                seen = await self._batches.renew(run.batch.spec.batch_id)
            except QueueUnavailable:
                await asyncio.sleep(_RENEW_S)
                continue
            if seen is None:
                run.is_lost = True
                run.stop(None)
                return
            state, left_s = seen
            run.until = time.monotonic() + left_s
            if state == "cancelling":
                run.stop("cancelled")
            elif left_s <= 0:
                run.stop("expired")
            await asyncio.sleep(_RENEW_S)

    async def _work_off(self, run: _Run) -> None:
        order = run.batch.spec
        file = await self._files.find(order.input_file_id, tenant=order.tenant)
        data = await self._files.read(file, tenant=order.tenant) if file is not None else None
        if data is None:
            await self._end(order.batch_id, "failed")
            logger.warning("batch %s failed: its input file is gone", order.batch_id)
            return
        lines = [
            Line(run.batch, number, parse_request(BatchLine, text), run.is_ending)
            for number, text in lines_of(data)
        ]
        done = await self._batches.finished_lines(order.batch_id)
        with run.scope:
            async with anyio.create_task_group() as tasks:
                todo = iter([line for line in lines if line.number not in done])
                for _ in range(self._num_parallel):
                    tasks.start_soon(self._answer_each, run, todo)
        if not run.is_lost:
            await self._finish(run, lines)

    async def _answer_each(self, run: _Run, todo: Iterator[Line]) -> None:
        """One of those that share the lines that are left."""
        for line in todo:
            async with self._turns:
                order = line.batch.spec
                with linked_span("batch line", order.trace, batch_id=order.batch_id, line=line.number):
                    await self._answer(run, line)

    async def _answer(self, run: _Run, line: Line) -> None:
        order, custom_id = line.batch.spec, line.request.custom_id
        result, is_completed = await self._result(line)
        recorded = await self._record(line, result, is_completed=is_completed)
        if recorded == "not_driver":
            run.is_lost = True
            run.stop(None)
        elif recorded == "too_large":
            logger.warning("batch %s: no room for the answer to %r", order.batch_id, custom_id[:60])
            run.stop("no_room")

    async def _result(self, line: Line) -> tuple[bytes, bool]:
        order, custom_id = line.batch.spec, line.request.custom_id
        while True:
            try:
                body = await self._ask(line)
            except ApiError as error:
                if _may_pass(error):
                    await asyncio.sleep(error.retry_after_s or _AGAIN_S)
                    continue
                set_error_type(error.code)
                return _BAD + refused(order.batch_id, line.number, custom_id, line.key, error), False
            return _GOOD + answered(order.batch_id, line.number, custom_id, line.key, body), True

    async def _finish(self, run: _Run, lines: list[Line]) -> None:
        """What has no result gets its reason; results become two files, in the order of the lines."""
        order = run.batch.spec
        if run.ending is not None:
            code, message = _WHY[run.ending]
            done = await self._batches.finished_lines(order.batch_id)
            for line in lines:
                if line.number in done:
                    continue
                text = _BAD + unanswered(order.batch_id, line.number, line.request.custom_id, code, message)
                await self._record(line, text, is_completed=False)
        output, errors = bytearray(), bytearray()
        numbers = [line.number for line in lines]
        for first in range(0, len(numbers), _NUM_TOGETHER):
            for result in await self._batches.results(order.batch_id, numbers[first : first + _NUM_TOGETHER]):
                if result is not None:
                    (output if result[:1] == _GOOD else errors).extend(result[1:])
        state = run.ending if run.ending in ("cancelled", "expired") else "completed"
        await self._end(
            order.batch_id,
            state,
            output_file_id=await self._store(order.batch_id, order.tenant, "output", bytes(output)),
            error_file_id=await self._store(order.batch_id, order.tenant, "error", bytes(errors)),
        )
        logger.info("batch %s is %s", order.batch_id, state)

    async def _record(self, line: Line, result: bytes, *, is_completed: bool) -> RecordOutcome:
        recorded = await self._batches.record(
            line.batch.spec.batch_id,
            line.number,
            result,
            is_completed=is_completed,
            max_bytes=self._max_result_bytes,
        )
        if recorded == "recorded":
            self._metrics.batch_line_ended(is_completed=is_completed)
        return recorded

    async def _end(
        self, batch_id: str, state: str, *, output_file_id: str = "", error_file_id: str = ""
    ) -> None:
        if await self._batches.finish(
            batch_id, state, output_file_id=output_file_id, error_file_id=error_file_id
        ):
            self._metrics.batch_ended(state)

    async def _store(self, batch_id: str, tenant: str, kind: str, data: bytes) -> str:
        """The file's id, empty for no file; whoever does it again makes the same file."""
        if not data:
            return ""
        file_id = f"file-{hashlib.sha256(f'{batch_id} {kind}'.encode()).hexdigest()[:32]}"
        name = f"{batch_id}_{kind}.jsonl"
        file = StoredFile(file_id=file_id, name=name, purpose="batch_output", created_at=int(time.time()))
        await self._files.add(file, data, tenant=tenant, is_limited=False)
        return file_id


def _may_pass(error: ApiError) -> bool:
    status = error.kind.status
    return error.code != _SHORTAGE and (
        status in _NOT_NOW or status == 503 or error.code == "invalid_api_key"
    )
