"""The one blocking read of a controller, and the healing around it.

Each turn: has Redis been replaced (then: a new identity, and every job is suspect); look after quiet jobs;
settle the suspects by ``resync``; read what is new. Delivered events end up in ``ledger.ready``.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncIterator, Iterator

from llava_wire.controller_side.delivery_ledger import DeliveryLedger, LiveJob
from llava_wire.controller_side.submission import submission, to_milliseconds
from llava_wire.messages.event import ErrorCode, Event
from llava_wire.redis.connection import UNAVAILABLE, Link, pause
from llava_wire.redis.keys import out_key

__all__ = ["EventReader"]

BLOCK_MS = 2000
_NOTICE = re.compile(rb"([!-~]+) ([0-9]{1,9}|\?)")  # a job, and a place in its log
_log = logging.getLogger(__name__)


class EventReader:
    """Reads for one ledger. ``turn`` must not run twice at once.

    ``link`` is for commands; the reader is a connection of its own. ``check_interval_s`` is
    how long a live job may be quiet before Redis is asked whether a notice was lost.
    """

    def __init__(self, url: str, link: Link, ledger: DeliveryLedger, *, check_interval_s: float) -> None:
        self._link = link
        self._ledger = ledger
        self._reader = Link(
            url, timeout_s=BLOCK_MS / 1000 + 3, max_connections=1, on_connect=self._note_connection
        )
        self._check_interval_s = check_interval_s
        self._num_connections = 0  # made so far
        self._known_connection = -1  # the one whose server we have asked who it is
        self._run_id: str | None = None
        self._stream = ("", "0-0")  # whose stream we read, and how far

    async def follow(self) -> AsyncIterator[list[tuple[str, Event]]]:
        """Batches for ever; while Redis is away, only the ends of jobs whose deadline passes."""
        failures = 0
        while True:
            try:
                await self.turn(BLOCK_MS)
                failures = 0
            except UNAVAILABLE as error:
                self._known_connection = -1  # ask before the next read, which may block
                if not failures:
                    _log.warning("redis is unavailable: %s", error)
                await pause(failures)
                failures += 1
            self._ledger.expire()
            if self._ledger.ready:
                yield self._ledger.take_ready()

    async def turn(self, block_ms: int | None) -> None:
        """One round; waits up to ``block_ms`` for news (None: not at all). Raises one of ``UNAVAILABLE``."""
        await self.notice_new_server()
        await self._cancel_regretted()
        await self._check_quiet_jobs()
        await self._settle_suspects()
        if not self._ledger.ready:
            await self._read(block_ms)

    async def notice_new_server(self) -> None:
        """Remember which server this is, if it is the first; else, if it is another, doubt everything."""
        while self._known_connection != self._num_connections:  # twice if asking makes the connection
            connection = self._num_connections
            run_id = await self._reader.run_id()
            if connection != self._num_connections:
                continue
            if self._run_id not in (None, run_id):
                _log.warning("redis is another server now: resynchronising %d jobs", len(self._ledger.live))
                self._ledger.take_new_identity()
            self._known_connection, self._run_id = connection, run_id

    async def aclose(self) -> None:
        await self._reader.aclose()

    def _note_connection(self) -> None:
        self._num_connections += 1

    async def _cancel_regretted(self) -> None:
        for job_id, regret in list(self._ledger.regrets.items()):
            tenant, nonce = regret
            await self._link.script("cancel", job_id, tenant, self._ledger.controller_id, 1, 0, nonce)
            if self._ledger.regrets.get(job_id) == regret:
                del self._ledger.regrets[job_id]

    async def _check_quiet_jobs(self) -> None:
        before = time.monotonic() - self._check_interval_s
        quiet = [
            item for item in self._ledger.live.items() if item[1].is_submitted and item[1].touched <= before
        ]
        if not quiet:
            return
        pairs = [arg for job_id, live in quiet for arg in (job_id, len(live.frames))]
        for job_id in await self._link.script("check", self._ledger.controller_id, *pairs):
            self._ledger.suspect(job_id.decode())
        for _, live in quiet:
            live.touched = time.monotonic()

    async def _settle_suspects(self) -> None:
        for job_id in list(self._ledger.suspects):
            live = self._ledger.live.get(job_id)
            if live and live.is_submitted:
                await self._resync(job_id, live)
        for former_id in list(self._ledger.former_ids):
            await self._link.script("disown", former_id)
            self._ledger.former_ids.remove(former_id)

    async def _resync(self, job_id: str, live: LiveJob) -> None:
        controller_id = self._ledger.controller_id
        state, missing, tail, last_entry = await self._link.script(
            "resync", *submission(live, controller_id), live.owner, live.next_offset, *live.frames
        )
        if self._ledger.live.get(job_id) is not live:  # cancelled meanwhile; the script made it anew
            self._ledger.suspect(job_id)  # where it is read here again, under a nonce of its own
            if job_id not in self._ledger.live:
                self._ledger.regrets[job_id] = live.job.tenant, live.nonce
            return
        if controller_id != self._ledger.controller_id:
            return  # still suspect: memory was lost again
        del self._ledger.suspects[job_id]
        if state == b"moved":
            self._ledger.hand_over(job_id)
        elif state == b"cancelled":
            self._ledger.fail(job_id, ErrorCode.ANSWER_CANCELLED, "this answer was cancelled: ask again")
        live.settled_at = _stream_id(last_entry)
        for frame in tail:
            self._ledger.deliver(job_id, len(live.frames), frame)
        if missing:
            await self._supply(job_id, live, [digest.decode() for digest in missing])

    async def _supply(self, job_id: str, live: LiveJob, digests: list[str]) -> None:
        if not all(digest in live.pixels for digest in digests):  # taken over after they were gone
            self._ledger.fail(
                job_id, ErrorCode.INTERNAL_ERROR, "the pictures of this job are lost: send it again"
            )
            self._ledger.regrets[job_id] = live.job.tenant, ""
            return
        pairs = [arg for digest in digests for arg in (digest, live.pixels[digest])]
        self._ledger.suspect(job_id)  # until they have arrived
        await self._link.script("supply", job_id, to_milliseconds(live.ttl_s), *pairs)
        self._ledger.suspects.pop(job_id, None)

    async def _read(self, block_ms: int | None) -> None:
        controller_id = self._ledger.controller_id
        last_id = self._stream[1] if self._stream[0] == controller_id else "0-0"
        blocking = () if block_ms is None else ("BLOCK", block_ms)
        answer = await self._reader.command(
            "XREAD", "COUNT", 1000, *blocking, "STREAMS", out_key(controller_id), last_id
        )
        is_known = self._known_connection == self._num_connections
        if not is_known or controller_id != self._ledger.controller_id:
            return  # perhaps another server's answer: ask first; nothing is lost, for last_id stays
        for entry_id, job_id, verb, payload in _entries(answer):
            if verb == "?":
                self._ledger.suspect(job_id)
            else:
                self._ledger.hear(job_id, int(verb), payload, _stream_id(entry_id))
            last_id = entry_id.decode()
        self._stream = (controller_id, last_id)


def _stream_id(text: bytes) -> tuple[int, int]:
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)


def _entries(
    answer: list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]],
) -> Iterator[tuple[bytes, str, str, bytes]]:
    """(entry id, job id, verb, payload) of what XREAD answers; a verb is a place in the log, or "?"."""
    for _, entries in answer or []:
        for entry_id, fields in entries:
            for name, payload in fields.items():
                if found := _NOTICE.fullmatch(name):
                    yield entry_id, found[1].decode(), found[2].decode(), payload
                else:
                    _log.error("the stream of events has something that is none: passed over")
                    yield entry_id, "", "?", b""  # about nobody, and read
