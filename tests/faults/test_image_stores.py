"""Outages and data loss of an image store, with real processes: streams continue, and no job is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from typing import Any

import httpx2
import pytest
from llava_server.operator.cli.doctor import run_checks
from llava_server.settings import Settings
from llava_wire.operator.sharded_inspector import ShardedInspector

from tests.faults.streams import Stream, Streams, story
from tests.machine_speed import scaled
from tests.processes import ControllerProcess, running_controller, worker_factory
from tests.server.image_files import encoded, part, scene
from tests.waiting import async_wait_until
from tests.wire.conftest import running
from tests.wire.image_stores.places import PLACES, Place
from tests.wire.redis_server import RedisServer

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

NUM_STREAMS = 4
LONG, SHORT = 100, 20  # lengths of outputs in tokens


class System:
    """A controller and a worker with ``NUM_STREAMS`` slots, the queue, and the place of the image store."""

    def __init__(self, controller: ControllerProcess, queue: RedisServer, place: Place) -> None:
        self.controller = controller
        self.queue = queue
        self.place = place

    def start(self, streams: Streams, numbers: range, max_tokens: int) -> list[Stream]:
        """Start streams that ask about different images."""
        url = self.controller.url
        return [
            streams.start(url, story(number), max_tokens=max_tokens, **about_image(number))
            for number in numbers
        ]

    def stored_in_queue(self) -> set[str]:
        return {key.decode().split(":")[1] for key in self.queue.client.scan_iter("{lv}:*")}


def about_image(number: int) -> dict[str, Any]:
    """Return a conversation with a small image that differs from those of other numbers."""
    image = part(encoded(scene(40 + number, 20)))
    return {"messages": [{"role": "user", "content": [image, {"type": "text", "text": story(number)}]}]}


@pytest.fixture(scope="module", params=PLACES)
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("images")
    with ExitStack() as stack:
        place = stack.enter_context(PLACES[request.param](folder))
        queue = stack.enter_context(running("valkey"))
        start_worker = stack.enter_context(worker_factory(queue.url_of("worker"), folder))
        start_worker(max_num_sequences=NUM_STREAMS, echo_step_s=0.02, image_store=place.url_of("worker"))
        store = {"image_store": place.url_of("server")}
        controller = stack.enter_context(running_controller(queue.url_of("server"), folder, **store))
        yield System(controller, queue, place)


async def has_text(running: list[Stream]) -> None:
    await async_wait_until(lambda: all(stream.num_deltas > 2 for stream in running), "the first text")


async def start_and_wait(system: System, streams: Streams, first: int) -> tuple[list[Stream], list[Stream]]:
    """Start a stream in each slot, and streams that wait until these have ended. All images are stored."""
    numbers = range(first, first + 2 * NUM_STREAMS)
    running = system.start(streams, numbers[:NUM_STREAMS], LONG)
    await async_wait_until(lambda: all(stream.num_deltas > 2 for stream in running), "the first text")
    num_stored = len(system.place.digests())
    waiting = system.start(streams, numbers[NUM_STREAMS:], SHORT)
    await async_wait_until(lambda: len(system.place.digests()) == num_stored + NUM_STREAMS, "the images")
    return running, waiting


async def check_texts(system: System, streams: Streams, running: list[Stream], waiting: list[Stream]) -> None:
    """Check that all streams are complete. Compare the short ones with the same requests without faults."""
    assert [stream.error for stream in (*running, *waiting)] == [None] * 2 * NUM_STREAMS
    assert [stream.usage and stream.usage["completion_tokens"] for stream in running] == [LONG] * NUM_STREAMS
    first = int(waiting[0].prompt.rstrip(".").split()[-1])
    repeated = system.start(streams, range(first, first + NUM_STREAMS), SHORT)
    await streams.wait_for_all()
    assert [stream.text for stream in waiting] == [stream.text for stream in repeated]
    assert all(stream.text for stream in waiting)


async def test_an_outage_of_the_image_store_interrupts_no_stream_and_no_text_request(
    system: System, streams: Streams
) -> None:
    url = system.controller.url
    running, waiting = await start_and_wait(system, streams, first=0)
    assert {"ref", "users"} <= system.stored_in_queue()
    assert "blob" not in system.stored_in_queue()
    system.place.make_unavailable()
    body = {"model": "echo", "max_tokens": 3, **about_image(99)}
    rejected = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=scaled(30))
    assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "queue_unavailable")
    assert "image store" in rejected.json()["error"]["message"]
    assert float(rejected.headers["retry-after"]) >= 1
    texts = streams.start_many([url], NUM_STREAMS, max_tokens=5)
    await async_wait_until(lambda: all(stream.is_finished for stream in [*running, *texts]), "the streams")
    assert system.controller.is_ready
    assert system.controller.metric("llava_image_store_errors_total") >= 1
    assert not any(stream.num_deltas for stream in waiting)
    system.place.make_available()
    await streams.wait_for_all()
    for stream in texts:
        stream.assert_complete()
    await check_texts(system, streams, running, waiting)


async def test_no_job_is_lost_if_the_image_store_loses_all_data(system: System, streams: Streams) -> None:
    running, waiting = await start_and_wait(system, streams, first=100)
    system.place.lose_data()
    await streams.wait_for_all()
    await check_texts(system, streams, running, waiting)


async def test_doctor_reports_whether_the_image_store_works(system: System) -> None:
    store = system.place.url_of("server")
    url = system.queue.url_of("server")
    settings = Settings(redis_url=url, image_store=store)
    async with aclosing(ShardedInspector(settings.shards)) as inspector:
        found = [each for each in await run_checks(inspector, settings, url) if "image store" in each.text]
        system.place.make_unavailable()
        found += [each for each in await run_checks(inspector, settings, url) if "image store" in each.text]
    system.place.make_available()
    assert [each.level for each in found] == ["ok", "error"]
    assert "The image store is unavailable" in found[1].text
