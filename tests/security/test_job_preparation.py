"""Requests that are expensive to prepare delay only the API key that sent them.

Each test compares the order in which requests end, not times: the requests of another tenant end while those
of the attacker are still being prepared.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import llava_worker
import pytest
import redis
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import Message
from llava_wire.messages.sampling_params import Grammar
from llava_wire.redis.keys import PREFIX
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.tokenizer import ByteTokenizer
from llava_worker.model.config.image_grid import ImageLayout

from tests.machine_speed import scaled
from tests.waiting import async_wait_until
from tests.wire.redis_server import running_redis
from tests.worker.engine.structured_output.grammar_kit import slow_schema
from tests.worker.job_client import JobClient, connect_job_client
from tests.worker.running_worker import SteppedEngine, running_worker

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_pulls")]

NUM_SLOTS = 4
NUM_ATTACKS = 12  # three times the slots
SLOW = "slow"  # a prompt with this text is tokenized only when the test allows it
SLOW_BYTE = "\x01"  # the text of this token is returned only when the test allows it


class SlowTokenizer(ByteTokenizer):
    """A tokenizer that blocks on some texts until ``release`` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.num_blocked = 0  # number of calls that have begun to block

    def encode(self, text: str, *, is_first: bool = True) -> list[int]:
        if SLOW in text:
            self._block()
        return super().encode(text, is_first=is_first)

    def token_bytes(self, token_id: int) -> bytes:
        if token_id == ord(SLOW_BYTE):
            self._block()
        return super().token_bytes(token_id)

    def _block(self) -> None:
        self.num_blocked += 1
        assert self.release.wait(scaled(60))


@pytest.fixture
def queue_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
async def client(queue_url: str) -> AsyncIterator[JobClient]:
    async with connect_job_client(queue_url) as client:
        yield client


@pytest.fixture
def short_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_wire.worker_side.consumer.WAIT_S", 0.05)


@pytest.fixture
def tokenizer() -> Iterator[SlowTokenizer]:
    tokenizer = SlowTokenizer()
    yield tokenizer
    tokenizer.release.set()


@pytest.fixture
def prompts(tokenizer: SlowTokenizer) -> PromptBuilder:
    return PromptBuilder(
        tokenizer,
        CONVERSATION_TEMPLATES["vicuna_v1"],
        expander=TileExpander(ImageLayout(side=8, tokens_per_tile=4), tokenizer.image_token_id),
        context_length=4096,
    )


async def test_slow_schemas_of_one_key_delay_neither_texts_nor_schemas_of_another_key(
    queue_url: str, client: JobClient
) -> None:
    tokenizer = ByteTokenizer()
    grammars = GrammarCache(
        lambda: [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.image_token_id + 1)],
        [tokenizer.eos_token_id],
        cpu_s=1.0,
    )
    async with running_worker(queue_url, SteppedEngine(max_sequences=NUM_SLOTS), grammars=grammars):
        client.tenant = "attacker"
        attacks = [
            await client.submit("Hi?", max_tokens=2, grammar=slow_schema(number))
            for number in range(NUM_ATTACKS)
        ]
        client.tenant = "other"
        for number in range(3):
            assert await client.complete("Hi?", max_tokens=3)
            choice = Grammar("choice", json.dumps([f"yes {number}"]))
            final = await client.wait_for_final(
                await client.submit("Hi?", max_tokens=30, grammar=choice), timeout_s=scaled(30)
            )
            assert final.error is None
        num_ended = sum(client.final(job) is not None for job in attacks)
        for job in attacks[1:]:
            await client.producer.cancel(job, tenant="attacker")
        error = (await client.wait_for_final(attacks[0])).error
    assert num_ended < NUM_ATTACKS / 2
    assert error is not None and error.code is ErrorCode.INVALID_REQUEST
    assert (error.param, "seconds of CPU time" in error.message) == ("response_format", True)


