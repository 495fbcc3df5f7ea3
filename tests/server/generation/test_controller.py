"""The controller handles queue failures, which a scripted producer simulates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import cast

import pytest
from llava_server.errors import ApiError
from llava_server.generation.controller import Controller
from llava_server.metrics import Metrics
from llava_server.middleware.auth import ApiKeys
from llava_server.middleware.rate_limit import RateLimiter
from llava_server.queue_health import QueueHealth
from llava_server.supervised_tasks import SupervisedTasks
from llava_wire.controller_side.limits import TenantLimits
from llava_wire.controller_side.query_results import JobSnapshot
from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.errors import AlreadySubmitted, QueueUnavailable
from llava_wire.messages.event import Event, Final, FinishReason
from llava_wire.messages.job import Job
from llava_wire.messages.sampling_params import SamplingParams

from tests.server.conftest import Stack, Valkey, running_stack, text_of
from tests.waiting import async_wait_until, wait_until

JOB = Job(
    job_id="job-1",
    model="m",
    tenant="t",
    messages=(),
    sampling=SamplingParams(seed=1),
    cost=1.0,
    ttl_s=60.0,
)
LAST = Event(0, (1,), "all", Final(reason=FinishReason.STOP))


class ScriptedProducer:
    """A producer that yields each item in ``batches``, or raises it if it is an exception."""

    def __init__(self) -> None:
        self.batches: asyncio.Queue[list[tuple[str, Event]] | Exception] = asyncio.Queue()
        self.cancelled: list[str] = []
        self.is_down = False
        self.defect: Exception | None = None  # raised by ``reap``
        self.num_reaps = 0
        self.log: list[JobSnapshot] = []  # returned by ``snapshot``, one after another
        self.num_snapshots = 0
        self.follow_error = None
        self.shards = (self,)

    def shard(self, job_id: str) -> ScriptedProducer:
        return self

    def is_live(self, job: Job) -> bool:
        return False

    async def submit(self, job: Job, pixels: Mapping[str, bytes], terms: TenantLimits, trace: str) -> None:
        if self.is_down:
            raise QueueUnavailable("down")
        if self.log:
            raise AlreadySubmitted("known")

    def delivered_events(self, job_id: str) -> None:
        return None

    async def snapshot(self, job_id: str, **_: object) -> JobSnapshot | None:
        self.num_snapshots += 1
        return self.log[self.num_snapshots - 1]

    async def cancel(self, job_id: str, *, tenant: str) -> bool:
        self.cancelled.append(job_id)
        if self.is_down:
            raise QueueUnavailable("down")
        return True

    async def reap(self) -> int:
        self.num_reaps += 1
        if self.defect is not None:
            raise self.defect
        if self.is_down:
            raise QueueUnavailable("down")
        return 1

    async def follow(self) -> AsyncIterator[list[tuple[str, Event]]]:
        while True:
            batch = await self.batches.get()
            if isinstance(batch, Exception):
                raise batch
            yield batch


def make(
    producer: ScriptedProducer, tasks: SupervisedTasks | None = None, *, queue_timeout_s: float = 60.0
) -> Controller:
    metrics, limiter = Metrics(), RateLimiter(ApiKeys((), is_required=False))
    return Controller(
        cast(ShardedProducer, producer),
        metrics,
        limiter,
        QueueHealth(metrics),
        tasks or SupervisedTasks(),
        queue_timeout_s=queue_timeout_s,
    )


@asynccontextmanager
async def running(producer: ScriptedProducer, *, queue_timeout_s: float = 60.0) -> AsyncIterator[Controller]:
    async with aclosing(SupervisedTasks()) as tasks:
        controller = make(producer, tasks, queue_timeout_s=queue_timeout_s)
        controller.start()
        yield controller


async def test_a_finished_job_is_not_cancelled_and_an_unfinished_one_is() -> None:
    producer = ScriptedProducer()
    async with running(producer) as controller:
        output = await controller.submit(JOB, {})
        producer.batches.put_nowait([("unknown-job", LAST), (JOB.job_id, LAST)])
        assert await output.get() == LAST
        await output.aclose()
        assert producer.cancelled == []
        left = await controller.submit(JOB, {})
        await left.aclose()
        await left.aclose()
        assert producer.cancelled == [JOB.job_id]
    assert controller.num_open == 0


async def test_followers_of_a_job_share_one_reader_of_its_log() -> None:
    producer = ScriptedProducer()
    events = [Event(0, (1,), "a"), Event(1, (2,), "b"), Event(2, (3,), "c", LAST.final)]
    producer.log = [JobSnapshot("running", JOB, [event], 0.0, model_digest="") for event in events]
    async with running(producer) as controller:
        first, *others = [await controller.submit(JOB, {}, is_resumable=True) for _ in range(5)]
        assert await first.get() == events[0]
        late = await controller.submit(JOB, {}, is_resumable=True)
        assert [await first.get(), await first.get()] == events[1:]
        for output in (*others, late):
            assert [await output.get() for _ in events] == events
            await output.aclose()
        assert controller.num_open == 1
        await first.aclose()
        assert (producer.num_snapshots, controller.num_open) == (len(events), 0)


async def test_a_job_that_cannot_be_submitted_leaves_no_state() -> None:
    producer = ScriptedProducer()
    producer.is_down = True
    controller = make(producer)
    with pytest.raises(ApiError) as caught:
        await controller.submit(JOB, {})
    assert (caught.value.code, controller.num_open) == ("queue_unavailable", 0)


async def test_cancelling_without_the_queue_does_not_raise() -> None:
    producer = ScriptedProducer()
    controller = make(producer)
    output = await controller.submit(JOB, {})
    producer.is_down = True
    await output.aclose()
    assert controller.num_open == 0


async def test_streams_survive_a_crash_while_following() -> None:
    producer = ScriptedProducer()
    async with running(producer) as controller:
        output = await controller.submit(JOB, {})
        producer.batches.put_nowait(RuntimeError("a defect"))
        producer.batches.put_nowait([(JOB.job_id, LAST)])
        assert await output.get() == LAST
        assert controller.failure is None


async def test_repeated_crashes_while_following_fail_every_stream_and_the_controller() -> None:
    producer = ScriptedProducer()
    async with running(producer) as controller:
        output = await controller.submit(JOB, {})
        for _ in range(5):
            producer.batches.put_nowait(RuntimeError("a defect"))
        with pytest.raises(ApiError) as caught:
            await output.get()
        assert caught.value.code == "internal_error"
        assert controller.failure is not None


async def test_a_defect_in_one_periodic_step_does_not_end_the_streams() -> None:
    producer = ScriptedProducer()
    producer.defect = RuntimeError("a defect")
    async with running(producer) as controller:
        output = await controller.submit(JOB, {})
        await async_wait_until(lambda: producer.num_reaps > 2, "two restarts")
        producer.batches.put_nowait([(JOB.job_id, LAST)])
        assert await output.get() == LAST


async def test_a_crash_of_a_copied_stream_ends_this_stream_only() -> None:
    class Producer(ScriptedProducer):
        def is_live(self, job: Job) -> bool:
            return True  # another connection streams the job

        async def snapshot(self, job_id: str, **_: object) -> None:
            raise RuntimeError("a defect")

    async with running(Producer()) as controller:
        output = await controller.submit(JOB, {}, is_resumable=True)
        with pytest.raises(ApiError) as caught:
            await output.get()
        assert caught.value.code == "internal_error"
        assert controller.failure is None
        await output.aclose()
        assert controller.num_open == 0


async def test_deadlines_end_a_stream_without_events() -> None:
    producer = ScriptedProducer()
    producer.is_down = False
    async with running(producer, queue_timeout_s=0.0) as controller:
        output = await controller.submit(JOB, {})
        output.last_event_deadline = 0.0
        with pytest.raises(ApiError) as caught:
            await output.get()
    assert caught.value.code == "deadline_exceeded"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


pytestmark = pytest.mark.anyio


def test_an_unavailable_queue_returns_503_until_it_is_available_again(valkey: Valkey) -> None:
    with running_stack(f"unix://{valkey.socket}") as stack:
        assert stack.works()
        valkey.kill()
        response = stack.chat("say yes")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_unavailable")
        assert response.headers["retry-after"]
        wait_until(lambda: stack.http.get("/readyz").status_code == 503)
        assert stack.http.get("/readyz").json()["reasons"] == ["The job queue is unavailable (connection)."]
        assert stack.http.get("/livez").status_code == 200
        assert stack.http.get("/v1/models").json()["data"]
        valkey.start()
        wait_until(lambda: stack.http.get("/readyz").status_code == 200)
        wait_until(lambda: can_chat(stack))


def can_chat(stack: Stack) -> bool:
    response = stack.chat("say back")
    return response.status_code == 200 and text_of(response) == "back"
