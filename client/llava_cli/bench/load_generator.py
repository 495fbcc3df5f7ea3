"""Puts a plan's talks to a server and clocks the answers.

    warm up (one talk, not measured)  ->  talks as the plan says  ->  Run

Nothing is tried again: a refusal is a result.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx2
from llava_client.async_client import AsyncClient
from llava_client.chat_request import ChatOptions
from llava_client.connection import Connection
from llava_client.errors import APIStatusError, LlavaError, StreamInterrupted
from llava_client.stream import AsyncStream

from llava_cli.bench.plan import Plan, Talk, talks
from llava_cli.bench.sample import Sample, error_kind

__all__ = ["DEFAULT_TIMEOUT_S", "Run", "run_load"]

DEFAULT_TIMEOUT_S = 600.0  # of silence
_UNKNOWN_FIELD = (400, 422)  # what servers answer to a field that they do not know

OnSample = Callable[[Sample], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of a plan; ``plan`` is as it was carried out, ``samples`` in the order of their ends."""

    plan: Plan
    base_url: str
    model: str
    started_at: float  # seconds since 1970
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
    """Carry ``plan`` out; ``on_sample`` is told of each request that ended. ``model`` None asks the server.

    Raises LlavaError if the server is not there, lists no model or refuses the request that warms up.
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
        all_talks = talks(plan)
        warm_up_talk = next(all_talks)
        warm_up = None
        if is_warming_up:
            plan, warm_up = await _warm_up(client, plan, name, warm_up_talk)
        asker = _Asker(client, plan, name, on_sample)
        started_at, began = time.time(), asker.restart()
        await (_closed_loop if plan.rate is None else _open_loop)(asker, plan, all_talks)
        return Run(
            plan=plan,
            base_url=connection.base_url,
            model=name,
            started_at=started_at,
            wall_s=time.perf_counter() - began,
            samples=tuple(asker.samples),
            warm_up=warm_up,
        )


async def _first_model(client: AsyncClient) -> str:
    models = await client.models()
    if not models:
        raise LlavaError(f"{client.base_url} lists no model: start a worker, or name a model")
    return models[0].id


async def _warm_up(client: AsyncClient, plan: Plan, model: str, talk: Talk) -> tuple[Plan, Sample]:
    """One talk, and whether the server takes ``ignore_eos``. Raises LlavaError: nothing can be measured."""
    one_turn = replace(talk, questions=talk.questions[:1])
    while True:
        asker = _Asker(client, plan, model, None)
        asker.restart()
        await asker.hold(one_turn, due_s=0.0)
        failure = asker.failure
        if failure is None:
            return plan, asker.samples[0]
        is_refusal = isinstance(failure, APIStatusError) and failure.status_code in _UNKNOWN_FIELD
        if not (plan.ignore_eos and is_refusal):
            raise failure
        plan = replace(plan, ignore_eos=False)


class _Asker:
    """Holds talks and collects their samples."""

    def __init__(self, client: AsyncClient, plan: Plan, model: str, on_sample: OnSample | None) -> None:
        self.samples: list[Sample] = []
        self.failure: LlavaError | None = None  # the last one
        self._client = client
        self._on_sample = on_sample
        self._options: ChatOptions = {"model": model, "max_tokens": plan.max_tokens, "temperature": 0}
        if plan.ignore_eos:
            self._options["extra_body"] = {"ignore_eos": True}
        self._began = 0.0

    def restart(self) -> float:
        """Set the load's clock to zero."""
        self._began = time.perf_counter()
        return self._began

    def now_s(self) -> float:
        """Since the load's start."""
        return time.perf_counter() - self._began

    async def hold(self, talk: Talk, *, due_s: float | None = None) -> None:
        """All turns of a talk; a failed one ends it. ``due_s`` None is now."""
        messages: list[dict[str, Any]] = []
        for turn in range(len(talk.questions)):
            messages.append(talk.turn(turn))
            due = due_s if turn == 0 and due_s is not None else self.now_s()
            sample, text = await self._ask(talk.number, turn, messages, due)
            self.samples.append(sample)
            if self._on_sample is not None:
                self._on_sample(sample)
            if not sample.is_complete:
                return
            messages.append({"role": "assistant", "content": text})

    async def _ask(
        self, talk: int, turn: int, messages: list[dict[str, Any]], due_s: float
    ) -> tuple[Sample, str]:
        stamps: list[float] = []
        sample = Sample(talk=talk, turn=turn, due_s=due_s, total_s=0.0)
        text = ""
        try:
            async with await self._client.stream(messages=messages, **self._options) as stream:
                await self._read(stream, stamps)
                text = stream.text
                sample = _told(sample, stream, num_pieces=len(stamps))
        except LlavaError as failure:
            self.failure = failure
            sample = replace(sample, error=error_kind(failure), message=str(failure))
        if sample.is_complete and not stamps:
            sample = replace(sample, error="no_text", message="the answer was complete and empty")
        gaps = tuple(later - earlier for earlier, later in itertools.pairwise(stamps))
        ttft_s = stamps[0] - due_s if stamps else None
        return replace(sample, total_s=self.now_s() - due_s, ttft_s=ttft_s, gaps_s=gaps), text

    async def _read(self, stream: AsyncStream, stamps: list[float]) -> None:
        try:
            async for _ in stream:
                now_s = self.now_s()
                stamps.append(now_s)
        except StreamInterrupted as failure:
            # Some servers close after the finish reason and send no [DONE]: nothing is missing then.
            if stream.finish_reason is None or failure.__cause__ is not None:
                raise


