"""A burst of jobs from one tenant at most doubles another tenant's latency, measured in engine steps."""

from __future__ import annotations

import pytest
from llava_wire.messages.job import Job
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.worker import has_overflow_slot, overflow_poll_s, sequence_priority

from tests.waiting import async_wait_until
from tests.worker.job_client import JobClient
from tests.worker.running_worker import RunningWorker, SteppedEngine, running_worker

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_pulls")]

NUM_SLOTS, NUM_BURST_JOBS, NUM_TOKENS = 4, 20, 12


class Stepper:
    """Runs each engine step only after the client has received the previous step's tokens."""

    def __init__(self, running: RunningWorker, client: JobClient) -> None:
        self._engine = running.engine
        self._client = client
        self._num_earlier_tokens = self._num_received_tokens() - self._num_generated_tokens()

    async def step(self) -> None:
        num_steps = self._num_steps()
        self._engine.allow_steps(1)
        await async_wait_until(lambda: self._num_steps() == num_steps + 1)
        num_tokens = self._num_generated_tokens() + self._num_earlier_tokens
        await async_wait_until(lambda: self._num_received_tokens() == num_tokens)

    async def measure(self, tenant: str, text: str) -> tuple[int, int]:
        """Submit a job. Return the number of steps until its first token, and until it ends."""
        num_added = self._engine.num_added
        job = await submit(self._client, tenant, text, NUM_TOKENS)
        await self.step()
        # When emitting a step's outputs, a full worker learns that a job is waiting for an overflow slot.
        await async_wait_until(lambda: self._engine.num_added > num_added)
        num_steps, first = 1, int(bool(self._client.token_ids(job)))
        while self._client.final(job) is None:
            await self.step()
            num_steps += 1
            first = first or (num_steps if self._client.token_ids(job) else 0)
        return first, num_steps

    def _num_steps(self) -> int:
        return self._engine.stats().num_steps_total

    def _num_generated_tokens(self) -> int:
        return self._engine.stats().num_generated_tokens_total

    def _num_received_tokens(self) -> int:
        return sum(len(self._client.token_ids(job)) for job in self._client.events)


async def submit(client: JobClient, tenant: str, text: str, max_tokens: int) -> str:
    client.tenant = tenant
    return await client.submit(text, max_tokens=max_tokens, ignore_eos=True)


async def start_burst(running: RunningWorker, client: JobClient) -> Stepper:
    for number in range(NUM_BURST_JOBS):
        await submit(client, "burst", f"question {number}", 300)
    await async_wait_until(lambda: running.engine.num_sequences == NUM_SLOTS)
    stepper = Stepper(running, client)
    for _ in range(3):
        await stepper.step()
    return stepper


async def test_burst_of_one_tenant_at_most_doubles_the_latency_of_another(
    queue_url: str, client: JobClient
) -> None:
    async with running_worker(queue_url, SteppedEngine(max_sequences=NUM_SLOTS), is_stepped=True) as running:
        first_alone, end_alone = await Stepper(running, client).measure("other", "Hi?")
    async with running_worker(queue_url, SteppedEngine(max_sequences=NUM_SLOTS), is_stepped=True) as running:
        stepper = await start_burst(running, client)
        for number in range(3):  # the limit applies to every job, not only to the first one
            first, end = await stepper.measure("other", f"Hi {number}?")
            assert first <= 2 * first_alone
            assert end <= 2 * end_alone


