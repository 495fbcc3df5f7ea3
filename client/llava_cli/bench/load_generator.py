"""Runs the conversations in a plan and records when each piece of text arrives.

    warm up (one unmeasured request)  ->  closed loop, or open loop if a rate is set  ->  Run

Failed requests are not retried, because errors are part of the result.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import httpx2
from llava_client.async_client import AsyncClient
from llava_client.chat_request import ChatOptions
from llava_client.connection import Connection
from llava_client.errors import APIStatusError, LlavaError, StreamInterrupted
from llava_client.stream import AsyncStream

from llava_cli.bench.plan import Plan, PlannedConversation, conversations
from llava_cli.bench.sample import Sample, error_kind

__all__ = ["DEFAULT_TIMEOUT_S", "Run", "run_load"]

DEFAULT_TIMEOUT_S = 600.0  # maximum time to wait for more data from the server
# Fields that not all servers support. With the second one, each chunk contains the number of tokens so far.
_EXTENSIONS = {
    "ignore_eos": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
_UNKNOWN_FIELD = (400, 422)  # status codes that servers use to reject unknown request fields

OnSample = Callable[[Sample], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The results of running a plan. ``samples`` is in the order in which the requests ended."""

    plan: Plan
    base_url: str
    model: str
    started_at: float  # Unix time, in seconds
    wall_s: float
    samples: tuple[Sample, ...]
    warm_up: Sample | None = None


async def run_load(
    plan: Plan,
    base_url: str | None = None,
    api_key: str | None = None,
    *,
    model: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    is_warming_up: bool = True,
    on_sample: OnSample | None = None,
) -> Run:
    """Run ``plan`` and call ``on_sample`` after each request.

    ``model`` defaults to the first model in the server's list. Raises LlavaError if the server cannot be
    reached, the server returns no models, or the warm-up request fails.
    """
    connection = Connection.resolve(base_url, api_key)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx2.AsyncClient(limits=limits, trust_env=not connection.is_local) as http,
        AsyncClient(
            connection.base_url, connection.api_key, timeout=timeout_s, max_retries=0, http_client=http
        ) as client,
    ):
        name = model or await _first_model(client)
        planned = conversations(plan)
        first = next(planned)
        warm_up = None
        if is_warming_up:
            plan, warm_up = await _warm_up(client, plan, name, first)
        runner = _RequestRunner(client, plan, name, on_sample)
        started_at, began = time.time(), runner.restart()
        await (_closed_loop if plan.rate is None else _open_loop)(runner, plan, planned)
        return Run(
            plan=plan,
            base_url=connection.base_url,
            model=name,
            started_at=started_at,
            wall_s=time.perf_counter() - began,
            samples=tuple(runner.samples),
            warm_up=warm_up,
        )


async def _first_model(client: AsyncClient) -> str:
    models = await client.models()
    if not models:
        raise LlavaError(f"{client.base_url} returned no models. Start a worker or specify a model.")
    return models[0].id


async def _warm_up(
    client: AsyncClient, plan: Plan, model: str, conversation: PlannedConversation
) -> tuple[Plan, Sample]:
    """Send one request. Return the plan to run and the measurements of this request.

    If the server rejects ``ignore_eos`` or continuous token counts, retry without both and disable them in
    the returned plan. Raises LlavaError if the request fails.
    """
    one_turn = replace(conversation, questions=conversation.questions[:1])
    while True:
        runner = _RequestRunner(client, plan, model, None)
        runner.restart()
        await runner.run(one_turn, due_s=0.0)
        failure = runner.failure
        if failure is None:
            return plan, runner.samples[0]
        is_rejection = isinstance(failure, APIStatusError) and failure.status_code in _UNKNOWN_FIELD
        if not (plan.ignore_eos and is_rejection):
            raise failure
        plan = replace(plan, ignore_eos=False)


