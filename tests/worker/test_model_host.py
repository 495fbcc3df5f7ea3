"""Switching models: running jobs are resumed later, and all of the previous model's memory is freed."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import llava_worker
import psutil
import pytest
import redis
from llava_wire.messages.heartbeat import Heartbeat, KernelInfo
from llava_wire.messages.load_command import CommandStatus, ModelCommand
from llava_wire.operator.inspector import Inspector
from llava_wire.operator.worker_commands import CommandSender
from llava_wire.redis.keys import PREFIX
from llava_wire.redis.shards import Shard
from llava_wire.worker_side.sharded_consumer import ShardedConsumer
from llava_worker.engine import EngineInterface, StepOutput
from llava_worker.model.cpu.native import cpu_kernels
from llava_worker.model_host import ModelHost, _release_memory
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings

from tests.machine_speed import scaled
from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient, connect_job_client
from tests.worker.running_worker import LEASE_S, SteppedEngine

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_pulls")]

TINY = ("--device", "cpu", "--threads", "2", "--precision", "fp32", "--kv-cache-mb", "16")
UNLOAD = ModelCommand()
LOAD_ECHO = ModelCommand(model="echo")


@dataclass
class RunningHost:
    url: str
    host: ModelHost
    task: asyncio.Task[int]
    sender: CommandSender
    inspector: Inspector
    first_engine: weakref.ref[EngineInterface]

    async def find_heartbeat(self) -> Heartbeat | None:
        workers = (await self.inspector.status()).workers
        return workers[0].heartbeat if workers else None

    async def heartbeat(self) -> Heartbeat:
        """Wait for the heartbeat. On a busy machine, the short lease may expire before it is renewed."""
        while (heartbeat := await self.find_heartbeat()) is None:
            await asyncio.sleep(0.01)
        return heartbeat

    async def renew_lease(self, seconds: float) -> None:
        """Wait until the worker has extended its lease by this much."""
        with redis.Redis.from_url(self.url) as server:

            def end_ms() -> float:
                return server.zscore(f"{PREFIX}workers", self.host.heartbeat.worker_id) or 0

            first_ms = end_ms()
            await async_wait_until(lambda: end_ms() > first_ms + seconds * 1000)

    async def execute(self, command: ModelCommand) -> CommandStatus:
        """Send the command and wait for its final status."""
        issued = await self.sender.send(self.host.heartbeat.worker_id, command)
        assert issued is not None
        while True:
            status = (await self.heartbeat()).command
            if status and status.command_id == issued[0] and status.is_finished:
                return status
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running_host(
    url: str, *flags: str, engine: EngineInterface | None = None
) -> AsyncIterator[RunningHost]:
    """Run a worker that may load its own model, the bundled model and models in a folder set by ``flags``.

    ``engine`` replaces the engine of the first model.
    """
    flags = ("--loadable-models", str(Path(__file__).parent), *flags)
    settings = load_settings(["--redis-url", url, "--lease-s", str(LEASE_S), *flags])
    model = open_model(settings)
    model = replace(model, engine=engine or model.engine)
    host, first_engine = ModelHost(settings, model), weakref.ref(model.engine)
    consumer = await ShardedConsumer.connect([Shard(url)], model.heartbeat, lease_s=LEASE_S)
    del model
    task = asyncio.create_task(host.run(consumer))
    running = RunningHost(url, host, task, CommandSender(url), Inspector(url), first_engine)
    try:
        yield running
    finally:
        host.drain()
        await asyncio.gather(task, return_exceptions=True)
        for connection in (running.sender, running.inspector, consumer):
            await connection.aclose()


async def test_unload_frees_the_engine_and_its_threads_but_keeps_the_worker_running(queue_url: str) -> None:
    async with (
        connect_job_client(queue_url, model="tiny-llava") as client,
        running_host(queue_url, "--model", "tiny", *TINY) as running,
    ):
        assert await client.complete("What can you do?", max_tokens=8)
        num_threads = psutil.Process().num_threads()
        assert running.first_engine() is not None
        assert (await running.execute(UNLOAD)).state == "done"
        gc.collect()
        assert running.first_engine() is None
        assert "engine" not in {thread.name for thread in threading.enumerate()}
        # At least the engine's thread and one of its OpenMP threads have exited.
        await async_wait_until(lambda: psutil.Process().num_threads() <= num_threads - 2)
        heartbeat = await running.heartbeat()
        assert (heartbeat.model, heartbeat.model_digest, heartbeat.capacity) == ("", "", 0)
        assert heartbeat.kernels is None
        assert heartbeat.worker_id == running.host.heartbeat.worker_id
        assert not running.task.done()


def test_unload_frees_objects_that_a_cycle_frozen_at_startup_refers_to() -> None:
    model = threading.Event()
    freed = threading.Event()
    weakref.finalize(model, freed.set)
    cycle: list[object] = [model]
    cycle.append(cycle)
    gc.freeze()
    unused: list[object] = [model]
    del cycle, model
    _release_memory(unused)
    assert freed.is_set()


async def test_running_job_continues_after_its_model_was_unloaded_and_loaded(
    queue_url: str, client: JobClient
) -> None:
    async with running_host(queue_url, "--model", "echo", "--echo-step-s", "0.002") as running:
        text = await client.complete("Write.", max_tokens=120, ignore_eos=True)
        job = await client.submit("Write.", max_tokens=120, ignore_eos=True)
        await async_wait_until(lambda: len(client.token_ids(job)) >= 10)
        assert (await running.execute(UNLOAD)).state == "done"
        assert len(client.token_ids(job)) < 120
        assert (await running.execute(LOAD_ECHO)).state == "done"
        assert await client.wait_for_text(job) == text


async def test_another_model_is_served_under_the_same_worker_id(queue_url: str) -> None:
    async with (
        connect_job_client(queue_url, model="tiny-llava") as client,
        running_host(queue_url, "--model", "echo", *TINY) as running,
    ):
        status = await running.execute(ModelCommand(model="tiny", precision="int8"))
        assert (status.state, status.progress) == ("done", 1.0)
        assert (await running.heartbeat()).model == "tiny-llava"
        assert await client.complete("What can you do?", max_tokens=8)
        heartbeat = await running.heartbeat()
        assert (heartbeat.model, heartbeat.precision) == ("tiny-llava", "int8")
        assert heartbeat.kernels == KernelInfo(**cpu_kernels().origin._asdict())
        assert heartbeat.model_digest not in ("", running.host.heartbeat.model_digest)
        [events] = client.events.values()
        assert events[0].model_digest == heartbeat.model_digest
        assert heartbeat.worker_id == running.host.heartbeat.worker_id
        assert running.first_engine() is None
        assert [thread.name for thread in threading.enumerate()].count("engine") == 1


async def test_command_for_the_current_model_does_not_reload_it(queue_url: str) -> None:
    async with running_host(queue_url, "--model", "echo") as running:
        assert (await running.execute(LOAD_ECHO)).state == "done"
        assert running.first_engine() is not None
        assert (await running.execute(UNLOAD)).state == "done"
        assert (await running.execute(UNLOAD)).state == "done"
        assert running.first_engine() is None


async def test_rejected_command_keeps_the_model_and_failed_command_leaves_no_model(
    queue_url: str, tmp_path: Path, client: JobClient
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(Path(llava_worker.__file__).parent / "tiny", broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    async with running_host(queue_url, "--model", "echo", "--loadable-models", str(tmp_path)) as running:
        refused = await running.execute(ModelCommand(model="../broken"))
        assert (refused.state, running.first_engine() is not None) == ("refused", True)
        assert "'../broken' is outside the folder" in refused.message
        assert await client.complete("Hi?", max_tokens=5)

        failed = await running.execute(ModelCommand(model="broken"))
        assert failed.state == "failed"
        assert failed.message
        assert (await running.heartbeat()).model == ""
        assert (await running.execute(LOAD_ECHO)).state == "done"
        assert await client.complete("Hi?", max_tokens=5)


class BlockingEngine(SteppedEngine):
    """An engine whose steps do not return until ``is_released`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.run_freely()
        self.is_in_step = threading.Event()
        self.is_released = threading.Event()

    def step(self) -> list[StepOutput]:
        self.is_in_step.set()
        assert self.is_released.wait(scaled(30))
        return super().step()


async def test_heartbeats_continue_until_the_last_step_before_a_model_switch_has_finished(
    queue_url: str, client: JobClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = BlockingEngine()
    async with running_host(queue_url, "--model", "echo", engine=engine) as running:
        await client.submit("Hi?", max_tokens=5)
        await async_wait_until(engine.is_in_step.is_set)
        await running.sender.send(running.host.heartbeat.worker_id, UNLOAD)
        await async_wait_until(lambda: "drained: requeued 1 jobs" in caplog.text)
        await running.renew_lease(2 * LEASE_S)
        engine.is_released.set()
        await async_wait_until(lambda: ": done" in caplog.text)


async def test_heartbeats_continue_while_the_previous_model_is_freed(queue_url: str) -> None:
    is_released, has_waited = threading.Event(), []
    async with running_host(queue_url, "--model", "echo") as running:
        engine = running.first_engine()
        assert engine is not None
        weakref.finalize(engine, lambda: has_waited.append(is_released.wait(scaled(30))))
        del engine
        await running.sender.send(running.host.heartbeat.worker_id, UNLOAD)
        await async_wait_until(lambda: running.first_engine() is None)
        await running.renew_lease(2 * LEASE_S)
        is_released.set()
        assert (await running.execute(LOAD_ECHO)).state == "done"
        assert has_waited == [True]


async def test_worker_without_a_model_can_be_drained(queue_url: str) -> None:
    async with running_host(queue_url, "--model", "echo") as running:
        await running.execute(UNLOAD)
        running.host.drain()
        assert await running.task == 0
        assert await running.find_heartbeat() is None