async def test_overflow_slots_are_filled_without_a_step_when_a_pull_has_filled_the_other_slots(
    queue_url: str, client: JobClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_worker.worker._RECONCILE_S", 3600.0)  # a timeout would also fill them
    for number in range(NUM_SLOTS + 1):
        await submit(client, f"tenant {number}", "Hi?", NUM_TOKENS)
    async with running_worker(queue_url, SteppedEngine(max_sequences=NUM_SLOTS), is_stepped=True) as running:
        await async_wait_until(lambda: running.engine.num_added == NUM_SLOTS + 1)
        assert running.engine.stats().num_steps_total == 0


async def test_tenant_with_a_slot_gets_no_overflow_slot(queue_url: str, client: JobClient) -> None:
    async with running_worker(queue_url, SteppedEngine(max_sequences=NUM_SLOTS), is_stepped=True) as running:
        stepper = await start_burst(running, client)
        job = await submit(client, "burst", "Hi?", NUM_TOKENS)
        for _ in range(2 * NUM_TOKENS):
            await stepper.step()
        assert client.token_ids(job) == []


async def test_job_preempted_by_an_overflow_slot_has_the_same_output(
    queue_url: str, client: JobClient
) -> None:
    async with running_worker(queue_url, SteppedEngine(max_sequences=NUM_SLOTS)):
        text = await client.wait_for_text(await submit(client, "burst", "question 3", 40))
    async with running_worker(queue_url, SteppedEngine(max_sequences=NUM_SLOTS), is_stepped=True) as running:
        jobs = [await submit(client, "burst", f"question {number}", 40) for number in range(NUM_SLOTS)]
        await async_wait_until(lambda: running.engine.num_sequences == NUM_SLOTS)
        stepper = Stepper(running, client)
        await stepper.step()
        await stepper.measure("other", "Hi?")
        assert len(client.token_ids(jobs[3])) < len(client.token_ids(jobs[0]))  # the job was preempted
        running.engine.run_freely()
        assert await client.wait_for_text(jobs[3]) == text


PROMPTS = {"long": 2000, "chats": 50}  # tokens


def job(tenant: str, priority: int = 0) -> Job:
    return Job(
        job_id=tenant,
        model="m",
        tenant=tenant,
        messages=(),
        sampling=SamplingParams(seed=1),
        cost=1.0,
        priority=priority,
    )


def test_first_job_of_a_tenant_has_priority_over_its_other_jobs() -> None:
    first = sequence_priority(job("a"), 9, [])
    assert first > sequence_priority(job("a"), 9, [(job("a"), 0)])
    assert first == sequence_priority(job("b"), 9, [(job("a"), 0), (job("a"), 0)])


def test_jobs_have_priority_until_their_tenant_has_half_of_an_equal_share() -> None:
    burst = [(job("burst"), 0)] * 16
    priorities = [
        sequence_priority(job("other"), 9, [*burst, *[(job("other"), 0)] * num]) for num in range(8)
    ]
    assert priorities == [1, 1, 1, 1, 1, 1, 0, 0]
    assert sequence_priority(job("burst"), 9, burst) == 0


def test_short_prompts_precede_all_but_two_long_prompts_of_a_tenant_with_fewer_jobs() -> None:
    chats = [(job("chats"), 0)] * 4
    for num_waiting in range(1, 16):
        others = [*chats, *[(job("long"), 2000)] * num_waiting]
        next_long, short = (sequence_priority(job(name), num, others) for name, num in PROMPTS.items())
        assert short > next_long if num_waiting >= 2 else short == next_long
    assert sequence_priority(job("chats"), 2000, [*chats, (job("long"), 50)]) == 0


def test_the_priority_of_a_job_precedes_the_shares_of_tenants() -> None:
    others = [(job("long"), 2000)] * 16
    assert sequence_priority(job("long", priority=1), 2000, others) > sequence_priority(job("a"), 1, others)


def test_overflow_slots_add_a_quarter_of_the_slots_once_all_slots_are_in_use() -> None:
    assert [num_jobs for num_jobs in range(30) if has_overflow_slot(num_jobs, 16)] == [16, 17, 18, 19]
    assert [num_jobs for num_jobs in range(30) if has_overflow_slot(num_jobs, 1)] == [1]


def test_jobs_that_wait_for_an_overflow_slot_are_found_within_a_fraction_of_a_step() -> None:
    def intervals(*, is_preparing: bool, has_prompts: bool) -> list[float]:
        return [
            overflow_poll_s(step_s, is_preparing=is_preparing, has_prompts=has_prompts)
            for step_s in (0.01, 0.02, 0.1, 2.0)
        ]

    assert intervals(is_preparing=False, has_prompts=True) == [3.0, 0.02, 0.025, 0.5]
    assert intervals(is_preparing=False, has_prompts=False) == [3.0, 3.0, 0.1, 0.5]  # emits report them
    assert intervals(is_preparing=True, has_prompts=False) == [0.02] * 4


def test_jobs_in_preparation_add_overflow_slots() -> None:
    def num_overflow(num_preparing: int) -> int:
        return sum(has_overflow_slot(num, 16, num_preparing=num_preparing) for num in range(99))

    assert [num_overflow(num) for num in (0, 1, 16, 20)] == [4, 5, 20, 16]
    assert not has_overflow_slot(0, 16, num_preparing=15)  # regular slots are free
    assert has_overflow_slot(0, 16, num_preparing=35)
    assert not has_overflow_slot(0, 16, num_preparing=36)
