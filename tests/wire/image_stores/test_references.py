"""Images in a separate store: the queue contains only references, and lost images are stored again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llava_wire.controller_side import image_supplier
from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import ImageStoreUnavailable, QueueFull, TenantOverLimit
from llava_wire.image_stores.redis_server import RedisImageStore
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.job import ImageRef
from llava_wire.operator.inspector import Inspector
from llava_wire.redis.keys import PREFIX
from llava_wire.redis.shards import queue_shards
from llava_wire.worker_side.consumer import JobConsumer

from tests.waiting import async_wait_until
from tests.wire.conftest import running
from tests.wire.harness import STOP, Harness, frame, make_image, make_job
from tests.wire.image_stores.places import PLACES, FolderPlace, Place

pytestmark = pytest.mark.anyio


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with PLACES[request.param](tmp_path) as place:
        yield place


async def open_producer(harness: Harness, place: Place, **options: Any) -> JobProducer:
    return await harness.producer(image_store=place.url_of("server"), **options)


async def open_consumer(harness: Harness, place: Place, worker_id: str = "w1") -> JobConsumer:
    return await harness.consumer(worker_id, image_store=place.url_of("worker"))


def make_large_image(name: str) -> tuple[ImageRef, bytes]:
    image, tiles = make_image(name, size=336 * 336 * 3)
    return ImageRef(digest=image.digest, num_tiles=1, side=336, width=336, height=336), tiles


def queue_bytes(harness: Harness) -> int:
    """Return the memory of all keys in the queue's Redis."""
    return sum(harness.redis.memory_usage(key, samples=0) or 0 for key in harness.keys(""))


def drop_counts(harness: Harness) -> None:
    """Delete the counts of images whose references were deleted, which would expire with the jobs."""
    assert not harness.keys("ref:")
    harness.redis.delete(PREFIX + "pixels", PREFIX + "pixel_bytes")


async def pull_later(consumer: JobConsumer) -> Assignment:
    """Pull until a job is assigned, as a worker does."""
    for _ in range(60):  # each pull waits for up to a second
        for assignment in await consumer.pull(1):
            return assignment
    raise AssertionError("no job was assigned")


async def test_the_queue_contains_only_references(harness: Harness, place: Place) -> None:
    producer, consumer = await open_producer(harness, place), await open_consumer(harness, place)
    image, tiles = make_large_image("cat")
    await producer.submit(make_job(image), {image.digest: tiles})
    assert queue_bytes(harness) < 10_000
    assert place.digests() == {image.digest}
    (assignment,) = await consumer.pull(1)
    assert assignment.pixels == {image.digest: tiles}


async def test_without_an_image_store_the_queue_contains_the_images(harness: Harness) -> None:
    producer, (image, tiles) = await harness.producer(), make_large_image("cat")
    await producer.submit(make_job(image), {image.digest: tiles})
    assert queue_bytes(harness) > len(tiles)
    assert not harness.keys("ref:")


async def test_a_worker_with_a_store_also_runs_jobs_whose_images_are_in_the_queue(
    harness: Harness, place: Place
) -> None:
    """As while controllers are restarted with another setting."""
    before, after = await harness.producer(), await open_producer(harness, place)
    consumer = await open_consumer(harness, place)
    (cat, cat_tiles), (dog, dog_tiles) = make_image("cat"), make_image("dog")
    await before.submit(make_job(cat), {cat.digest: cat_tiles})
    await after.submit(make_job(dog), {dog.digest: dog_tiles})
    pulled = await consumer.pull(2)
    assert [each.pixels for each in pulled] == [{cat.digest: cat_tiles}, {dog.digest: dog_tiles}]


async def test_jobs_share_an_image_that_is_still_stored(harness: Harness, place: Place) -> None:
    producer, other = await open_producer(harness, place), await open_producer(harness, place)
    consumer, (image, tiles) = await open_consumer(harness, place), make_image("cat")
    for each in (producer, producer, other):
        await each.submit(make_job(image), {image.digest: tiles})
    assert [each.pixels for each in await consumer.pull(3)] == [{image.digest: tiles}] * 3
    assert harness.redis.get(PREFIX + "pixel_bytes") == b"12"


async def test_a_job_whose_images_the_store_has_lost_gets_them_again(harness: Harness, place: Place) -> None:
    producer, consumer = await open_producer(harness, place), await open_consumer(harness, place)
    image, tiles = make_image("cat")
    job, text_job = make_job(image), make_job()
    await producer.submit(job, {image.digest: tiles})
    await producer.submit(text_job, {})
    place.lose_data()
    assert [each.job for each in await consumer.pull(4)] == [text_job]
    client = harness.client(producer)
    again = await pull_later(consumer)
    assert (again.job, again.pixels) == (job, {image.digest: tiles})
    await consumer.emit([frame(again, 0, 1, final=STOP)])
    assert await client.receives_end(job) == STOP


