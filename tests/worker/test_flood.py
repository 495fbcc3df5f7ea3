"""A flood of one key's requests leaves another key's latency within twice, counted in steps of the engine."""

from __future__ import annotations

import pytest
from llava_wire.messages.job import Job
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.slots import has_overflow_slot, sequence_priority

from tests.waiting import async_wait_until
from tests.worker.asker import Asker
from tests.worker.test_worker_loop import Gate, Running, _pulls_wait_briefly, running

__all__ = ["_pulls_wait_briefly"]  # a fixture

pytestmark = pytest.mark.anyio

NUM_PLACES, NUM_FLOOD, NUM_TOKENS = 4, 20, 12


class Steps:
    """Lets a worker's engine make one step at a time, the next when the last one's tokens are told."""

    def __init__(self, run: Running, asker: Asker) -> None:
        self.run = run
        self.asker = asker
        self._told_before = self._num_told() - run.engine.stats().num_generated_tokens_total

    async def one(self) -> None:
        engine = self.run.engine
        num_steps = engine.stats().num_steps_total
        engine.let(1)
        await async_wait_until(lambda: engine.stats().num_steps_total == num_steps + 1)
        num_told = engine.stats().num_generated_tokens_total + self._told_before
        await async_wait_until(lambda: self._num_told() == num_told)

    async def to_first_and_end(self, job: str) -> tuple[int, int]:
        """How many steps it takes from now until the job has its first token, and until its end."""
        await self.one()
        # A full worker hears of a guest with the step's emit.
        await async_wait_until(lambda: self.asker.final(job) is not None or self._is_in_engine(job))
        count, first = 1, int(bool(self.asker.token_ids(job)))
        while self.asker.final(job) is None:
            await self.one()
            count += 1
            first = first or (count if self.asker.token_ids(job) else 0)
        return first, count

    def _is_in_engine(self, job: str) -> bool:
        held = self.run.worker._outputs.get(job)
        names = [running.sequence.seq_id for running in list(self.run.engine.echo._sequences.values())]
        return held is not None and held.assignment.assignment_id in names

    def _num_told(self) -> int:
        return sum(len(self.asker.token_ids(job)) for job in self.asker.events)


async def asked(asker: Asker, tenant: str, text: str, max_tokens: int) -> str:
    asker.tenant = tenant
    return await asker.ask(text, max_tokens=max_tokens, ignore_eos=True)


async def alone(queue_url: str, asker: Asker) -> tuple[int, int]:
    async with running(queue_url, Gate(max_sequences=NUM_PLACES), is_open=False) as run:
        job = await asked(asker, "other", "Hi?", NUM_TOKENS)
        await async_wait_until(lambda: run.engine.num_sequences == 1)
        return await Steps(run, asker).to_first_and_end(job)


async def flooded(run: Running, asker: Asker) -> Steps:
    for number in range(NUM_FLOOD):
        await asked(asker, "flood", f"question {number}", 300)
    await async_wait_until(lambda: run.engine.num_sequences == NUM_PLACES)
    steps = Steps(run, asker)
    for _ in range(3):
        await steps.one()
    return steps


async def test_a_flood_of_one_key_leaves_anothers_latency_within_twice(queue_url: str, asker: Asker) -> None:
    first_alone, end_alone = await alone(queue_url, asker)
    async with running(queue_url, Gate(max_sequences=NUM_PLACES), is_open=False) as run:
        steps = await flooded(run, asker)
        for number in range(3):  # not the first time only
            job = await asked(asker, "other", f"Hi {number}?", NUM_TOKENS)
            first, end = await steps.to_first_and_end(job)
            assert first <= 2 * first_alone
            assert end <= 2 * end_alone


async def test_a_key_that_has_a_place_waits_its_turn(queue_url: str, asker: Asker) -> None:
    async with running(queue_url, Gate(max_sequences=NUM_PLACES), is_open=False) as run:
        steps = await flooded(run, asker)
        job = await asked(asker, "flood", "Hi?", NUM_TOKENS)
        for _ in range(2 * NUM_TOKENS):
            await steps.one()
        assert asker.token_ids(job) == []


async def test_no_answer_of_the_flood_is_changed_by_a_guest(queue_url: str, asker: Asker) -> None:
    async with running(queue_url, Gate(max_sequences=NUM_PLACES)):
        plain = await asker.answer(await asked(asker, "flood", "question 3", 40))
    async with running(queue_url, Gate(max_sequences=NUM_PLACES), is_open=False) as run:
        jobs = [await asked(asker, "flood", f"question {number}", 40) for number in range(NUM_PLACES)]
        await async_wait_until(lambda: run.engine.num_sequences == NUM_PLACES)
        steps = Steps(run, asker)
        await steps.one()
        guest = await asked(asker, "other", "Hi?", NUM_TOKENS)
        await steps.to_first_and_end(guest)
        assert len(asker.token_ids(jobs[3])) < len(asker.token_ids(jobs[0]))  # it made way
        run.engine.open()
        assert await asker.answer(jobs[3]) == plain


def test_the_first_of_a_key_goes_before_further_ones_of_its_priority() -> None:
    first, further, other = (
        Job(job_id=name, model="m", tenant=tenant, messages=(), sampling=SamplingParams(seed=1), cost=1.0)
        for name, tenant in (("1", "a"), ("2", "a"), ("3", "b"))
    )
    assert (
        sequence_priority(first, [])
        == sequence_priority(other, [first, further])
        > sequence_priority(further, [first])
    )


def test_guests_come_when_all_places_are_full_and_are_a_few() -> None:
    assert [num_held for num_held in range(30) if has_overflow_slot(num_held, 16)] == [16, 17, 18, 19]
    assert [num_held for num_held in range(30) if has_overflow_slot(num_held, 1)] == [1]
