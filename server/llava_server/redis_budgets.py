"""The budgets of the data that clients can make the server store in Redis.

By default, the budgets are fractions of Redis's ``maxmemory``. The rest is reserved for the overhead of the
allocator, the queues, the event streams and the buffers of connections. A budget that is full does not affect
the others, so text requests succeed even if images or files have used all of theirs. If images are in a
separate store, their budget is a fraction of what this store can hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from llava_wire.controller_side.limits import SHARD_MARGIN

from llava_server.settings import Settings

__all__ = ["RedisBudgets"]

_MIB = 2**20
# Fractions of maxmemory. tests/server/test_redis_budgets.py checks that they leave the reserve.
_JOBS, _IMAGES, _FILES, _STORED = 0.20, 0.25, 0.20, 0.15
_IMAGE_STORE = 0.70  # fraction of a separate image store
_MAX_TOTAL = 0.85
_UNLIMITED_BYTES = 1024 * _MIB  # used in place of maxmemory if Redis has no limit


@dataclass(frozen=True)
class RedisBudgets:
    """The maximum total size of each class of data, in bytes.

    Jobs and images are distributed over all Redis servers of a sharded queue. The data that one server must
    be able to store is the total divided by ``spread``. Files and stored responses are on one server. If
    ``has_image_store`` is true, images are not on these servers.
    """

    jobs: int
    images: int
    files: int
    stored_responses: int
    spread: float = 1.0
    has_image_store: bool = False

    @classmethod
    def derive(cls, settings: Settings, maxmemory: int, image_store_bytes: int = 0) -> RedisBudgets:
        """Return the configured budgets. Those that are not configured are fractions of ``maxmemory``.

        ``maxmemory`` is that of each Redis server, in bytes. 0 means that Redis has no limit.
        ``image_store_bytes`` is the number of bytes that a separate image store can hold, or 0 if unknown.
        """
        total = maxmemory or _UNLIMITED_BYTES
        num_servers = len({shard.url for shard in settings.shards})
        margin = SHARD_MARGIN if len(settings.shards) > 1 else 1.0
        spread = num_servers / margin
        has_image_store = bool(settings.image_store.get_secret_value())
        images = total * _IMAGES * spread
        if has_image_store:
            images = (image_store_bytes or _UNLIMITED_BYTES) * _IMAGE_STORE / margin

        def budget(configured_mb: int | None, default: float) -> int:
            return int(default) if configured_mb is None else configured_mb * _MIB

        return cls(
            jobs=budget(settings.max_all_jobs_mb, total * _JOBS * spread),
            images=budget(settings.max_all_images_mb, images),
            files=budget(settings.max_all_files_mb, total * _FILES),
            stored_responses=budget(settings.max_all_stored_mb, total * _STORED),
            spread=spread,
            has_image_store=has_image_store,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The budgets in bytes, keyed by class of data."""
        return {
            "jobs": self.jobs,
            "images": self.images,
            "files": self.files,
            "stored_responses": self.stored_responses,
        }

    def problem(self, maxmemory: int) -> str | None:
        """Describe why Redis can run out of memory although no budget is exceeded, or return None."""
        spread_data = self.jobs if self.has_image_store else self.jobs + self.images
        total = int(spread_data / self.spread) + self.files + self.stored_responses
        if not maxmemory:
            return (
                f"Redis has no memory limit, and clients can store up to {total // _MIB} MiB in it. Set "
                "maxmemory to less than the machine's memory."
            )
        if total <= maxmemory * _MAX_TOTAL:
            return None
        return (
            f"Clients can store up to {total // _MIB} MiB in Redis, and maxmemory is {maxmemory // _MIB} "
            f"MiB, of which {1 - _MAX_TOTAL:.0%} must remain free. Increase maxmemory, or reduce "
            "LLAVA_MAX_ALL_JOBS_MB, LLAVA_MAX_ALL_IMAGES_MB, LLAVA_MAX_ALL_FILES_MB or "
            "LLAVA_MAX_ALL_STORED_MB."
        )