async def test_a_lost_image_is_stored_again_for_the_next_job(harness: Harness, place: Place) -> None:
    producer, consumer = await open_producer(harness, place), await open_consumer(harness, place)
    image, tiles = make_image("cat")
    await producer.submit(make_job(image), {image.digest: tiles})
    place.lose_data()
    await producer.submit(make_job(image), {image.digest: tiles})
    assert len(await consumer.pull(2)) == 2


async def test_an_outage_of_the_store_affects_only_jobs_with_images(harness: Harness, place: Place) -> None:
    producer, consumer = await open_producer(harness, place), await open_consumer(harness, place)
    image, tiles = make_image("cat")
    waiting, text_job = make_job(image), make_job()
    await producer.submit(waiting, {image.digest: tiles})
    place.make_unavailable()
    client = harness.client(producer)
    for each in (image, make_image("dog")[0]):  # a known and a new image
        with pytest.raises(ImageStoreUnavailable) as caught:
            await producer.submit(make_job(each), {each.digest: tiles})
        assert caught.value.retry_after_s >= 1
    await producer.submit(text_job, {})
    assert (await pull_later(consumer)).job == text_job
    assert producer.num_image_store_errors.total() > 0
    place.make_available()
    again = await pull_later(consumer)
    assert (again.job, again.pixels) == (waiting, {image.digest: tiles})
    await consumer.emit([frame(again, 0, 1, final=STOP)])
    assert await client.receives_end(waiting) == STOP


async def test_a_full_store_rejects_only_jobs_with_images(harness: Harness) -> None:
    with running("valkey") as server:
        producer = await harness.producer(image_store=server.url_of("server"))
        server.client.config_set("maxmemory", 1)
        image, tiles = make_image("cat")
        with pytest.raises(ImageStoreUnavailable, match="out of memory|OOM"):
            await producer.submit(make_job(image), {image.digest: tiles})
        await producer.submit(make_job(), {})
        assert producer.num_image_store_errors == {"OOM": 1}
        harness.redis.delete(PREFIX + f"ref:{image.digest}")
        drop_counts(harness)


async def test_a_store_that_does_not_respond_delays_no_stream(harness: Harness) -> None:
    with running("valkey") as server:
        producer, consumer = await harness.producer(image_store=server.url), await harness.consumer()
        assert producer._uploader
        producer._uploader.store = RedisImageStore(server.url, timeout_s=600)
        job, assignment = await harness.running(producer, consumer)
        image, tiles = make_image("cat")
        waiting = make_job(image)
        await producer.submit(waiting, {image.digest: tiles})
        harness.redis.delete(f"{PREFIX}ref:{image.digest}")
        server.pause()
        client = harness.client(producer)
        assert await consumer._pull(1) == []  # the job is parked, and its images are to be stored again
        await async_wait_until(lambda: producer._reader._supplier and producer._reader._supplier._tasks)
        await consumer.emit([frame(assignment, 0, 1)])
        await client.receives(job, 1)
        server.resume()
        await async_wait_until(lambda: harness.redis.zcard(PREFIX + "wait:m"), "the job in the queue")


async def test_images_over_the_byte_limit_are_rejected_and_not_stored(harness: Harness, place: Place) -> None:
    producer = await open_producer(harness, place, max_pixel_bytes=20)
    (first, first_tiles), (second, second_tiles) = make_image("cat"), make_image("dog")
    await producer.submit(make_job(first), {first.digest: first_tiles})
    with pytest.raises(TenantOverLimit, match=r"use 12 bytes, and this request needs 12; the limit is 8"):
        await producer.submit(make_job(second), {second.digest: second_tiles})
    with pytest.raises(QueueFull, match=r"use 12 of 20 bytes, and this request needs 12"):
        await producer.submit(make_job(second, tenant="bob"), {second.digest: second_tiles})
    assert place.digests() == {first.digest}
    await producer.submit(make_job(first), {first.digest: first_tiles})  # already stored
    await producer.submit(make_job(), {})


