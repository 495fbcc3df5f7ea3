"""Reading a controller's event stream, and recovering from Redis failures.

Each poll does the following:

1. Check whether Redis was replaced or restarted. If so, switch to a new controller ID and resync every job.
2. Send pending cancel requests.
3. Check idle jobs against Redis, and resync the jobs that differ.
4. Add new frames from the stream to the ledger.

A defect that concerns one job, such as a key of the wrong type, ends only the stream of this job.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from llava_wire.controller_side.delivery_ledger import RECENT_READ_S, DeliveryLedger, LiveJob
from llava_wire.controller_side.image_supplier import IMAGES_LOST, ImageSupplier
from llava_wire.controller_side.image_uploader import ImageUploader
from llava_wire.controller_side.query_results import CancelReply
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.event import ErrorCode, Event
from llava_wire.redis.connection import Link, backoff
from llava_wire.redis.keys import out_key

__all__ = ["EventReader"]

BLOCK_MS = 2000
MAX_CHECKED = 500  # idle jobs per script call, which then blocks Redis for a few milliseconds
MAX_CHECKS_PER_S = 1000  # a controller with more than 5,000 live jobs checks each of them less often
_NOTICE = re.compile(rb"([!-~]+) ([0-9]{1,9}|\?)")  # job ID, then the index of a frame in its log, or "?"
_log = logging.getLogger(__name__)


class EventReader:
    """Copies new frames from a controller's event stream to its ledger. Calls to ``poll`` must not overlap.

    ``link`` is used to call scripts. Blocking reads use a separate connection. If a live job receives no
    events for ``check_interval_s`` seconds, its state is checked against Redis, in case a stream entry was
    lost. ``uploader`` is None if the queue stores the images.
    """

    def __init__(
        self,
        url: str,
        link: Link,
        ledger: DeliveryLedger,
        uploader: ImageUploader | None = None,
        *,
        check_interval_s: float,
    ) -> None:
        self._link = link
        self._ledger = ledger
        self._supplier = None if uploader is None else ImageSupplier(link, ledger, uploader)
        self._reader = Link(
            url,
            timeout_s=BLOCK_MS / 1000 + 3,
            max_connections=1,
            on_connect=self._count_connection,
            prefix=link.prefix,
        )
        self._check_interval_s = check_interval_s
        self._num_connections = 0  # opened so far
        self._known_connection = -1  # number of the last connection on which the server was identified
        self._run_id: str | None = None
        self._position = ("", "0-0")  # controller ID of the stream, and ID of the last entry read
        self.error: QueueUnavailable | None = None  # raised by the last poll of ``follow``

    @property
    def num_redis_errors(self) -> Counter[str]:
        """The number of errors of the blocking reads, keyed by kind."""
        return self._reader.num_errors

    async def follow(self) -> AsyncIterator[list[tuple[str, Event]]]:
        """Yield batches of events forever. Deadlines are enforced even while Redis is unavailable.

        A defect is raised. If the caller then follows again, all live jobs are first compared with Redis, so
        no event is lost or repeated.
        """
        failures = 0
        while True:
            try:
                await self.poll(BLOCK_MS)
                failures, self.error = 0, None
            except QueueUnavailable as error:
                self._known_connection = -1  # identify the server again before the next blocking read
                self.error = error
                await backoff(failures)
                failures += 1
            except Exception:
                self._ledger.request_full_resync()
                raise
            self._ledger.expire()
            if self._ledger.has_ready:
                yield self._ledger.take_ready()

    async def poll(self, block_ms: int | None) -> None:
        """Run one poll. Raises QueueUnavailable.

        Wait up to ``block_ms`` milliseconds for new frames, or do not wait if it is None.
        """
        await self.identify_server()
        await self._send_pending_cancels()
        await self._check_idle_jobs()
        await self._resync_jobs()
        if not self._ledger.has_ready:
            await self._read(block_ms)

    async def identify_server(self) -> None:
        """Record the run ID of the server. If it has changed, switch to a new controller ID."""
        while self._known_connection != self._num_connections:  # repeat if run_id() opened a connection
            connection = self._num_connections
            run_id = await self._reader.run_id()
            if connection != self._num_connections:
                continue
            if self._run_id not in (None, run_id):
                _log.warning(
                    "redis was replaced or restarted: resynchronizing %d jobs", self._ledger.num_live
                )
                self._ledger.change_identity()
            self._known_connection, self._run_id = connection, run_id

    async def aclose(self) -> None:
        if self._supplier is not None:
            await self._supplier.aclose()
        await self._reader.aclose()

    def _count_connection(self) -> None:
        self._num_connections += 1

    async def _send_pending_cancels(self) -> None:
        for cancel in self._ledger.pending_cancels:
            recent_ms = int(RECENT_READ_S * 1000) if cancel.spares_readers else 0
            args = (cancel.job_id, cancel.tenant, self._ledger.controller_id, 1, recent_ms, cancel.nonce)
            try:
                if await self._link.script("cancel", *args) == CancelReply.HAS_READER:
                    continue  # until the next poll
            except QueueUnavailable:
                raise
            except Exception:  # a defect; the job ends at its deadline
                _log.exception("job %s could not be cancelled", cancel.job_id)
            self._ledger.cancel_sent(cancel)

    async def _check_idle_jobs(self) -> None:
        interval_s = max(self._check_interval_s, self._ledger.num_live / MAX_CHECKS_PER_S)
        idle = self._ledger.idle_jobs(interval_s)
        for start in range(0, len(idle), MAX_CHECKED):
            await self._check_jobs(idle[start : start + MAX_CHECKED])

    async def _check_jobs(self, idle: Sequence[LiveJob]) -> None:
        pairs = [arg for live in idle for arg in (live.job.job_id, len(live.frames))]
        try:
            changed = await self._link.script("find_changed_jobs", self._ledger.controller_id, *pairs)
            job_ids = [job_id.decode() for job_id in changed]
        except QueueUnavailable:
            raise
        except Exception:  # a defect of at least one job, which its resync finds
            _log.exception("idle jobs could not be compared with Redis")
            job_ids = [live.job.job_id for live in idle]
        for job_id in job_ids:
            self._ledger.request_resync(job_id)
        for live in idle:
            live.mark_active()

    async def _resync_jobs(self) -> None:
        for job_id in self._ledger.jobs_to_resync:
            live = self._ledger.find(job_id)
            if live and live.is_submitted:
                await self._resync_or_fail(live)
        if self._ledger.jobs_to_resync:
            return  # a submission under a former ID may be in progress, and remove_controller would cancel it
        for controller_id in self._ledger.former_ids:
            await self._link.script("remove_controller", controller_id)
            self._ledger.remove_former_id(controller_id)

    async def _resync_or_fail(self, live: LiveJob) -> None:
        try:
            await self._resync(live)
        except QueueUnavailable:
            raise
        except Exception:  # a defect
            _log.exception("job %s failed because it could not be compared with Redis", live.job.job_id)
            message = "The state of this request in Redis is damaged. Send the request again."
            self._ledger.fail(live, ErrorCode.INTERNAL_ERROR, message)

    async def _resync(self, live: LiveJob) -> None:
        controller_id, epoch = self._ledger.controller_id, live.epoch
        state, missing, tail, last_entry = await self._link.script(
            "resync_job",
            *live.creation_args(controller_id),
            epoch,
            live.next_offset,
            live.model_digest,
            *live.frames,
        )
        entry_id = _entry_id(last_entry)
        is_current = self._ledger.apply_resync(live, controller_id, epoch, state, tail, entry_id)
        if is_current and missing:
            await self._supply_images(live, controller_id, [digest.decode() for digest in missing])

    async def _supply_images(self, live: LiveJob, controller_id: str, digests: list[str]) -> None:
        """Resend images that were lost. Fail the job if this controller does not have all of them."""
        if self._supplier is not None:
            self._supplier.supply(live)
            return
        if not all(digest in live.pixels for digest in digests):
            self._ledger.fail(live, ErrorCode.INTERNAL_ERROR, IMAGES_LOST)
            return
        job_id = live.job.job_id
        pairs = [arg for digest in digests for arg in (digest, live.pixels[digest])]
        self._ledger.request_resync(job_id)  # remains in effect if the next call fails
        await self._link.script("supply_images", job_id, live.remaining_ms, *pairs)
        self._ledger.finish_resync(live, controller_id)

    async def _read(self, block_ms: int | None) -> None:
        controller_id = self._ledger.controller_id
        last_id = self._position[1] if self._position[0] == controller_id else "0-0"
        blocking = () if block_ms is None else ("BLOCK", block_ms)
        reply = await self._reader.command(
            "XREAD", "COUNT", 1000, *blocking, "STREAMS", out_key(controller_id, self._link.prefix), last_id
        )
        is_known = self._known_connection == self._num_connections
        if not is_known or controller_id != self._ledger.controller_id:
            return  # the reply may be from a new server, which the next poll identifies before it reads again
        for _, entries in reply or []:
            for entry_id, fields in entries:
                self._receive(_entry_id(entry_id), fields)
                last_id = entry_id.decode()
        self._position = (controller_id, last_id)

    def _receive(self, entry_id: tuple[int, int], fields: dict[bytes, bytes]) -> None:
        """Pass the frames of an entry to the ledger."""
        for name, payload in fields.items():
            if (match := _NOTICE.fullmatch(name)) is None:
                _log.error("skipping an invalid entry in the event stream")
                continue
            job_id, index = match.groups()
            if index == b"?":
                self._ledger.request_resync(job_id.decode())
            else:
                self._ledger.receive(job_id.decode(), int(index), payload, entry_id)


def _entry_id(text: bytes) -> tuple[int, int]:
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)
