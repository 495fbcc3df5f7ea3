"""Structured output in the worker: grammars compile while streams run, and an error fails only one job."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from llava_wire.messages.event import ErrorCode, FinishReason
from llava_wire.messages.sampling_params import Grammar
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.language.tokenizer import ByteTokenizer

from tests.machine_speed import scaled
from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient
from tests.worker.running_worker import running_worker

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_pulls")]

TOKENIZER = ByteTokenizer()
OBJECT = Grammar("json_object")
INVALID = Grammar("regex", "(a", param="guided_regex")


class SlowVocabulary:
    """A vocabulary that blocks the first compilation: ``read`` returns once ``release`` has been called."""

    def __init__(self) -> None:
        self.is_requested = threading.Event()
        self._is_released = threading.Event()

    def read(self) -> list[bytes]:
        self.is_requested.set()
        assert self._is_released.wait(scaled(30))
        return [TOKENIZER.token_bytes(token_id) for token_id in range(TOKENIZER.image_token_id + 1)]

    def release(self) -> None:
        self._is_released.set()


@pytest.fixture
def vocabulary() -> Iterator[SlowVocabulary]:
    vocabulary = SlowVocabulary()
    yield vocabulary
    vocabulary.release()


@pytest.fixture
def grammars(vocabulary: SlowVocabulary) -> GrammarCache:
    return GrammarCache(vocabulary.read, [TOKENIZER.eos_token_id], cpu_s=scaled(60.0))


async def test_slow_grammar_does_not_delay_other_jobs(
    queue_url: str, client: JobClient, grammars: GrammarCache, vocabulary: SlowVocabulary
) -> None:
    async with running_worker(queue_url, grammars=grammars):
        slow = await client.submit("Hi?", max_tokens=5, grammar=OBJECT)
        await async_wait_until(vocabulary.is_requested.is_set)
        for _ in range(2):
            assert await client.complete("Hi?", max_tokens=20)
        assert client.final(slow) is None
        vocabulary.release()
        assert (await client.wait_for_final(slow)).reason is FinishReason.LENGTH


async def test_invalid_grammar_fails_only_its_own_job(
    queue_url: str, client: JobClient, grammars: GrammarCache, vocabulary: SlowVocabulary
) -> None:
    vocabulary.release()
    async with running_worker(queue_url, grammars=grammars) as running:
        other = await client.submit("Hi?", max_tokens=20)
        final = await client.wait_for_final(await client.submit("Hi?", max_tokens=20, grammar=INVALID))
        assert final.error is not None
        assert (final.error.code, final.error.param) == (ErrorCode.INVALID_REQUEST, "guided_regex")
        assert "unclosed group" in final.error.message
        assert (await client.wait_for_final(other)).reason is FinishReason.LENGTH
        assert running.engine.num_sequences == 0


async def test_job_that_is_cancelled_during_compilation_never_reaches_the_engine(
    queue_url: str, client: JobClient, grammars: GrammarCache, vocabulary: SlowVocabulary
) -> None:
    async with running_worker(queue_url, grammars=grammars) as running:
        job = await client.submit("Hi?", max_tokens=20, grammar=OBJECT)
        await async_wait_until(vocabulary.is_requested.is_set)
        assert await client.producer.cancel(job, tenant="test")
        await async_wait_until(lambda: job not in running.worker.job_ids)
        vocabulary.release()
        assert await client.complete("Hi?", max_tokens=3)
        assert not client.token_ids(job)


async def test_drain_does_not_wait_for_a_compilation(
    queue_url: str, client: JobClient, grammars: GrammarCache, vocabulary: SlowVocabulary
) -> None:
    async with running_worker(queue_url, grammars=grammars) as running:
        job = await client.submit("Hi?", max_tokens=5, grammar=OBJECT)
        await async_wait_until(vocabulary.is_requested.is_set)
        running.worker.drain()
        await async_wait_until(lambda: not running.worker.job_ids)
        vocabulary.release()
        assert await running.task == 0
        assert client.final(job) is None


async def test_model_without_structured_output_rejects_grammars(queue_url: str, client: JobClient) -> None:
    async with running_worker(queue_url):
        final = await client.wait_for_final(await client.submit("Hi?", max_tokens=20, grammar=OBJECT))
    assert final.error is not None
    assert "does not support structured output" in final.error.message
