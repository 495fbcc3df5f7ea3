"""Storing lost images again in the background, so that an outage of the image store delays no stream."""

from __future__ import annotations

import asyncio
import logging

from llava_wire.controller_side.delivery_ledger import DeliveryLedger, LiveJob
from llava_wire.controller_side.image_uploader import ImagesLost, ImageUploader
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.event import ErrorCode
from llava_wire.redis.connection import Link, backoff

__all__ = ["IMAGES_LOST", "ImageSupplier"]

IMAGES_LOST = "The images of this request are no longer stored. Send the request again."
_UNREADABLE = (
    "The workers could not read the images of this request from the image store. Send the request again. If "
    "the error persists, check that LLAVA_IMAGE_STORE is the same store for all servers and workers."
)
_MAX_SUPPLIES = 10  # per job, with increasing delays of about 15 seconds in total
_MAX_UPLOADS = 4  # simultaneous uploads after an outage
_log = logging.getLogger(__name__)


class ImageSupplier:
    """Stores the images of parked jobs again, and requeues the jobs.

    A job is parked if a worker cannot read its images, because the store has lost them or is unavailable. In
    an outage, a job waits until the store is available again, or until its deadline.
    """

    def __init__(self, link: Link, ledger: DeliveryLedger, uploader: ImageUploader) -> None:
        self._link = link
        self._ledger = ledger
        self._uploader = uploader
        self._uploads = asyncio.Semaphore(_MAX_UPLOADS)
        self._tasks: dict[LiveJob, asyncio.Task[None]] = {}

    def supply(self, live: LiveJob) -> None:
        """Start to supply the images of a job, unless this is already in progress. Never raises."""
        for job in [job for job, task in self._tasks.items() if task.done()]:
            self._tasks.pop(job).result()  # does not raise
        if live not in self._tasks:
            self._tasks[live] = asyncio.ensure_future(self._supply_or_fail(live))

    async def aclose(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _supply_or_fail(self, live: LiveJob) -> None:
        try:
            await self._supply(live)
        except ImagesLost:
            self._ledger.fail(live, ErrorCode.INTERNAL_ERROR, IMAGES_LOST)
        except Exception:  # a defect
            _log.exception("the images of job %s could not be stored again", live.job.job_id)
            self._ledger.fail(live, ErrorCode.INTERNAL_ERROR, IMAGES_LOST)

    async def _supply(self, live: LiveJob) -> None:
        if live.num_supplies:
            await backoff(live.num_supplies, first_s=0.05, max_s=4.0)
        num_failures = 0
        while self._ledger.find(live.job.job_id) is live:
            if live.num_supplies == _MAX_SUPPLIES:
                self._ledger.fail(live, ErrorCode.INTERNAL_ERROR, _UNREADABLE)
                return
            try:
                async with self._uploads:
                    await self._uploader.upload(live)
                    await self._link.script("supply_images", live.job.job_id, live.remaining_ms)
                live.num_supplies += 1
                return
            except QueueUnavailable as error:
                _log.warning("job %s waits for its images: %s", live.job.job_id, error)
            await backoff(num_failures, first_s=0.1, max_s=2.0)
            num_failures += 1
