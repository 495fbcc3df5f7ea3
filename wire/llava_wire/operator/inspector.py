"""A read-only view of the queue for display: workers, jobs, dead letters and server info."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from llava_wire.image_stores.location import open_image_store
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.messages.job import Job
from llava_wire.redis.connection import Arg, Link, retry_briefly
from llava_wire.redis.keys import PREFIX, blob_key
from llava_wire.redis.link_owner import LinkOwner

__all__ = ["DeadLetter", "Inspector", "QueueDepth", "RedisMemory", "SystemStatus", "WorkerStatus"]

_MAX_LETTERS = 1000
# The classes of data, and the kinds of their budgets in scripts/shared/budget.lua.
_BUDGETS = {"jobs": "job", "images": "pixel", "files": "file", "stored_responses": "response"}


@dataclass(frozen=True)
class WorkerStatus:
    """The status of one worker.

    ``num_tokens`` contains the number of output tokens of each running job, keyed by job ID. ``overdue_s`` is
    the number of seconds by which the worker's progress report is overdue. ``pending_command_id`` is the ID
    of the unfinished command, or empty if there is none. The heartbeat contains the status of the last
    command.
    """

    heartbeat: Heartbeat
    num_tokens: Mapping[str, int]
    overdue_s: float
    pending_command_id: str = ""


@dataclass(frozen=True)
class QueueDepth:
    """The number of jobs waiting for a model, by priority and in quarantine.

    ``cost`` is the total cost of these jobs in tokens.
    """

    num_high: int
    num_normal: int
    num_low: int
    num_quarantined: int
    cost: int


@dataclass(frozen=True)
class SystemStatus:
    """The live workers, controllers and queues.

    ``controllers`` contains the time in seconds since each controller's last beat, keyed by controller ID.
    ``queues`` is keyed by model.
    """

    workers: tuple[WorkerStatus, ...]
    controllers: Mapping[str, float]
    queues: Mapping[str, QueueDepth]
    num_dead_letters: int


@dataclass(frozen=True)
class DeadLetter:
    """A job that repeatedly crashed its worker. ``job`` is None if the request was too large to store."""

    entry_id: str
    job_id: str
    model: str
    tenant: str
    worker_id: str
    reason: str
    num_crashes: int
    num_tokens: int
    job: Job | None

    @property
    def created_at(self) -> float:
        """Return the creation time in Unix seconds, according to the Redis clock."""
        return int(self.entry_id.partition("-")[0]) / 1000


@dataclass(frozen=True)
class RedisMemory:
    """The memory of Redis in bytes. ``limit_bytes`` is 0 if Redis has no limit.

    ``stored_bytes`` contains the counted size of the data of all clients, keyed by class.
    """

    used_bytes: int
    limit_bytes: int
    stored_bytes: Mapping[str, int]

    @property
    def fullness(self) -> float:
        """The used fraction of the limit, or 0 if there is no limit."""
        return self.used_bytes / self.limit_bytes if self.limit_bytes else 0.0


class Inspector(LinkOwner):
    """Reads the state of the queue. All methods raise QueueUnavailable if Redis is unavailable."""

    def __init__(
        self, url: str, *, timeout_s: float = 2.0, prefix: str = PREFIX, image_store: str = ""
    ) -> None:
        super().__init__(Link(url, timeout_s=timeout_s, max_connections=2, prefix=prefix))
        self.image_store = open_image_store(image_store, prefix)

    async def status(self) -> SystemStatus:
        """Return the live workers and controllers, and the queues for the models that these workers serve."""
        workers, _, _, _ = await self._script("inspect")
        models = sorted({model for row in workers if row[1] and (model := _heartbeat(row).model)})
        workers, controllers, queues, num_letters = await self._script("inspect", *models)
        return SystemStatus(
            tuple(_worker_status(row) for row in workers if row[1]),
            {
                name.decode(): age / 1000
                for name, age in zip(controllers[::2], controllers[1::2], strict=True)
            },
            {model: QueueDepth(*depth) for model, depth in zip(models, queues, strict=True)},
            num_letters,
        )

    async def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters, newest first."""
        entries = await self._command("XREVRANGE", f"{self._link.prefix}dlq", "+", "-", "COUNT", _MAX_LETTERS)
        return [_dead_letter(entry_id, fields) for entry_id, fields in entries]

    async def stored_images(self, job: Job) -> dict[str, bytes]:
        """Return the tiles of the job's images that are still stored, keyed by digest."""
        digests = list(dict.fromkeys(image.digest for image in job.images))
        if not digests:
            return {}
        if self.image_store is not None:
            tiles = [await self.image_store.get(digest) for digest in digests]
        else:
            tiles = await self._command("MGET", *(blob_key(digest, self._link.prefix) for digest in digests))
        return {digest: found for digest, found in zip(digests, tiles, strict=True) if found is not None}

    async def server_info(self) -> dict[str, Any]:
        """Return the INFO reply plus the measured latency (``ping_s``) and clock skew (``clock_ahead_s``)."""
        before = time.time()
        seconds, microseconds = await self._command("TIME")
        after = time.time()
        info: dict[str, Any] = await self._command("INFO")
        ahead_s = int(seconds) + int(microseconds) / 1e6 - (before + after) / 2
        return {**info, "ping_s": after - before, "clock_ahead_s": ahead_s}

    async def memory(self) -> RedisMemory:
        """Return the memory that Redis uses, and the sizes of the data that clients have stored."""
        info: dict[str, Any] = await self._command("INFO", "memory")
        totals = await self._command(
            "MGET", *(f"{self._link.prefix}{kind}_bytes" for kind in _BUDGETS.values())
        )
        stored = {name: max(int(total or 0), 0) for name, total in zip(_BUDGETS, totals, strict=True)}
        return RedisMemory(int(info["used_memory"]), int(info.get("maxmemory") or 0), stored)

    async def aclose(self) -> None:
        await super().aclose()
        if self.image_store is not None:
            await self.image_store.aclose()

    async def _script(self, name: str, *args: Arg) -> Any:
        return await retry_briefly(lambda: self._link.script(name, *args))

    async def _command(self, *args: Arg) -> Any:
        return await self._link.command(*args)


def _heartbeat(row: list[Any]) -> Heartbeat:
    return msgspec.msgpack.decode(row[1], type=Heartbeat)


def _worker_status(row: list[Any]) -> WorkerStatus:
    jobs = row[2]
    num_tokens = {job.decode(): number for job, number in zip(jobs[::2], jobs[1::2], strict=True)}
    return WorkerStatus(_heartbeat(row), num_tokens, row[3] / 1000, row[4].decode())


def _dead_letter(entry_id: bytes, fields: Mapping[bytes, bytes]) -> DeadLetter:
    text = {name.decode(): value.decode() for name, value in fields.items() if name != b"payload"}
    payload = fields.get(b"payload")
    return DeadLetter(
        entry_id.decode(),
        text["job"],
        text["model"],
        text["tenant"],
        text["worker"],
        text.get("reason", ""),
        int(text["crashes"]),
        int(text.get("tokens") or 0),
        msgspec.msgpack.decode(payload, type=Job) if payload else None,
    )
