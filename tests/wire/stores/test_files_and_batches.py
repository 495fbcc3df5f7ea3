"""Files and batches in Redis: expiry, byte counts, and one driver per batch."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from llava_wire.redis.keys import PREFIX
from llava_wire.stores.batches import BatchSpec, BatchStore
from llava_wire.stores.files import FileLimits, FileStore, StoredFile

from tests.wire.harness import Harness

pytestmark = pytest.mark.anyio

FILE = StoredFile(file_id="file-1", name="in.jsonl", purpose="batch", created_at=1)


def make_spec(batch_id: str, tenant: str = "alice") -> BatchSpec:
    return BatchSpec(
        batch_id=batch_id,
        tenant=tenant,
        input_file_id="file-1",
        endpoint="/v1/chat/completions",
        completion_window="24h",
        created_at=1,
    )


def store(harness: Harness) -> BatchStore:
    """Return the batch store of one controller."""
    limits = FileLimits(3, 10_000, 100_000)
    return BatchStore(harness.server.url_of("server"), keep_s=60, lease_s=5, max_unfinished=8, limits=limits)


@pytest.fixture
async def files(harness: Harness) -> AsyncIterator[FileStore]:
    files = FileStore(harness.server.url_of("server"), ttl_s=60, limits=FileLimits(3, 100, 150))
    yield files
    await files.aclose()


@pytest.fixture
async def drivers(harness: Harness) -> AsyncIterator[tuple[BatchStore, BatchStore]]:
    first, second = store(harness), store(harness)
    yield first, second
    await first.aclose()
    await second.aclose()


async def test_an_unfinished_upload_is_not_visible_and_counts_until_it_expires(
    harness: Harness, files: FileStore
) -> None:
    await files._call("reserve", "file-1", "alice", 90, b"x", 3, 100, 150)
    assert await files.find("file-1", tenant="alice") is None
    assert await files.list_files(tenant="alice") == []
    assert harness.redis.get(PREFIX + "file_bytes") == b"90"
    for name in ("files", "files:alice"):
        harness.redis.zadd(PREFIX + name, {"file-1 90": 1})  # expires the upload
    await files.add(
        StoredFile(file_id="file-2", name="b", purpose="batch", created_at=2), b"y", tenant="alice"
    )
    assert harness.redis.get(PREFIX + "file_bytes") == b"1"


async def test_a_file_added_twice_is_one_file(harness: Harness, files: FileStore) -> None:
    for _ in range(2):
        await files.add(FILE, b"data", tenant="alice")
    (file,) = await files.list_files(tenant="alice")
    assert await files.read(file, tenant="alice") == b"data"
    assert await files.read(file, tenant="bob") is None
    assert harness.redis.get(PREFIX + "file_bytes") == b"4"


async def test_a_driver_that_lost_the_lease_writes_nothing(
    harness: Harness, drivers: tuple[BatchStore, BatchStore]
) -> None:
    first, second = drivers
    await first.create(make_spec("b1"), num_lines=2, window_s=60)
    assert await first.claim() is not None
    assert await second.claim() is None
    assert await first.record("b1", 1, b"one", is_completed=True, max_bytes=100) == "recorded"
    harness.redis.zadd(PREFIX + "batches", {"b1": 1})  # expires the lease
    assert await second.claim() is not None
    assert await first.renew("b1") is None
    assert await first.record("b1", 2, b"two", is_completed=True, max_bytes=100) == "not_driver"
    assert not await first.finish("b1", "completed", output_file_id="", error_file_id="")
    assert await second.finished_lines("b1") == {1}
    assert await second.record("b1", 1, b"other", is_completed=True, max_bytes=100) == "duplicate"
    assert await second.results("b1", [1, 2]) == [b"one", None]


async def test_one_batch_per_tenant_is_driven_at_a_time_and_other_tenants_continue(
    drivers: tuple[BatchStore, BatchStore],
) -> None:
    first, second = drivers
    for batch_id, tenant in (("b1", "alice"), ("b2", "alice"), ("b3", "bob")):
        await first.create(make_spec(batch_id, tenant), num_lines=1, window_s=60)
    taken = [await first.claim(), await second.claim(), await second.claim()]
    assert [each and each.batch.spec.batch_id for each in taken] == ["b1", "b3", None]
    await first.finish("b1", "completed", output_file_id="", error_file_id="")
    last = await second.claim()
    assert last is not None
    assert last.batch.spec.batch_id == "b2"
