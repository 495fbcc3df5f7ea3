"""The worker's loop against a real queue, with the echo engine in this process."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from llava_wire.messages.event import ErrorCode, FinishReason, JobError
from llava_wire.messages.job import ImageRef, Message
from llava_wire.worker_side.consumer import JobConsumer
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import EngineStats, Sequence, StepOutput
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.engine_thread import EXIT_BROKEN
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings
from llava_worker.worker import Worker

from tests.waiting import async_wait_until
from tests.worker.asker import Asker

pytestmark = pytest.mark.anyio

LEASE_S = 0.5


class Gate:
    """An echo engine that steps only as often as it is let to: mid-stream without a clock."""

    def __init__(self, *, num_steps: int = 0, max_sequences: int = 16) -> None:
        self.echo = EchoEngine(max_sequences=max_sequences, has_faults=True)
        self.max_sequences = max_sequences
        self.context_length = self.echo.context_length
        self.num_sequences = 0
        self._allowed = threading.Semaphore(num_steps)
        self._is_open = False
        self.num_empty_steps = 0

    def add(self, sequence: Sequence) -> None:
        self.echo.add(sequence)
        self.num_sequences = self.echo.num_sequences

    def abort(self, seq_id: str) -> None:
        self.echo.abort(seq_id)
        self.num_sequences = self.echo.num_sequences

    def step(self) -> list[StepOutput]:
        """Empty steps while the gate is shut, so that the engine hears of aborts."""
        if not self._is_open and not self._allowed.acquire(timeout=0.005):
            self.num_empty_steps += 1
            return []
        outputs = self.echo.step()
        self.num_sequences = self.echo.num_sequences
        return outputs

    def idle(self) -> bool:
        return self.echo.idle()

    def stats(self) -> EngineStats:
        return self.echo.stats()

    def let(self, num_steps: int) -> None:
        self._allowed.release(num_steps)

    def open(self) -> None:
        self._is_open = True


@dataclass
class Running:
    worker: Worker
    engine: Gate
    task: asyncio.Task[int]

    async def drain(self) -> int:
        self.worker.drain()
        return await self.task


@asynccontextmanager
async def running(
    url: str,
    engine: Gate | None = None,
    *,
    is_open: bool = True,
    drain_timeout_s: float = 0.0,
    hang_timeout_s: float = 30.0,
    grammars: GrammarCache | None = None,
) -> AsyncIterator[Running]:
    engine = engine or Gate()
    if is_open:
        engine.open()
    model = open_model(load_settings(["--model", "echo"]))
    consumer = await JobConsumer.connect(url, model.heartbeat, lease_s=LEASE_S, hang_timeout_s=hang_timeout_s)
    worker = Worker(
        consumer,
        engine,
        prompts=model.prompts,
        tokenizer=model.tokenizer,
        heartbeat=model.heartbeat,
        beat_s=LEASE_S / 4,
        drain_timeout_s=drain_timeout_s,
        grammars=grammars,
    )
    task = asyncio.create_task(worker.run())
    try:
        yield Running(worker, engine, task)
    finally:
        worker.drain()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.aclose()


@pytest.fixture(autouse=True)
def _pulls_wait_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain waits for the pull in hand."""
    monkeypatch.setattr("llava_wire.worker_side.consumer.WAIT_S", 0.05)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    gc.collect()  # an unclosed connection speaks up here, not in a later test
    assert "engine" not in {thread.name for thread in threading.enumerate()}


async def undisturbed(url: str, asker: Asker, *parts: str, **sampling: object) -> str:
    async with running(url):
        return await asker.answer(await asker.ask(*parts, **sampling))


async def test_a_question_is_answered_and_counted(queue_url: str, asker: Asker) -> None:
    async with running(queue_url):
        job = await asker.ask("Hi?", max_tokens=20)
        final = await asker.end(job)
    assert final.reason is FinishReason.LENGTH
    assert len(asker.token_ids(job)) == 20
    assert final.num_prompt_tokens > len("Hi?")
    assert asker.text(job)


async def test_answers_at_once_are_those_given_alone(queue_url: str, asker: Asker) -> None:
    async with running(queue_url, Gate(max_sequences=4)):
        together = [await asker.ask(f"question {number}") for number in range(10)]
        for job in together:
            await asker.end(job)
        for number, job in enumerate(together):
            assert await asker.answer(await asker.ask(f"question {number}")) == asker.text(job)


async def test_a_stop_string_ends_the_answer_and_frees_its_place(queue_url: str, asker: Asker) -> None:
    whole = await undisturbed(queue_url, asker, "Hi?")
    stop = whole[10:13]
    async with running(queue_url) as run:
        job = await asker.ask("Hi?", stop=(stop,))
        final = await asker.end(job)
        await async_wait_until(lambda: run.engine.num_sequences == 0)
    assert final.reason is FinishReason.STOP
    assert asker.text(job) == whole[: whole.index(stop)]


async def test_pictures_are_part_of_the_question(queue_url: str, asker: Asker) -> None:
    async with running(queue_url):
        texts = []
        for digest in ("a", "b"):
            image = ImageRef(digest=digest, num_tiles=1, side=32, width=9, height=9)
            job = await asker.ask(image, "What?", pixels={digest: bytes(32 * 32 * 3)}, max_tokens=20)
            texts.append(await asker.answer(job))
    assert texts[0] != texts[1]


