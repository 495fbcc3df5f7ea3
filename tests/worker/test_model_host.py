"""One model after another in one process: what runs goes on, and nothing is left of what was there."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import llava_worker
import psutil
import pytest
from llava_wire.messages.commands import CommandStatus, ModelCommand
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.operator.inspector import Inspector
from llava_wire.operator.worker_commands import CommandSender
from llava_wire.worker_side.consumer import JobConsumer
from llava_worker.model_host import LOADER, ModelHost
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings

from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient, connect_job_client
from tests.worker.test_worker import LEASE_S

pytestmark = pytest.mark.anyio

TINY = ("--device", "cpu", "--threads", "2", "--precision", "fp32", "--kv-cache-mb", "16")
UNLOAD = ModelCommand()


@pytest.fixture(autouse=True)
def _pulls_wait_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_wire.worker_side.consumer.WAIT_S", 0.05)


@dataclass
class Hosted:
    host: ModelHost
    task: asyncio.Task[int]
    desk: CommandSender
    inspector: Inspector
    engine: weakref.ref[object]  # the first model's

    async def heartbeat(self) -> Heartbeat | None:
        workers = (await self.inspector.fleet()).workers
        return workers[0].heartbeat if workers else None

    async def beating(self) -> Heartbeat:
        """Its announcement: on a busy machine a lease as short as this one may run out, and is renewed."""
        while (beat := await self.heartbeat()) is None:
            await asyncio.sleep(0.01)
        return beat

    async def report(self, instruction: ModelCommand) -> CommandStatus:
        """What has come of an order."""
        given = await self.desk.give(self.host.heartbeat.worker_id, instruction)
        assert given is not None
        while True:
            beat = await self.heartbeat()
            if beat and beat.order and beat.order.order_id == given[0] and beat.order.is_settled:
                return beat.order
            await asyncio.sleep(0.01)


@asynccontextmanager
async def hosted(url: str, *flags: str) -> AsyncIterator[Hosted]:
    """Takes orders; for no models but its own and the bundled one, unless ``flags`` name a folder."""
    flags = ("--loadable-models", str(Path(__file__).parent), *flags)
    settings = load_settings(["--redis-url", url, "--lease-s", str(LEASE_S), *flags])
    model = open_model(settings)
    host, engine = ModelHost(settings, model), weakref.ref(model.engine)
    consumer = await JobConsumer.connect(url, model.heartbeat, lease_s=LEASE_S)
    del model
    task = asyncio.create_task(host.run(consumer))
    hosted = Hosted(host, task, CommandSender(url), Inspector(url), engine)
    try:
        yield hosted
    finally:
        host.drain()
        await asyncio.gather(task, return_exceptions=True)
        for part in (hosted.desk, hosted.inspector, consumer):
            await part.aclose()


def num_native_threads() -> int:
    return psutil.Process().num_threads()


async def test_after_an_unload_the_engine_is_gone_with_its_threads_and_the_worker_lives(
    queue_url: str,
) -> None:
    async with (
        connect_job_client(queue_url, model="tiny-llava") as client,
        hosted(queue_url, "--model", "tiny", *TINY) as it,
    ):
        assert await client.wait_for_text(await client.submit("What can you do?", max_tokens=8))
        num_threads = num_native_threads()
        assert it.engine() is not None
        assert (await it.report(UNLOAD)).state == "done"
        gc.collect()
        assert it.engine() is None
        assert "engine" not in {thread.name for thread in threading.enumerate()}
        await async_wait_until(
            lambda: num_native_threads() <= num_threads - 2
        )  # the engine's and its OpenMP team
        beat = await it.beating()
        assert (beat.model, beat.capacity, beat.worker_id) == ("", 0, it.host.heartbeat.worker_id)
        assert not it.task.done()


async def test_a_stream_is_handed_on_by_an_unload_and_ends_as_if_undisturbed(
    queue_url: str, client: JobClient
) -> None:
    flags = ("--model", "echo", "--echo-step-s", "0.002")
    async with hosted(queue_url, *flags) as it:
        whole = await client.wait_for_text(await client.submit("Tell.", max_tokens=120, ignore_eos=True))
        job = await client.submit("Tell.", max_tokens=120, ignore_eos=True)
        await async_wait_until(lambda: len(client.token_ids(job)) >= 10)
        assert (await it.report(UNLOAD)).state == "done"
        num_tokens = len(client.token_ids(job))
        assert num_tokens < 120
        assert (await it.report(ModelCommand(model="echo"))).state == "done"
        assert await client.wait_for_text(job) == whole


async def test_another_model_takes_the_place_of_the_first_under_the_same_worker(queue_url: str) -> None:
    async with (
        connect_job_client(queue_url, model="tiny-llava") as client,
        hosted(queue_url, "--model", "echo", *TINY) as it,
    ):
        report = await it.report(ModelCommand(model="tiny", precision="int8"))
        assert (report.state, report.progress) == ("done", 1.0)
        assert await client.wait_for_text(await client.submit("What can you do?", max_tokens=8))
        beat = await it.beating()
        assert (beat.model, beat.precision) == ("tiny-llava", "int8")
        assert beat.worker_id == it.host.heartbeat.worker_id
        assert it.engine() is None
        assert not [thread for thread in threading.enumerate() if thread.name.startswith(LOADER)]


async def test_what_is_so_already_is_done_without_touching_the_model(queue_url: str) -> None:
    async with hosted(queue_url, "--model", "echo") as it:
        assert (await it.report(ModelCommand(model="echo"))).state == "done"
        assert it.engine() is not None
        assert (await it.report(UNLOAD)).state == "done"
        assert (await it.report(UNLOAD)).state == "done"
        assert it.engine() is None


async def test_a_refused_order_leaves_the_model_and_a_failed_one_leaves_none(
    queue_url: str, tmp_path: Path, client: JobClient
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(Path(llava_worker.__file__).parent / "tiny", broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    async with hosted(queue_url, "--model", "echo", "--loadable-models", str(tmp_path)) as it:
        refused = await it.report(ModelCommand(model="../broken"))
        assert (refused.state, it.engine() is not None) == ("refused", True)
        assert "'../broken' is not in the folder" in refused.message
        assert await client.wait_for_text(await client.submit("Hi?", max_tokens=5))

        failed = await it.report(ModelCommand(model="broken"))
        assert failed.state == "failed"
        assert failed.message
        beat = await it.beating()
        assert beat.model == ""
        assert (await it.report(ModelCommand(model="echo"))).state == "done"
        assert await client.wait_for_text(await client.submit("Hi?", max_tokens=5))


async def test_a_worker_without_a_model_ends_as_any_other(queue_url: str) -> None:
    async with hosted(queue_url, "--model", "echo") as it:
        await it.report(UNLOAD)
        it.host.drain()
        assert await it.task == 0
        assert await it.heartbeat() is None
