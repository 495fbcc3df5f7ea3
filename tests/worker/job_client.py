"""A job client without HTTP that submits jobs, collects their events and reaps expired workers."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from llava_wire.controller_side.producer import JobProducer
from llava_wire.messages.event import Event, Final, TokenLogprob
from llava_wire.messages.job import ImageRef, Job, Message, PromptForm, Task
from llava_wire.messages.sampling_params import SamplingParams

from tests.waiting import async_wait_until

REAP_INTERVAL_S = 0.2


@dataclass
class JobClient:
    """A client of the queue. ``events`` contains each job's events in order, without duplicates or gaps."""

    producer: JobProducer
    model: str = "echo"
    tenant: str = "test"
    events: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def submit(
        self, *parts: str | ImageRef, pixels: dict[str, bytes] | None = None, **sampling: Any
    ) -> str:
        """Submit a user message. Return the job ID."""
        return await self.submit_messages([Message("user", parts)], pixels=pixels, **sampling)

    async def submit_messages(
        self,
        messages: Sequence[Message],
        *,
        pixels: dict[str, bytes] | None = None,
        task: Task = "answer",
        form: PromptForm = "chat",
        is_echoed: bool = False,
        **sampling: Any,
    ) -> str:
        job = Job(
            job_id=f"job-{next(self._numbers)}-{self.producer.controller_id[:8]}",
            model=self.model,
            tenant=self.tenant,
            messages=tuple(messages),
            sampling=SamplingParams(**({"seed": 7} | sampling)),
            cost=1.0,
            task=task,
            form=form,
            is_echoed=is_echoed,
        )
        await self.producer.submit(job, pixels or {})
        return job.job_id

    def text(self, job_id: str) -> str:
        return "".join(event.text for event in self.events[job_id])

    def token_ids(self, job_id: str) -> list[int]:
        return [token_id for event in self.events[job_id] for token_id in event.token_ids]

    def logprobs(self, job_id: str) -> list[TokenLogprob]:
        return [token for event in self.events[job_id] for token in event.logprobs]

    def final(self, job_id: str) -> Final | None:
        return self.events[job_id][-1].final if self.events[job_id] else None

    async def wait_for_tokens(self, job_id: str, num_tokens: int) -> None:
        """Wait until the job has exactly ``num_tokens`` tokens."""
        await async_wait_until(lambda: len(self.token_ids(job_id)) == num_tokens)

    async def wait_for_final(self, job_id: str, timeout_s: float = 30.0) -> Final:
        return await async_wait_until(lambda: self.final(job_id), timeout_s=timeout_s)

    async def wait_for_text(self, job_id: str) -> str:
        """Wait until the job has finished. Return its complete text."""
        await self.wait_for_final(job_id)
        return self.text(job_id)

    async def complete(self, *parts: str | ImageRef, **sampling: Any) -> str:
        """Submit a user message and wait for the response. Return its text."""
        return await self.wait_for_text(await self.submit(*parts, **sampling))


@asynccontextmanager
async def connect_job_client(
    url: str, *, model: str = "echo", lease_s: float = 1.0
) -> AsyncIterator[JobClient]:
    producer = await JobProducer.connect(url, lease_s=lease_s)
    client = JobClient(producer, model)
    tasks = [asyncio.create_task(_collect_events(client)), asyncio.create_task(_reap(producer))]
    try:
        yield client
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await producer.aclose()


async def _collect_events(client: JobClient) -> None:
    async for batch in client.producer.follow():
        for job_id, event in batch:
            client.events[job_id].append(event)


async def _reap(producer: JobProducer) -> None:
    while True:
        await producer.reap()
        await asyncio.sleep(REAP_INTERVAL_S)