async def refused(asker: Asker, job: str) -> JobError:
    final = await asker.end(job)
    assert final.reason is FinishReason.ERROR
    assert final.error is not None
    return final.error


async def test_an_over_long_prompt_is_refused_with_its_numbers_and_the_next_is_served(
    queue_url: str, asker: Asker
) -> None:
    async with running(queue_url):
        error = await refused(asker, await asker.ask("x" * 5000))
        assert error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
        assert "the model takes 4096" in error.message
        assert await asker.answer(await asker.ask("Hi?"))


async def test_a_conversation_out_of_order_is_refused(queue_url: str, asker: Asker) -> None:
    async with running(queue_url):
        job = await asker.ask_messages([Message("assistant", ("Hi.",))])
        assert (await refused(asker, job)).code is ErrorCode.INVALID_REQUEST


async def test_what_the_engine_refuses_ends_with_its_reason(queue_url: str, asker: Asker) -> None:
    async with running(queue_url):
        assert (await refused(asker, await asker.ask("[[refuse]]"))).code is ErrorCode.INVALID_REQUEST
        assert (await refused(asker, await asker.ask("[[error at 3]]"))).code is ErrorCode.INTERNAL_ERROR


async def test_a_cancelled_job_frees_its_place(queue_url: str, asker: Asker) -> None:
    async with running(queue_url, is_open=False) as run:
        job = await asker.ask("Hi?")
        run.engine.let(3)
        await async_wait_until(lambda: len(asker.token_ids(job)) == 3)
        assert await asker.producer.cancel(job, tenant="test")
        run.engine.let(1)
        await async_wait_until(lambda: run.engine.num_sequences == 0)
    assert asker.final(job) is None


async def test_a_drained_worker_hands_its_streams_on_in_mid_sentence(queue_url: str, asker: Asker) -> None:
    whole = await undisturbed(queue_url, asker, "Hi?")
    async with running(queue_url, is_open=False) as run:
        job = await asker.ask("Hi?", num_logprobs=2)
        run.engine.let(7)
        await async_wait_until(lambda: len(asker.token_ids(job)) == 7)
        assert await run.drain() == 0
    assert asker.final(job) is None
    assert (await asker.producer.stats()).num_workers == 0
    async with running(queue_url):
        assert await asker.answer(job) == whole
    assert [one.sampled.token_id for one in asker.logprobs(job)] == asker.token_ids(job)


async def test_a_drained_worker_may_finish_what_it_runs(queue_url: str, asker: Asker) -> None:
    async with running(queue_url, is_open=False, drain_timeout_s=60.0) as run:
        job = await asker.ask("Hi?")
        run.engine.let(7)
        await async_wait_until(lambda: len(asker.token_ids(job)) == 7)
        run.worker.drain()
        run.engine.open()
        assert await run.task == 0
    final = await asker.end(job)
    assert final.reason is FinishReason.STOP


async def test_a_draining_worker_takes_no_new_job(queue_url: str, asker: Asker) -> None:
    async with running(queue_url) as run:
        assert await run.drain() == 0
        job = await asker.ask("Hi?")
        assert asker.final(job) is None
        assert (await asker.producer.stats()).num_waiting == {"echo": 1}
    async with running(queue_url):
        assert await asker.answer(job)


async def test_a_broken_engine_ends_the_worker_and_its_streams_go_on_elsewhere(
    queue_url: str, asker: Asker
) -> None:
    whole = await undisturbed(queue_url, asker, "Hi?")
    async with running(queue_url, is_open=False) as run:
        job = await asker.ask("Hi?")
        run.engine.let(5)
        await async_wait_until(lambda: len(asker.token_ids(job)) == 5)
        poison = await asker.ask("[[fail]]")
        await async_wait_until(lambda: run.engine.num_sequences == 2)
        run.engine.open()
        assert await run.task == EXIT_BROKEN
    assert await asker.producer.cancel(poison, tenant="test")
    async with running(queue_url):
        assert await asker.answer(job) == whole


async def test_a_job_that_breaks_every_engine_ends_with_an_error(queue_url: str, asker: Asker) -> None:
    job = await asker.ask("[[fail]]")
    for _ in range(3):
        async with running(queue_url) as run:
            assert await run.task == EXIT_BROKEN
    assert (await refused(asker, job)).code is ErrorCode.WORKER_CRASHED


async def test_an_engine_that_makes_steps_without_tokens_is_not_taken_for_hung(
    queue_url: str, asker: Asker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llava_worker.worker._PROGRESS_S", 0.05)
    async with running(queue_url, is_open=False, hang_timeout_s=0.3) as run:
        job = await asker.ask("Hi?")
        await async_wait_until(
            lambda: run.engine.num_empty_steps >= 100
        )  # of 5 ms or more: longer than the timeout
        run.engine.open()
        assert await asker.answer(job)
    assert "no longer ours" not in caplog.text


async def test_a_worker_without_room_leaves_jobs_in_the_queue(queue_url: str, asker: Asker) -> None:
    async with running(queue_url, Gate(max_sequences=2), is_open=False) as run:
        jobs = [await asker.ask(f"question {number}") for number in range(5)]
        await async_wait_until(lambda: run.engine.num_sequences == 2)
        assert (await asker.producer.stats()).num_waiting == {"echo": 3}
        run.engine.open()
        for job in jobs:
            await asker.end(job)
