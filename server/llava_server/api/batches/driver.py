"""Batch processing: claim batches from the store, run their requests and write the result files.

    BatchStore.claim -> run each line -> BatchStore.record -> two files -> BatchStore.finish

Only one server runs a batch at a time: the one that holds its lease. Job IDs are derived from the batch ID
and the line number. A server that takes over a batch therefore reads existing outputs instead of generating
them again. Temporary failures are retried until the batch expires, which includes failures of the store.

Each batch is a supervised task. A defect in a request ends this request with an error. Any other defect
releases the batch, which is then claimed again, here or by another server.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Literal, TypeVar

import anyio
from llava_wire.errors import QueueUnavailable
from llava_wire.stores.batches import BatchSpec, ClaimedBatch, RecordOutcome
from llava_wire.stores.files import StoredFile

from llava_server.api.batches.jsonl import InputLine, LineResult, read_requests, skipped_result
from llava_server.api.batches.line_runner import LineRunner
from llava_server.api.chat.request_handler import run_parser
from llava_server.lifespan import Services
from llava_server.periodic import run_periodically
from llava_server.supervised_tasks import SupervisedTasks
from llava_server.tracing import linked_span, use_tracer

__all__ = ["run_batches"]

logger = logging.getLogger(__name__)

_MIB = 2**20
_METRICS_INTERVAL_S = 1.0
_CLAIM_INTERVAL_S = 5.0  # interval between attempts to claim a batch
_RENEW_INTERVAL_S = 1.0
_RELEASE_TIMEOUT_S = 3.0
_MAX_BATCHES = 4  # maximum number of batches that this server runs concurrently
_NUM_RESULTS_READ = 256  # number of results to read from the store at a time
_STORE_RETRY_S = 0.5

T = TypeVar("T")

EndReason = Literal["cancelled", "expired", "output_full"]
_SKIPPED: dict[EndReason, tuple[str, str]] = {  # error code and message for unfinished requests
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request finished."),
    "expired": ("batch_expired", "The batch expired before this request finished."),
    "output_full": (
        "batch_output_full",
        "The results of the batch exceed the maximum size (LLAVA_MAX_BATCH_OUTPUT_MB), or the space for "
        "files that this API key has left. Split the batch into smaller ones, or delete some files.",
    ),
}


@asynccontextmanager
async def run_batches(services: Services) -> AsyncIterator[None]:
    """Run batches in the background until the ``with`` block exits or the server begins to shut down."""
    async with (
        aclosing(SupervisedTasks(services.metrics.task_crashed)) as tasks,
        aclosing(BatchDriver(services)) as driver,
    ):
        with use_tracer(services.tracer):
            driver.start()
        tasks.start("batch shutdown", partial(_stop_on_shutdown, driver, services))
        tasks.start(
            "batch metrics",
            partial(run_periodically, _METRICS_INTERVAL_S, partial(_update_metrics, services)),
        )
        yield


async def _stop_on_shutdown(driver: BatchDriver, services: Services) -> None:
    await services.shutdown.wait_begun()
    await driver.aclose()


async def _update_metrics(services: Services) -> None:
    with contextlib.suppress(QueueUnavailable):  # logged by QueueHealth
        services.metrics.set_batches(await services.batches.stats())


class BatchDriver:
    """A driver that claims batches and runs each one in its own task.

    ``aclose`` releases all batches, so that another server can resume them immediately.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._line_runner = LineRunner(services)
        self._running: set[str] = set()  # batch IDs
        self._changed = services.batches_changed
        self._tasks = SupervisedTasks(services.metrics.task_crashed)

    def start(self) -> None:
        """Claim and run batches until ``aclose`` is called."""
        self._tasks.start("batch driver", self._run)

    async def aclose(self) -> None:
        await self._tasks.aclose()

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            claimed = await self._claim()
            if claimed is None:
                with anyio.move_on_after(_CLAIM_INTERVAL_S):
                    await self._changed.wait()
                continue
            batch = claimed.batch.spec
            if batch.batch_id not in self._running:  # else its lease had expired while Redis was unavailable
                self._running.add(batch.batch_id)
                self._tasks.start("batch", partial(self._drive, batch), max_restarts=0)

    async def _claim(self) -> ClaimedBatch | None:
        if len(self._running) >= _MAX_BATCHES:
            return None
        try:
            return await self._services.batches.claim()
        except QueueUnavailable:
            return None  # logged by QueueHealth

    async def _drive(self, batch: BatchSpec) -> None:
        logger.info("processing batch %s", batch.batch_id)
        try:
            await BatchRun(self._services, self._line_runner, batch).run()
        finally:
            try:
                await self._release(batch.batch_id)
            finally:
                self._running.discard(batch.batch_id)  # last, so that no new claim is released
        self._changed.set()  # not after a crash: the batch is then claimed again at the next interval

    async def _release(self, batch_id: str) -> None:
        """Release the batch, even if the calling task is being cancelled."""
        with anyio.move_on_after(_RELEASE_TIMEOUT_S, shield=True), contextlib.suppress(QueueUnavailable):
            await self._services.batches.release(batch_id)


