"""A worker on a real queue, with an in-process echo engine."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import suppress

import anyio
import pytest
from llava_wire.messages.event import ErrorCode, FinishReason, JobError
from llava_wire.messages.job import ImageRef, Message
from llava_wire.worker_side.consumer import JobConsumer
from llava_worker.engine_thread import EXIT_BROKEN

from tests.machine_speed import scaled
from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient
from tests.worker.running_worker import SteppedEngine, running_worker

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_pulls")]


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    yield
    gc.collect()  # triggers warnings about unclosed connections now, instead of during a later test
    assert "engine" not in {thread.name for thread in threading.enumerate()}


async def uninterrupted_text(url: str, client: JobClient, text: str) -> str:
    async with running_worker(url):
        return await client.complete(text)


async def wait_for_error(client: JobClient, job_id: str) -> JobError:
    final = await client.wait_for_final(job_id)
    assert final.reason is FinishReason.ERROR
    assert final.error is not None
    return final.error


async def test_job_is_completed_with_usage(queue_url: str, client: JobClient) -> None:
    async with running_worker(queue_url):
        job = await client.submit("Hi?", max_tokens=20)
        final = await client.wait_for_final(job)
    assert final.reason is FinishReason.LENGTH
    assert len(client.token_ids(job)) == 20
    assert final.num_prompt_tokens > len("Hi?")
    assert client.text(job)


async def test_concurrent_jobs_have_the_same_outputs_as_single_jobs(
    queue_url: str, client: JobClient
) -> None:
    async with running_worker(queue_url, SteppedEngine(max_sequences=4)):
        jobs = [await client.submit(f"question {number}") for number in range(10)]
        for job in jobs:
            await client.wait_for_final(job)
        for number, job in enumerate(jobs):
            assert await client.complete(f"question {number}") == client.text(job)


async def test_stop_string_ends_the_output_and_frees_the_slot(queue_url: str, client: JobClient) -> None:
    text = await uninterrupted_text(queue_url, client, "Hi?")
    stop = text[10:13]
    async with running_worker(queue_url) as running:
        job = await client.submit("Hi?", stop=(stop,))
        final = await client.wait_for_final(job)
        await async_wait_until(lambda: running.engine.num_sequences == 0)
    assert final.reason is FinishReason.STOP
    assert client.text(job) == text[: text.index(stop)]


async def test_output_depends_on_the_image(queue_url: str, client: JobClient) -> None:
    async with running_worker(queue_url):
        texts = []
        for digest in ("a", "b"):
            image = ImageRef(digest=digest, num_tiles=1, side=32, width=9, height=9)
            pixels = {digest: bytes(32 * 32 * 3)}
            texts.append(await client.complete(image, "What?", pixels=pixels, max_tokens=20))
    assert texts[0] != texts[1]


async def test_rejected_jobs_end_with_an_error_and_the_next_is_served(
    queue_url: str, client: JobClient
) -> None:
    async with running_worker(queue_url):
        error = await wait_for_error(client, await client.submit("x" * 5000))
        assert error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
        assert "context length is 4096" in error.message

        job = await client.submit_messages([Message("assistant", ("Hi.",))])
        assert (await wait_for_error(client, job)).code is ErrorCode.INVALID_REQUEST

        for text, code in (
            ("[[refuse]]", ErrorCode.INVALID_REQUEST),
            ("[[error at 3]]", ErrorCode.INTERNAL_ERROR),
        ):
            assert (await wait_for_error(client, await client.submit(text))).code is code
        assert await client.complete("Hi?")


async def test_cancelled_job_frees_its_slot(queue_url: str, client: JobClient) -> None:
    async with running_worker(queue_url, is_stepped=True) as running:
        job = await client.submit("Hi?")
        running.engine.allow_steps(3)
        await client.wait_for_tokens(job, 3)
        assert await client.producer.cancel(job, tenant="test")
        running.engine.allow_steps(1)
        await async_wait_until(lambda: running.engine.num_sequences == 0)
    assert client.final(job) is None


async def test_drained_worker_requeues_running_jobs(queue_url: str, client: JobClient) -> None:
    text = await uninterrupted_text(queue_url, client, "Hi?")
    async with running_worker(queue_url, is_stepped=True) as running:
        job = await client.submit("Hi?", num_logprobs=2)
        running.engine.allow_steps(7)
        await client.wait_for_tokens(job, 7)
        assert await running.drain() == 0
    assert client.final(job) is None
    assert (await client.producer.stats()).num_workers == 0
    async with running_worker(queue_url):
        assert await client.wait_for_text(job) == text
    assert [token.sampled.token_id for token in client.logprobs(job)] == client.token_ids(job)


async def test_drain_timeout_lets_running_jobs_finish(queue_url: str, client: JobClient) -> None:
    async with running_worker(queue_url, is_stepped=True, drain_timeout_s=scaled(60.0)) as running:
        job = await client.submit("Hi?")
        running.engine.allow_steps(7)
        await client.wait_for_tokens(job, 7)
        running.worker.drain()
        running.engine.run_freely()
        assert await running.task == 0
    assert (await client.wait_for_final(job)).reason is FinishReason.STOP


async def test_drained_worker_pulls_no_job(queue_url: str, client: JobClient) -> None:
    async with running_worker(queue_url) as running:
        assert await running.drain() == 0
        job = await client.submit("Hi?")
        assert client.final(job) is None
        assert (await client.producer.stats()).num_waiting == {"echo": 1}
    async with running_worker(queue_url):
        assert await client.wait_for_text(job)


async def test_jobs_of_a_failed_engine_are_resumed_by_another_worker(
    queue_url: str, client: JobClient
) -> None:
    text = await uninterrupted_text(queue_url, client, "Hi?")
    async with running_worker(queue_url, is_stepped=True) as running:
        job = await client.submit("Hi?")
        running.engine.allow_steps(5)
        await client.wait_for_tokens(job, 5)
        failing = await client.submit("[[fail]]")
        await async_wait_until(lambda: running.engine.num_sequences == 2)
        running.engine.run_freely()
        assert await running.task == EXIT_BROKEN
    assert await client.producer.cancel(failing, tenant="test")
    async with running_worker(queue_url):
        assert await client.wait_for_text(job) == text


async def test_failed_engine_ends_the_worker_even_if_a_cancellation_is_swallowed(
    queue_url: str, client: JobClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some libraries swallow cancellations because they catch CancelledError too broadly."""
    is_pulling, has_swallowed = anyio.Event(), anyio.Event()

    async def swallow_first_cancellation(consumer: JobConsumer, max_jobs: int) -> None:
        is_pulling.set()
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()
        has_swallowed.set()
        await anyio.sleep_forever()

    async with running_worker(queue_url, is_stepped=True) as running:
        await client.submit("[[fail]]")
        await async_wait_until(lambda: running.engine.num_sequences == 1)
        monkeypatch.setattr(JobConsumer, "pull", swallow_first_cancellation)
        await is_pulling.wait()
        running.engine.run_freely()
        assert await running.task == EXIT_BROKEN
    assert has_swallowed.is_set()


