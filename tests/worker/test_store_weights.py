"""A worker serves requests before its weights are stored, and then shares the stored weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from llava_wire.redis.shards import Shard
from llava_wire.worker_side.sharded_consumer import ShardedConsumer
from llava_worker.loaded_model import LoadedModel
from llava_worker.model.loading import cached_file, unstored_weights
from llava_worker.model.loading.packed_file import write_file
from llava_worker.model_host import ModelHost
from llava_worker.open_model import open_in_thread
from llava_worker.settings import load_settings

from tests.waiting import async_wait_until
from tests.worker.job_client import connect_job_client
from tests.worker.running_worker import LEASE_S

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_pulls")]

QUESTION = "What can you do?"


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Map files even if they are too small for huge pages."""
    monkeypatch.setattr(cached_file, "_TRANSPARENT_HUGE_PAGES", Path("/does/not/exist"))


@asynccontextmanager
async def running_host(url: str, cache: Path) -> AsyncIterator[tuple[LoadedModel, asyncio.Task[int]]]:
    flags = ["--model", "tiny", "--device", "cpu", "--threads", "1", "--kv-cache-mb", "16"]
    settings = load_settings([*flags, "--redis-url", url, "--weights-cache", str(cache)])
    model = open_in_thread(settings).result()
    host = ModelHost(settings, model)
    consumer = await ShardedConsumer.connect([Shard(url)], model.heartbeat, lease_s=LEASE_S)
    task = asyncio.create_task(host.run(consumer))
    try:
        yield model, task
    finally:
        host.drain()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.aclose()


def is_mapped(cache: Path) -> bool:
    return f"{cache}/" in Path("/proc/self/maps").read_text()


async def test_responses_before_and_after_the_weights_are_stored_are_equal(
    queue_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, loop = asyncio.Event(), asyncio.get_running_loop()

    def write_later(*arguments: object) -> None:
        asyncio.run_coroutine_threadsafe(may_write.wait(), loop).result()
        write_file(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(unstored_weights, "write_file", write_later)
    async with (
        connect_job_client(queue_url, model="tiny-llava") as client,
        running_host(queue_url, tmp_path),
    ):
        first = await client.complete(QUESTION, max_tokens=8)
        assert first and not list(tmp_path.glob("*.weights"))
        may_write.set()
        await async_wait_until(lambda: is_mapped(tmp_path))
        assert await client.complete(QUESTION, max_tokens=8) == first


async def test_a_worker_that_maps_stored_weights_stores_nothing(queue_url: str, tmp_path: Path) -> None:
    async with running_host(queue_url, tmp_path) as (model, _):
        assert model.unstored_weights is not None
        await async_wait_until(lambda: is_mapped(tmp_path))
    (path,) = tmp_path.glob("*.weights")
    inode = path.stat().st_ino
    async with running_host(queue_url, tmp_path) as (model, _):
        assert model.unstored_weights is None
    assert path.stat().st_ino == inode


async def test_a_worker_that_is_drained_while_it_stores_its_weights_leaves_no_file(
    queue_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_slowly(path: Path, parameters, key: bytes, on_chunk) -> None:  # type: ignore[no-untyped-def]
        path.touch()
        while True:
            on_chunk()

    monkeypatch.setattr(unstored_weights, "write_file", write_slowly)
    async with running_host(queue_url, tmp_path) as (_, task):
        await async_wait_until(lambda: bool(list(tmp_path.glob("*.tmp"))))
    assert await task == 0
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob("*.weights"))


async def test_a_worker_continues_if_its_weights_cannot_be_stored(
    queue_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unstored_weights, "_MAX_SHARE", 0.0)
    async with (
        connect_job_client(queue_url, model="tiny-llava") as client,
        running_host(queue_url, tmp_path),
    ):
        await async_wait_until(lambda: "more than half of the free space" in caplog.text)
        assert await client.complete(QUESTION, max_tokens=8)
    assert not list(tmp_path.glob("*.weights"))