class BatchRun:
    """A batch run by this server."""

    def __init__(self, services: Services, line_runner: LineRunner, batch: BatchSpec) -> None:
        self._services = services
        self._store = services.batches
        self._files = services.files
        self._line_runner = line_runner
        self._slots = services.batch_slots  # shared by the requests of all batches
        self._batch = batch
        self._end_reason: EndReason | None = None  # set if the batch ends before all requests have run
        self._running_lines = anyio.CancelScope()
        self._driving = anyio.CancelScope()  # cancelled if another server takes over the batch

    async def run(self) -> None:
        """Run the batch until it ends or another server takes it over. Wait while Redis is unavailable."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._renew_lease)
            with self._driving:
                await self._run()
            tasks.cancel_scope.cancel()

    async def _run(self) -> None:
        lines = await self._read_lines()
        if lines is None:
            logger.warning("batch %s failed: its input file no longer exists", self._batch.batch_id)
            await self._finish("failed")
            return
        await self._run_lines(lines)
        await self._write_files(lines)

    async def _renew_lease(self) -> None:
        """Renew the lease periodically.

        If the batch is cancelled or expires, or another server takes it over, stop all requests.
        """
        while True:
            renewed = await _until_available(partial(self._store.renew, self._batch.batch_id))
            if renewed is None:
                self._driving.cancel()
                return
            state, remaining_s = renewed
            if state == "cancelling":
                self._end_early("cancelled")
            elif remaining_s <= 0:
                self._end_early("expired")
            await asyncio.sleep(_RENEW_INTERVAL_S)

    def _end_early(self, reason: EndReason) -> None:
        self._end_reason = self._end_reason or reason
        self._running_lines.cancel()

    async def _read_lines(self) -> list[InputLine] | None:
        """Return the lines of the input file, or None if the file no longer exists."""
        data = await _until_available(self._read_input)
        if data is None:
            return None
        parse = partial(read_requests, self._batch, data)
        return await run_parser(self._services, self._batch.tenant, len(data), parse)

    async def _read_input(self) -> bytes | None:
        tenant = self._batch.tenant
        file = await self._files.find(self._batch.input_file_id, tenant=tenant)
        return await self._files.read(file, tenant=tenant) if file is not None else None

    async def _finished_lines(self) -> set[int]:
        return await _until_available(partial(self._store.finished_lines, self._batch.batch_id))

    async def _run_lines(self, lines: list[InputLine]) -> None:
        finished = await self._finished_lines()
        remaining = iter([line for line in lines if line.number not in finished])
        with self._running_lines:
            async with anyio.create_task_group() as tasks:
                for _ in range(self._services.settings.batch_parallel):
                    tasks.start_soon(self._run_each, remaining)

    async def _run_each(self, remaining: Iterator[InputLine]) -> None:
        """Run the remaining requests one after another. Multiple tasks share the iterator."""
        for line in remaining:
            async with self._slots.hold(self._batch.tenant):
                with linked_span(
                    "batch line", self._batch.trace, batch_id=self._batch.batch_id, line=line.number
                ):
                    await self._run_line(line)

    async def _run_line(self, line: InputLine) -> None:
        result = await self._line_runner.run(line, should_cancel=lambda: self._end_reason is not None)
        outcome = await self._record(line, result)
        if outcome == "not_driver":
            self._driving.cancel()
        elif outcome == "too_large":
            custom_id = line.custom_id[:60]
            logger.warning(
                "batch %s: the result of %r exceeds the output size limit", self._batch.batch_id, custom_id
            )
            self._end_early("output_full")

    async def _record(self, line: InputLine, result: LineResult) -> RecordOutcome:
        outcome = await _until_available(
            partial(
                self._store.record,
                self._batch.batch_id,
                line.number,
                result.pack(),
                is_completed=result.is_completed,
                max_bytes=self._services.settings.max_batch_output_mb * _MIB,
            )
        )
        if outcome == "recorded":
            self._services.metrics.batch_line_ended(is_completed=result.is_completed)
        return outcome

    async def _write_files(self, lines: list[InputLine]) -> None:
        """Write the results to the output and error files in line order, then finish the batch."""
        if self._end_reason is not None:
            await self._skip_unfinished(lines, self._end_reason)
        output, errors = bytearray(), bytearray()
        async for result in self._results(line.number for line in lines):
            (output if result.is_completed else errors).extend(result.text)
        state = self._end_reason if self._end_reason in ("cancelled", "expired") else "completed"
        await self._finish(
            state,
            output_file_id=await self._store_file("output", bytes(output)),
            error_file_id=await self._store_file("error", bytes(errors)),
        )
        logger.info("batch %s ended: %s", self._batch.batch_id, state)

    async def _skip_unfinished(self, lines: list[InputLine], reason: EndReason) -> None:
        finished = await self._finished_lines()
        for line in lines:
            if line.number not in finished:
                await self._record(line, skipped_result(line, *_SKIPPED[reason]))

    async def _results(self, numbers: Iterable[int]) -> AsyncIterator[LineResult]:
        numbers = list(numbers)
        for first in range(0, len(numbers), _NUM_RESULTS_READ):
            part = numbers[first : first + _NUM_RESULTS_READ]
            for stored in await _until_available(partial(self._store.results, self._batch.batch_id, part)):
                if stored is not None:
                    yield LineResult.unpack(stored)

    async def _store_file(self, kind: str, data: bytes) -> str:
        """Store a result file and return its ID, or "" if there is no data.

        The ID is derived from the batch ID.
        """
        if not data:
            return ""
        batch_id = self._batch.batch_id
        file = StoredFile(
            file_id=f"file-{hashlib.sha256(f'{batch_id} {kind}'.encode()).hexdigest()[:32]}",
            name=f"{batch_id}_{kind}.jsonl",
            purpose="batch_output",
            created_at=int(time.time()),
        )
        await _until_available(
            partial(self._files.add, file, data, tenant=self._batch.tenant, is_limited=False)
        )
        return file.file_id

    async def _finish(self, state: str, *, output_file_id: str = "", error_file_id: str = "") -> None:
        finish = partial(self._store.finish, output_file_id=output_file_id, error_file_id=error_file_id)
        if await _until_available(partial(finish, self._batch.batch_id, state)):
            self._services.metrics.batch_ended(state)


async def _until_available(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call to a store until Redis is available, and return its result.

    All calls of a driver are idempotent. ``QueueHealth`` logs the outage.
    """
    while True:
        try:
            return await call()
        except QueueUnavailable:  # noqa: PERF203
            await asyncio.sleep(_STORE_RETRY_S)