async def test_slow_tokenization_of_one_key_does_not_delay_the_jobs_of_another_key(
    queue_url: str, client: JobClient, prompts: PromptBuilder, tokenizer: SlowTokenizer
) -> None:
    async with running_worker(queue_url, SteppedEngine(max_sequences=NUM_SLOTS), prompts=prompts):
        client.tenant = "attacker"
        attacks = [await client.submit(SLOW, max_tokens=2) for _ in range(NUM_ATTACKS)]
        await async_wait_until(lambda: tokenizer.num_blocked)
        client.tenant = "other"
        jobs = [await client.submit("Hi?", max_tokens=3) for _ in range(3)]
        for job in jobs:
            assert await client.wait_for_text(job)
        assert tokenizer.num_blocked == 1  # one thread remains free
        assert not any(client.events[job] for job in attacks)
        tokenizer.release.set()
        for job in attacks:  # no job is lost
            assert await client.wait_for_text(job)


async def test_slow_prompt_logprobs_of_one_key_do_not_delay_the_jobs_of_another_key(
    queue_url: str, client: JobClient, tokenizer: SlowTokenizer
) -> None:
    async with running_worker(queue_url, tokenizer=tokenizer):
        client.tenant = "attacker"
        attacks = [
            await client.submit_messages(
                [Message("user", (SLOW_BYTE,))], form="raw", is_echoed=True, num_logprobs=0, max_tokens=0
            )
            for _ in range(3)
        ]
        await async_wait_until(lambda: tokenizer.num_blocked)
        client.tenant = "other"
        assert await client.complete("Hi?", max_tokens=3)
        assert not any(client.events[job] for job in attacks)
        tokenizer.release.set()
        for job in attacks:
            await client.wait_for_final(job)
            [event] = client.events[job]
            assert [token.sampled.text for token in event.prompt] == [b"", SLOW_BYTE.encode()]


async def test_cancelled_jobs_are_not_tokenized(
    queue_url: str, client: JobClient, prompts: PromptBuilder, tokenizer: SlowTokenizer
) -> None:
    async with running_worker(queue_url, prompts=prompts) as running:
        first, *others = [await client.submit(SLOW, max_tokens=2) for _ in range(4)]
        await async_wait_until(lambda: tokenizer.num_blocked and len(running.worker.job_ids) == 4)
        for job in others:
            await client.producer.cancel(job, tenant="test")
        await async_wait_until(lambda: running.worker.job_ids == [first])
        tokenizer.release.set()
        assert await client.wait_for_text(first)
        assert tokenizer.num_blocked == 1


async def test_a_worker_that_only_prepares_jobs_is_not_considered_hung(
    queue_url: str,
    client: JobClient,
    prompts: PromptBuilder,
    tokenizer: SlowTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llava_worker.worker._PROGRESS_S", 0.05)
    hang_timeout_s = 0.5
    async with running_worker(queue_url, prompts=prompts, hang_timeout_s=hang_timeout_s):
        job = await client.submit(SLOW, max_tokens=2)
        await async_wait_until(lambda: tokenizer.num_blocked)
        with redis.Redis.from_url(queue_url, decode_responses=True) as queue:
            key = PREFIX + "progress"

            def deadline_ms() -> float:
                return max(float(score) for _, score in queue.zrange(key, 0, -1, withscores=True))

            first_ms = deadline_ms()
            await async_wait_until(lambda: deadline_ms() > first_ms + 3 * hang_timeout_s * 1000)
        tokenizer.release.set()
        assert await client.wait_for_text(job)
        assert tokenizer.num_blocked == 1  # the job was not moved


def test_tokenizing_a_long_text_does_not_stop_other_threads() -> None:
    tokenizer = HFTokenizer(Path(llava_worker.__file__).parent / "tiny")
    is_done = threading.Event()

    def tokenize() -> None:
        tokenizer.encode("ab" * (1 << 20))
        is_done.set()

    thread = threading.Thread(target=tokenize)
    thread.start()
    num_turns = 0
    while not is_done.wait(0.001):
        num_turns += 1
    thread.join()
    assert num_turns > 10