async def test_job_that_makes_every_engine_fail_ends_with_an_error(queue_url: str, client: JobClient) -> None:
    job = await client.submit("[[fail]]")
    for _ in range(3):
        async with running_worker(queue_url) as running:
            assert await running.task == EXIT_BROKEN
    assert (await wait_for_error(client, job)).code is ErrorCode.WORKER_CRASHED


async def test_steps_without_tokens_count_as_progress(
    queue_url: str, client: JobClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llava_worker.worker._PROGRESS_S", 0.05)
    async with running_worker(queue_url, is_stepped=True, hang_timeout_s=0.3) as running:
        job = await client.submit("Hi?")
        # Each step takes at least 5 ms, so that 100 steps exceed the timeout.
        await async_wait_until(lambda: running.engine.num_empty_steps >= 100)
        running.engine.run_freely()
        assert await client.wait_for_text(job)
    assert "no longer assigned to this worker" not in caplog.text


async def test_worker_without_a_free_slot_leaves_jobs_in_the_queue(queue_url: str, client: JobClient) -> None:
    async with running_worker(queue_url, SteppedEngine(max_sequences=2), is_stepped=True) as running:
        jobs = [await client.submit(f"question {number}") for number in range(5)]
        await async_wait_until(lambda: running.engine.num_sequences == 2)
        assert (await client.producer.stats()).num_waiting == {"echo": 3}
        running.engine.run_freely()
        for job in jobs:
            await client.wait_for_final(job)
