"""Runs batch requests on behalf of their tenants, at the lowest priority."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import anyio
from llava_wire.messages.job import Job

from llava_server.api.batches.endpoints import ENDPOINTS, LineContext
from llava_server.api.batches.jsonl import InputLine, LineResult, completed_result, failed_result
from llava_server.errors import ApiError
from llava_server.generation.collect import CollectedChoice, collect
from llava_server.generation.merged_outputs import MergedOutputs
from llava_server.lifespan import Services
from llava_server.metrics import NoMetrics
from llava_server.tracing import set_error_type

__all__ = ["LineRunner"]

logger = logging.getLogger(__name__)

_RETRY_S = 5.0
_CANCEL_TIMEOUT_S = 5.0
_DEFECT = "The server encountered an internal error while processing this request."


class LineRunner:
    """Runs batch requests on behalf of their tenants, without an HTTP request."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def run(self, line: InputLine, *, should_cancel: Callable[[], bool]) -> LineResult:
        """Run a request and return its result. Temporary failures are retried. A defect ends the request.

        If this call is interrupted and ``should_cancel`` returns true, the jobs are cancelled. Otherwise the
        jobs keep running, and the next attempt to run the line (on any server) reads their output.
        """
        while True:
            try:
                completion = await self._complete(line, should_cancel)
            except ApiError as error:  # noqa: PERF203
                if not _is_temporary(error):
                    set_error_type(error.code)
                    return failed_result(line, error)
                await asyncio.sleep(error.retry_after_s or _RETRY_S)
            except Exception:
                logger.exception("batch %s: request %d crashed", line.batch.batch_id, line.number)
                self._services.metrics.task_crashed("batch line")
                set_error_type("internal_error")
                return failed_result(line, ApiError("internal_error", _DEFECT))
            else:
                return completed_result(line, completion)

    async def _complete(self, line: InputLine, should_cancel: Callable[[], bool]) -> bytes:
        """Return the response to a request, in JSON. Raises ApiError."""
        services, tenant = self._services, line.batch.tenant
        if not services.api_keys.is_active(tenant):
            raise ApiError("invalid_api_key", "The API key that created this batch has been revoked.")
        await services.rate_limiter.charge_request(tenant)
        run_jobs = partial(self._run_jobs, should_cancel)
        context = LineContext(services, tenant, line.request_id, run_jobs)
        return await ENDPOINTS[line.url](context, line.body)

    async def _run_jobs(
        self,
        should_cancel: Callable[[], bool],
        jobs: Sequence[Job],
        pixels: Mapping[str, bytes],
        field: str | Sequence[str],
    ) -> list[CollectedChoice]:
        outputs = MergedOutputs(self._services.controller, is_resumable=True, field=field)
        try:
            await outputs.submit(jobs, pixels)
            return await collect(outputs, None, [NoMetrics() for _ in jobs])
        finally:
            await outputs.aclose()
            if should_cancel():
                await self._cancel(jobs)

    async def _cancel(self, jobs: Sequence[Job]) -> None:
        """Cancel the jobs, even if the calling task is being cancelled."""
        with anyio.move_on_after(_CANCEL_TIMEOUT_S, shield=True), contextlib.suppress(ApiError):
            for job in jobs:
                await self._services.controller.cancel(job.job_id, job.tenant)


def _is_temporary(error: ApiError) -> bool:
    """Return whether the error may be temporary, such as a full queue, a rate limit or a revoked key."""
    if error.code == "insufficient_memory":  # has status 503, but retrying would not help
        return False
    return error.kind.status in (408, 409, 429, 503) or error.code == "invalid_api_key"
