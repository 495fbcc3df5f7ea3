"""How a line of a batch becomes an answer here: as a chat of the batch's owner, behind everybody else's."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.job import Job

from llava_server.api.batches.driver import BatchDriver, Line
from llava_server.api.chat.request import ChatRequest
from llava_server.api.chat.serializer import ChatSerializer
from llava_server.api.handler import build_chat_jobs
from llava_server.api.parse import parse_request
from llava_server.errors import ApiError
from llava_server.generation.collect import collect
from llava_server.generation.merged_outputs import MergedOutputs
from llava_server.lifespan import Services
from llava_server.middleware.rate_limit import RateLimiter
from llava_server.periodic import run_periodically
from llava_server.request_metrics import NoMetrics
from llava_server.shutdown import GracefulShutdown
from llava_server.tracing import use_tracer

__all__ = ["run_batches"]

_MIB = 2**20
_CANCEL_TIMEOUT_S = 5.0
_METRICS_INTERVAL_S = 1.0
_LOWEST = -1
_BELOW_ALL = -100  # whatever the key's own priority adds, the sum is the lowest


@asynccontextmanager
async def run_batches(services: Services) -> AsyncIterator[None]:
    """Run batches in the background until the block ends or the server begins to shut down."""
    asker = _Asker(services, services.rate_limiter)
    driver = BatchDriver(
        services.batches,
        services.files,
        asker.ask,
        services.metrics,
        services.batches_changed,
        num_parallel=services.settings.batch_parallel,
        max_result_bytes=services.settings.max_batch_output_mb * _MIB,
    )
    with use_tracer(services.tracer):
        tasks = [asyncio.create_task(driver.run(), name="batches")]
    tasks += [
        asyncio.create_task(_stop_on_shutdown(driver, services.shutdown), name="batch shutdown"),
        asyncio.create_task(
            run_periodically(_METRICS_INTERVAL_S, lambda: _update_metrics(services)), name="batch metrics"
        ),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _stop_on_shutdown(driver: BatchDriver, shutdown: GracefulShutdown) -> None:
    await shutdown.wait_begun()
    driver.stop()


async def _update_metrics(services: Services) -> None:
    with contextlib.suppress(QueueUnavailable):  # the registry logs it
        services.metrics.set_batches(await services.batches.survey())


class _Asker:
    def __init__(self, services: Services, limiter: RateLimiter) -> None:
        self._services = services
        self._limiter = limiter

    async def ask(self, line: Line) -> dict[str, Any]:
        """The completion. Raises ApiError; a key that is gone or over its limits is one for now."""
        services, tenant = self._services, line.batch.order.tenant
        if not services.api_keys.is_active(tenant):
            raise ApiError("invalid_api_key", "the key that made this batch is revoked")
        chat = parse_request(ChatRequest, json.dumps(line.request.body).encode())
        if chat.stream:
            raise ApiError("invalid_value", "stream cannot be true in a batch: leave it out", param="stream")
        await self._limiter.charge_request(tenant)
        job_set = await build_chat_jobs(services, chat, tenant=tenant, idempotency_key=line.key)
        jobs = [msgspec.structs.replace(job, priority=_BELOW_ALL) for job in job_set.jobs]
        outputs = MergedOutputs(services.controller, is_kept=True)
        try:
            await outputs.submit(jobs, job_set.pixels)
            answers = await collect(outputs, None, [NoMetrics() for _ in jobs])
        finally:
            await outputs.aclose()
            if line.is_unwanted():
                await self._cancel(jobs)
        shown = msgspec.structs.replace(jobs[0], priority=_LOWEST)
        completion = ChatSerializer(shown, job_set.model.fingerprint).to_response(answers)
        body: dict[str, Any] = msgspec.to_builtins(completion)
        return body

    async def _cancel(self, jobs: list[Job]) -> None:
        """Also works while the caller itself is being cancelled."""
        with anyio.move_on_after(_CANCEL_TIMEOUT_S, shield=True), contextlib.suppress(ApiError):
            for job in jobs:
                await self._services.controller.cancel(job.job_id, job.tenant)