class _RequestRunner:
    """Runs conversations and collects one sample per request."""

    def __init__(self, client: AsyncClient, plan: Plan, model: str, on_sample: OnSample | None) -> None:
        self.samples: list[Sample] = []
        self.failure: LlavaError | None = None  # the most recent failure
        self._client = client
        self._on_sample = on_sample
        self._options: ChatOptions = {"model": model, "max_tokens": plan.max_tokens, "temperature": 0}
        if plan.ignore_eos:
            self._options["extra_body"] = _EXTENSIONS
        self._began = 0.0

    def restart(self) -> float:
        """Reset the clock to zero and return the current value of ``time.perf_counter()``."""
        self._began = time.perf_counter()
        return self._began

    def now_s(self) -> float:
        """Return the number of seconds since ``restart`` was called."""
        return time.perf_counter() - self._began

    async def run(self, conversation: PlannedConversation, *, due_s: float | None = None) -> None:
        """Run the turns of a conversation in order, and stop after the first failure.

        ``due_s`` is the time at which the first turn is due. It defaults to the current time.
        """
        messages: list[dict[str, Any]] = []
        for turn in range(len(conversation.questions)):
            messages.append(conversation.message(turn))
            due = due_s if turn == 0 and due_s is not None else self.now_s()
            sample, text = await self._request(conversation.index, turn, messages, due)
            self.samples.append(sample)
            if self._on_sample is not None:
                self._on_sample(sample)
            if not sample.is_complete:
                return
            messages.append({"role": "assistant", "content": text})

    async def _request(
        self, talk: int, turn: int, messages: list[dict[str, Any]], due_s: float
    ) -> tuple[Sample, str]:
        arrivals_s: list[float] = []
        sample = Sample(talk=talk, turn=turn, due_s=due_s, total_s=0.0)
        text = ""
        try:
            async with await self._client.stream(messages=messages, **self._options) as stream:
                num_first = await self._read(stream, arrivals_s)
                text = stream.text
                sample = _with_usage(sample, stream, num_pieces=len(arrivals_s), num_first=num_first)
        except LlavaError as failure:
            self.failure = failure
            sample = replace(sample, error=error_kind(failure), message=str(failure))
        if sample.is_complete and not arrivals_s:
            sample = replace(sample, error="no_text", message="The response contains no text.")
        gaps = tuple(later - earlier for earlier, later in itertools.pairwise(arrivals_s))
        ttft_s = arrivals_s[0] - due_s if arrivals_s else None
        return replace(sample, total_s=self.now_s() - due_s, ttft_s=ttft_s, gaps_s=gaps), text

    async def _read(self, stream: AsyncStream, arrivals_s: list[float]) -> int:
        """Append the arrival time of each piece. Return the number of tokens at the first arrival."""
        num_first = 1
        try:
            async for _ in stream:
                now_s = self.now_s()
                if not arrivals_s and stream.usage is not None:
                    num_first = max(1, stream.usage.completion_tokens)
                arrivals_s.append(now_s)
        except StreamInterrupted as failure:
            # Some servers send the finish reason but close the connection without sending [DONE]. The
            # response is still complete.
            if stream.finish_reason is None or failure.__cause__ is not None:
                raise
        return num_first


def _with_usage(sample: Sample, stream: AsyncStream, *, num_pieces: int, num_first: int) -> Sample:
    """Add the finish reason and the server's token counts. ``num_first`` is that of the first piece.

    If the server sent no counts, each piece counts as one token.
    """
    usage = stream.usage
    return replace(
        sample,
        num_tokens=usage.completion_tokens if usage else num_pieces,
        num_first_tokens=num_first,
        prompt_tokens=usage.prompt_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        finish_reason=stream.finish_reason,
    )


async def _closed_loop(runner: _RequestRunner, plan: Plan, planned: Iterator[PlannedConversation]) -> None:
    """Simulate ``plan.concurrency`` users.

    As soon as a user's conversation ends, the user starts a new one.
    """

    def due_conversations() -> Iterator[PlannedConversation]:
        for conversation in itertools.islice(planned, plan.num_requests):
            if plan.duration_s is not None and runner.now_s() >= plan.duration_s:
                return
            yield conversation

    queue = due_conversations()

    async def user() -> None:
        for conversation in queue:
            await runner.run(conversation)

    concurrency = plan.concurrency or 1
    num_users = min(concurrency, plan.num_requests or concurrency)
    await asyncio.gather(*(user() for _ in range(num_users)))


async def _open_loop(runner: _RequestRunner, plan: Plan, planned: Iterator[PlannedConversation]) -> None:
    """Start conversations at the rate set in the plan, whether or not earlier ones have ended."""
    limit = asyncio.Semaphore(plan.concurrency) if plan.concurrency else nullcontext()

    async def run(conversation: PlannedConversation, due_s: float) -> None:
        async with limit:
            await runner.run(conversation, due_s=due_s)

    arrivals = _poisson_arrivals(runner, plan, planned)
    running = [asyncio.create_task(run(conversation, due_s)) async for conversation, due_s in arrivals]
    await asyncio.gather(*running)


async def _poisson_arrivals(
    runner: _RequestRunner, plan: Plan, planned: Iterator[PlannedConversation]
) -> AsyncIterator[tuple[PlannedConversation, float]]:
    """Yield each conversation when it is due, together with its due time.

    The intervals between conversations are exponentially distributed.
    """
    intervals = random.Random(f"{plan.seed}/arrivals")
    due_s = 0.0
    for conversation in itertools.islice(planned, plan.num_requests):
        if plan.duration_s is not None and due_s >= plan.duration_s:
            return
        await asyncio.sleep(max(0.0, due_s - runner.now_s()))
        yield conversation, due_s
        due_s += intervals.expovariate(plan.rate or 1.0)
