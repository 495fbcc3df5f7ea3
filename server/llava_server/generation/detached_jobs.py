"""Resumable jobs without a connected client. A job is cancelled unless a client reconnects in time."""

from __future__ import annotations

import logging
import math
import time

from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.errors import QueueUnavailable

from llava_server.generation.output_queue import OutputQueue
from llava_server.metrics import Metrics

__all__ = ["DetachedJobs"]

logger = logging.getLogger(__name__)


class DetachedJobs:
    """The detached jobs of one controller, which calls ``cancel_expired`` every second."""

    def __init__(self, producer: ShardedProducer, metrics: Metrics, *, grace_s: float) -> None:
        self._producer = producer
        self._metrics = metrics
        self._grace_s = grace_s
        self._jobs: dict[str, tuple[str, float]] = {}  # job ID -> tenant, deadline

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def add(self, output: OutputQueue) -> None:
        """Add a job. Unless it is a background job, it is cancelled after the grace period."""
        grace_s = math.inf if output.is_background else self._grace_s
        self._jobs[output.job_id] = output.tenant, time.monotonic() + grace_s

    def discard(self, job_id: str) -> None:
        """Remove a job that has ended or whose client has reconnected."""
        self._jobs.pop(job_id, None)

    async def cancel_expired(self) -> None:
        """Cancel jobs whose grace period has ended.

        If another connection is tailing a job, skip the job until the next call.
        """
        now = time.monotonic()
        for job_id, (tenant, deadline) in list(self._jobs.items()):
            if deadline > now:
                continue
            try:
                is_cancelled = await self._producer.shard(job_id).cancel_unread(job_id, tenant=tenant)
            except QueueUnavailable:
                return
            if is_cancelled and self._jobs.pop(job_id, None) is not None:
                logger.info("job %s cancelled: no client reconnected within the grace period", job_id)
                self._metrics.request_cancelled()
