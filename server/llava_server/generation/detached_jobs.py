"""Kept jobs that nobody reads at the moment: how long each may wait for a reader to come back."""

from __future__ import annotations

import logging
import math
import time

from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import QueueUnavailable

from llava_server.generation.output_queue import Answer
from llava_server.request_metrics import Metrics

__all__ = ["Unread"]

logger = logging.getLogger(__name__)


class Unread:
    """Those of one controller, which ``abandon`` looks through every second."""

    def __init__(self, producer: JobProducer, metrics: Metrics, *, grace_s: float) -> None:
        self._producer = producer
        self._metrics = metrics
        self._grace_s = grace_s
        self._jobs: dict[str, tuple[str, float]] = {}  # tenant, wait for a reader until

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def add(self, answer: Answer) -> None:
        """Its reader left. One in the background may wait as long as it takes."""
        grace_s = math.inf if answer.is_background else self._grace_s
        self._jobs[answer.job_id] = answer.tenant, time.monotonic() + grace_s

    def forget(self, job_id: str) -> None:
        """It is read again, or it is over; unknown ones are nothing to forget."""
        self._jobs.pop(job_id, None)

    async def abandon(self) -> None:
        """Cancels those to which no reader came back. One read along elsewhere is asked about again."""
        now = time.monotonic()
        for job_id, (tenant, until) in list(self._jobs.items()):
            if until > now:
                continue
            try:
                is_over = await self._producer.abandon(job_id, tenant=tenant)
            except QueueUnavailable:
                return
            if is_over and self._jobs.pop(job_id, None) is not None:
                logger.info("job %s is cancelled: nobody came back for it", job_id)
                self._metrics.request_cancelled()