def _told(sample: Sample, stream: AsyncStream, *, num_pieces: int) -> Sample:
    """With what the server said of the answer."""
    usage = stream.usage
    return replace(
        sample,
        num_tokens=usage.completion_tokens if usage else num_pieces,
        prompt_tokens=usage.prompt_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        finish_reason=stream.finish_reason,
    )


async def _closed_loop(asker: _Asker, plan: Plan, all_talks: Iterator[Talk]) -> None:
    """So many at any time: each place takes the next talk when its last has ended."""

    def due() -> Iterator[Talk]:
        for talk in itertools.islice(all_talks, plan.num_requests):
            if plan.duration_s is not None and asker.now_s() >= plan.duration_s:
                return
            yield talk

    waiting = due()

    async def place() -> None:
        for talk in waiting:
            await asker.hold(talk)

    places = plan.concurrency or 1
    await asyncio.gather(*(place() for _ in range(min(places, plan.num_requests or places))))


async def _open_loop(asker: _Asker, plan: Plan, all_talks: Iterator[Talk]) -> None:
    """Arrivals that wait for nobody: a Poisson process, so the pauses are exponential."""
    doors = asyncio.Semaphore(plan.concurrency) if plan.concurrency else None

    async def visit(talk: Talk, due_s: float) -> None:
        if doors is None:
            await asker.hold(talk, due_s=due_s)
        else:
            async with doors:
                await asker.hold(talk, due_s=due_s)

    visits = [
        asyncio.create_task(visit(talk, due_s)) async for talk, due_s in _arrivals(asker, plan, all_talks)
    ]
    await asyncio.gather(*visits)


async def _arrivals(
    asker: _Asker, plan: Plan, all_talks: Iterator[Talk]
) -> AsyncIterator[tuple[Talk, float]]:
    pauses = random.Random(f"{plan.seed}/arrivals")
    due_s = 0.0
    for talk in itertools.islice(all_talks, plan.num_requests):
        if plan.duration_s is not None and due_s >= plan.duration_s:
            return
        await asyncio.sleep(max(0.0, due_s - asker.now_s()))
        yield talk, due_s
        due_s += pauses.expovariate(plan.rate or 1.0)