async def test_images_without_a_live_job_are_deleted_to_make_room(harness: Harness, place: Place) -> None:
    producer = await open_producer(harness, place, max_pixel_bytes=20)
    consumer = await open_consumer(harness, place)
    (first, first_tiles), (second, second_tiles) = make_image("cat"), make_image("dog")
    await producer.submit(make_job(first), {first.digest: first_tiles})
    (assignment,) = await consumer.pull(1)
    await consumer.emit([frame(assignment, 0, 1, final=STOP)])
    await producer.submit(make_job(second), {second.digest: second_tiles})
    assert place.digests() == {second.digest}
    assert harness.keys("ref:") == {f"{PREFIX}ref:{second.digest}"}


async def test_the_next_controller_uses_the_stored_images(harness: Harness, place: Place) -> None:
    dead, successor = await open_producer(harness, place), await open_producer(harness, place)
    consumer, (image, tiles) = await open_consumer(harness, place), make_image("cat")
    job = make_job(image)
    await dead.submit(job, {image.digest: tiles})
    await successor.attach(job.job_id, tenant=job.tenant)
    harness.client(successor)
    harness.redis.delete(f"{PREFIX}ref:{image.digest}")  # as after an outage that a worker has noticed
    assert (await pull_later(consumer)).pixels == {image.digest: tiles}


async def test_a_job_fails_after_a_takeover_if_the_store_has_lost_its_images(
    harness: Harness, place: Place
) -> None:
    dead, successor = await open_producer(harness, place), await open_producer(harness, place)
    consumer, (image, tiles) = await open_consumer(harness, place), make_image("cat")
    job = make_job(image)
    await dead.submit(job, {image.digest: tiles})
    await successor.attach(job.job_id, tenant=job.tenant)
    place.lose_data()
    client = harness.client(successor)
    assert await consumer._pull(1) == []  # requeues the job, which the next pull parks
    assert await consumer._pull(1) == []
    final = await client.receives_end(job)
    assert final.error
    assert "images of this request are no longer stored" in final.error.message


@pytest.mark.parametrize("has_store", [True, False])
async def test_a_worker_with_another_store_does_not_run_the_job_and_the_error_names_the_setting(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_store: bool
) -> None:
    monkeypatch.setattr(image_supplier, "_MAX_SUPPLIES", 2)  # fewer delays
    place, other = FolderPlace(tmp_path / "images"), FolderPlace(tmp_path / "other")
    producer, (image, tiles) = await open_producer(harness, place), make_image("cat")
    consumer = await harness.consumer(image_store=other.url_of("worker") if has_store else "")
    job = make_job(image)
    client = harness.client(producer)
    await producer.submit(job, {image.digest: tiles})

    while not client.final(job):
        assert await consumer.pull(1) == []
    final = await client.receives_end(job)
    assert final.error
    assert "LLAVA_IMAGE_STORE" in final.error.message
    drop_counts(harness)


async def test_operators_can_read_the_stored_images_of_a_job(harness: Harness, place: Place) -> None:
    producer, (image, tiles) = await open_producer(harness, place), make_image("cat")
    job = make_job(image, make_image("dog")[0])
    await producer.submit(job, {image.digest: tiles, job.images[1].digest: tiles})
    inspector = Inspector(harness.server.url_of("server"), image_store=place.url_of("server"))
    assert (await inspector.stored_images(job)).keys() == {each.digest for each in job.images}
    await inspector.aclose()


async def test_a_damaged_file_is_stored_again(harness: Harness, tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "images")
    producer, consumer = await open_producer(harness, place), await open_consumer(harness, place)
    image, tiles = make_image("cat")
    await producer.submit(make_job(image), {image.digest: tiles})
    (path,) = place.folder.rglob("*.rgb")
    path.write_bytes(tiles[:5])  # for example, after a power failure
    harness.client(producer)
    assert (await pull_later(consumer)).pixels == {image.digest: tiles}


async def test_each_shard_deletes_only_its_own_images(harness: Harness, place: Place) -> None:
    """Both shards store the same image, and one of them drops it."""
    (first, first_tiles), (second, second_tiles) = make_image("cat"), make_image("dog")
    url, store = harness.server.url_of("server"), place.url_of("server")
    producers = [
        await JobProducer.connect(shard.url, prefix=shard.prefix, image_store=store, max_pixel_bytes=20)
        for shard in queue_shards([url], 2)
    ]
    for producer in producers:
        job = make_job(first)
        await producer.submit(job, {first.digest: first_tiles})
        await producer.cancel(job.job_id, tenant=job.tenant)
    await producers[0].submit(make_job(second), {second.digest: second_tiles})
    uploaders = [producer._uploader for producer in producers]
    stored = [await uploader.store.get(first.digest) for uploader in uploaders if uploader]
    assert stored == [None, first_tiles]
    for producer in producers:
        await producer.aclose()
    harness.redis.flushall()
