"""Workers without an engine, whose tokens are the times at which they were generated.

    python -m bench.controllers.worker '{"url": "...", "num_workers": 8, "num_slots": 100, "rate": 25.0}'

In each step, a worker emits one token for each of its jobs through a real connection to the queue. The text
of a token is the time at the end of its step in seconds (CLOCK_MONOTONIC, which all processes on a machine
share). The steps of the workers are spread over time.
"""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import Event, Final, FinishReason
from llava_wire.worker_side.consumer import JobConsumer

from bench.fleet.workers import scripted_heartbeat

__all__ = ["WorkersConfig"]

_BEAT_S = 1.0
_LEASE_S = 30.0  # long, because the machine may be fully loaded
_TOKEN_ID = 1000


class WorkersConfig(msgspec.Struct, frozen=True):
    """The workers of one process. ``rate`` is the number of tokens per second of each job."""

    url: str
    num_workers: int
    num_slots: int
    rate: float


class StampingWorker:
    """A worker that emits a token for each of its jobs in every step."""

    def __init__(self, consumer: JobConsumer, config: WorkersConfig) -> None:
        self._consumer = consumer
        self._config = config
        self._jobs: dict[str, tuple[Assignment, int]] = {}  # job ID -> assignment and number of tokens

    async def run(self, delay_s: float) -> None:
        """Work until the process ends. The first step ends after ``delay_s`` seconds."""
        await asyncio.gather(self._pull(), self._beat(), self._emit(delay_s))

    async def _pull(self) -> None:
        while True:
            if (num_free := self._config.num_slots - len(self._jobs)) <= 0:
                await asyncio.sleep(_BEAT_S)
                continue
            for each in await self._consumer.pull(num_free):
                self._jobs[each.job.job_id] = each, len(each.token_ids)

    async def _beat(self) -> None:
        while True:
            await self._consumer.send_heartbeat()
            await asyncio.sleep(_BEAT_S)

    async def _emit(self, delay_s: float) -> None:
        interval_s = 1 / self._config.rate
        due = time.monotonic() + delay_s
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + interval_s, time.monotonic())  # a step is late if the previous emit took too long
            text = f" {time.monotonic():.6f}"
            events = [(each, _event(each, num_tokens, text)) for each, num_tokens in self._jobs.values()]
            for each, event in events:
                self._jobs[each.job.job_id] = each, event.next_offset
            result = await self._consumer.emit(events)
            ended = {each.job.job_id for each, event in events if event.final is not None}
            for job_id in ended | result.refused:
                self._jobs.pop(job_id, None)


def _event(assignment: Assignment, num_tokens: int, text: str) -> Event:
    is_last = num_tokens + 1 >= (assignment.job.sampling.max_tokens or 1)
    return Event(num_tokens, (_TOKEN_ID,), text, Final(reason=FinishReason.LENGTH) if is_last else None)


async def _main(config: WorkersConfig) -> None:
    consumers = [
        await JobConsumer.connect(
            config.url,
            scripted_heartbeat(number, config.num_slots),
            lease_s=_LEASE_S,
            hang_timeout_s=_LEASE_S,
        )
        for number in range(config.num_workers)
    ]
    delays = [number / config.num_workers / config.rate for number in range(config.num_workers)]
    workers = [StampingWorker(consumer, config) for consumer in consumers]
    await asyncio.gather(*(worker.run(delay_s) for worker, delay_s in zip(workers, delays, strict=True)))


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=WorkersConfig)))
