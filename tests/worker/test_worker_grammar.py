"""GrammarCache in the worker's loop: compiled beside the streams, refused alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from llava_wire.messages.event import ErrorCode, FinishReason
from llava_wire.messages.sampling_params import Grammar
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.language.tokenizer import ByteTokenizer

from tests.waiting import async_wait_until
from tests.worker.asker import Asker
from tests.worker.test_worker_loop import running

pytestmark = pytest.mark.anyio

TOKENIZER = ByteTokenizer()
OBJECT = Grammar("json_object")
BROKEN = Grammar("regex", "(a")


@pytest.fixture(autouse=True)
def _pulls_wait_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain waits for the pull in hand."""
    monkeypatch.setattr("llava_wire.worker_side.consumer.WAIT_S", 0.05)


class SlowVocabulary:
    """Bytes for tokens, once it is let go."""

    def __init__(self) -> None:
        self.is_asked = threading.Event()
        self.is_released = threading.Event()

    def read(self) -> list[bytes]:
        self.is_asked.set()
        assert self.is_released.wait(30)
        return [TOKENIZER.token_bytes(token_id) for token_id in range(TOKENIZER.image_token_id + 1)]


@pytest.fixture
def vocabulary() -> Iterator[SlowVocabulary]:
    slow = SlowVocabulary()
    yield slow
    slow.is_released.set()


@pytest.fixture
def grammars(vocabulary: SlowVocabulary) -> GrammarCache:
    return GrammarCache(vocabulary.read, [TOKENIZER.eos_token_id], timeout_s=60.0)


async def test_a_slow_grammar_holds_up_neither_running_nor_new_streams(
    queue_url: str, asker: Asker, grammars: GrammarCache, vocabulary: SlowVocabulary
) -> None:
    async with running(queue_url, grammars=grammars):
        slow = await asker.ask("Hi?", max_tokens=5, grammar=OBJECT)
        await async_wait_until(vocabulary.is_asked.is_set)
        for _ in range(2):
            assert (await asker.end(await asker.ask("Hi?", max_tokens=20))).reason is FinishReason.LENGTH
        assert asker.final(slow) is None
        vocabulary.is_released.set()
        assert (await asker.end(slow)).reason is FinishReason.LENGTH


async def test_a_grammar_that_is_refused_ends_its_own_job_with_the_reason(
    queue_url: str, asker: Asker, grammars: GrammarCache, vocabulary: SlowVocabulary
) -> None:
    vocabulary.is_released.set()
    async with running(queue_url, grammars=grammars) as worker:
        free = await asker.ask("Hi?", max_tokens=20)
        broken = await asker.end(await asker.ask("Hi?", max_tokens=20, grammar=BROKEN))
        assert broken.error is not None
        assert (broken.error.code, broken.error.param) == (ErrorCode.INVALID_REQUEST, "response_format")
        assert "unclosed group" in broken.error.message
        assert (await asker.end(free)).reason is FinishReason.LENGTH
        assert worker.engine.num_sequences == 0


async def test_a_job_that_is_cancelled_while_its_grammar_compiles_never_reaches_the_engine(
    queue_url: str, asker: Asker, grammars: GrammarCache, vocabulary: SlowVocabulary
) -> None:
    async with running(queue_url, grammars=grammars) as worker:
        gone = await asker.ask("Hi?", max_tokens=20, grammar=OBJECT)
        await async_wait_until(vocabulary.is_asked.is_set)
        assert await asker.producer.cancel(gone, tenant="test")
        await async_wait_until(lambda: gone not in worker.worker._outputs)
        vocabulary.is_released.set()
        assert (await asker.end(await asker.ask("Hi?", max_tokens=3))).reason is FinishReason.LENGTH
        assert not asker.token_ids(gone)


async def test_a_model_that_answers_freely_only_says_so(queue_url: str, asker: Asker) -> None:
    async with running(queue_url):
        final = await asker.end(await asker.ask("Hi?", max_tokens=20, grammar=OBJECT))
    assert final.error is not None
    assert "freely only" in final.error.message
