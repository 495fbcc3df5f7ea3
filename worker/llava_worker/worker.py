"""The worker's main loop: moves jobs from the queue to the engine and tokens from the engine to the queue.

    pull  ->  JobPreparation  ->  EngineThread  ->  JobOutput (detokenizer)  ->  emit
                   heartbeat every second       reconcile every few seconds

Each job is prepared in a task of its own, so a job that takes long to prepare does not delay pulls or other
jobs. One event loop owns everything except the engine. At most one emit per queue shard is in flight. Engine
outputs that arrive during an emit, or before the next one is due (``EmitPacer``), are sent with the next one.
Emits also signal progress: while the worker has jobs, it emits at least once per second, provided that the
engine has finished a step since the last emit or has no jobs. If the engine hangs, the emits stop, and the
queue treats the worker as hung.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from anyio import CancelScope, create_task_group, current_time, move_on_after
from anyio.abc import TaskGroup
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.messages.job import Job
from llava_wire.messages.load_command import IssuedCommand
from llava_wire.worker_side.consumer import STEP_STAT, JobConsumer
from llava_wire.worker_side.emit_pacer import EmitPacer
from llava_wire.worker_side.sharded_consumer import ShardedConsumer

from llava_worker.background import run_in_background
from llava_worker.engine import EngineInterface, StepOutput
from llava_worker.engine_thread import EXIT_BROKEN, EngineThread
from llava_worker.job_output import JobOutput, JobOutputFactory
from llava_worker.job_preparation import JobPreparation
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.tokenizer import Tokenizer
from llava_worker.model_thread import ModelThread

if TYPE_CHECKING:
    from llava_worker.engine.structured_output.grammar_cache import GrammarCache
    from llava_worker.model.loading.packed_file import MappedFile
    from llava_worker.model.loading.unstored_weights import UnstoredWeights

__all__ = ["LEAVE_TIMEOUT_S", "Worker", "has_overflow_slot", "overflow_poll_s", "sequence_priority"]

_PROGRESS_S = 1.0  # maximum time between emits while the engine is running steps; far below any hang timeout
# The shortest intervals of overflow pulls while jobs are prepared or prompts computed, and at other times.
_MIN_OVERFLOW_POLL_S, _SLOW_POLL_S = 0.02, 0.1
_RECONCILE_S = 3.0  # infrequent, because reconciliation only repairs states that should not occur
_STOP_TIMEOUT_S = 5.0  # time allowed for the engine to finish its current step
# The usual time between SIGTERM and SIGKILL. If the worker is killed, its lease expires.
LEAVE_TIMEOUT_S = 10.0

logger = logging.getLogger(__name__)


class Worker:
    """A worker that serves one model. An instance can run only once.

    Invariant: a job remains in ``_outputs`` until its final event has been emitted or one of its events has
    been rejected. The caller connects ``consumer`` before calling ``run`` and closes it afterward.
    """

    def __init__(
        self,
        consumer: ShardedConsumer,
        engine: EngineInterface,
        *,
        prompts: PromptBuilder,
        tokenizer: Tokenizer,
        heartbeat: Heartbeat,
        beat_s: float = 1.0,
        drain_timeout_s: float = 0.0,
        hang_timeout_s: float = 30.0,
        grammars: GrammarCache | None = None,
        create_output: JobOutputFactory = JobOutput,
        on_command: Callable[[IssuedCommand], None] | None = None,
        engine_thread: ModelThread | None = None,
        unstored_weights: UnstoredWeights | None = None,
    ) -> None:
        """Create a worker.

        ``engine_thread`` is the thread that loaded the model, or None to run the engine in a new one.
        ``unstored_weights`` are stored in the weights cache while the model is served.
        """
        self._consumer = consumer
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._heartbeat = heartbeat
        self._beat_s = beat_s
        self._drain_timeout_s = drain_timeout_s
        self._num_slots = engine.max_sequences
        self._engine = EngineThread(
            engine,
            on_outputs=lambda outputs: self._call_soon(self._process_outputs, outputs),
            on_failure=lambda: self._call_soon(self._cancel_after_engine_failure),
            hang_timeout_s=hang_timeout_s,
            device=heartbeat.device,
            thread=engine_thread,
        )
        self._preparation = JobPreparation(prompts, grammars, context_length=engine.context_length)
        self._create_output = create_output
        self._on_command = on_command
        self._hang_timeout_s = hang_timeout_s
        self._unstored_weights = unstored_weights
        self._storing: asyncio.Future[MappedFile | None] | None = None
        self._outputs: dict[str, JobOutput] = {}  # keyed by job_id
        self._preparing: dict[str, CancelScope] = {}  # keyed by job_id, like the next attribute
        self._building_echo: dict[str, JobOutput] = {}  # see _echo_loop
        self._unbuilt_echoes: asyncio.Queue[JobOutput] = asyncio.Queue()
        self._in_engine: dict[str, JobOutput] = {}  # keyed by assignment_id
        self._has_engine_failed = False
        self._is_model_switch = False
        self._draining = asyncio.Event()
        self._closing = asyncio.Event()  # set once only the last emit and heartbeat remain to be sent
        self._slot_freed = asyncio.Event()
        self._has_outputs = {shard: asyncio.Event() for shard in consumer.shards}
        self._is_idle = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None  # set by run(), like the next two attributes
        self._scope: CancelScope | None = None
        self._job_tasks: TaskGroup | None = None

    @property
    def job_ids(self) -> list[str]:
        """The IDs of the jobs that this worker holds."""
        return list(self._outputs)

    def drain(self, *, is_model_switch: bool = False) -> None:
        """Stop pulling jobs, return unfinished jobs to the queue and let ``run`` return.

        Must be called in the event loop's thread. If ``is_model_switch`` is true, the worker stays
        registered, and its engine has stopped when ``run`` returns.
        """
        self._is_model_switch = is_model_switch and not self._draining.is_set()
        self._draining.set()
        self._slot_freed.set()

    async def run(self) -> int:
        """Serve until drained and return the exit status: 0 after a drain, 70 after an engine failure.

        Any exception raised is a bug. After an engine failure, the jobs are not returned to the queue.
        Instead, their assignments expire together with the lease. This counts as a crash, so a job that
        causes an engine failure on every worker fails after a few attempts.
        """
        self._loop = asyncio.get_running_loop()
        try:
            with CancelScope() as self._scope:
                self._engine.start()
                await self._send_heartbeat()
                logger.info(
                    "worker ready: model=%s worker_id=%s", self._heartbeat.model, self._heartbeat.worker_id
                )
                await self._serve()
            if self._scope.cancelled_caught and not self._has_engine_failed:
                logger.warning(
                    "running jobs could not be requeued in time; other workers will resume them after the "
                    "lease expires"
                )
        finally:
            has_stopped = await self._stop_engine()
        must_exit = self._has_engine_failed or (self._is_model_switch and not has_stopped)
        return EXIT_BROKEN if must_exit else 0

    async def _serve(self) -> None:
        """Pull and emit until drained, then return the remaining jobs to the queue."""
        async with create_task_group() as self._job_tasks:
            self._job_tasks.start_soon(self._echo_loop, self._job_tasks)
            self._job_tasks.start_soon(self._store_weights)
            async with create_task_group() as loops:
                for shard in self._consumer.shards:
                    loops.start_soon(self._emit_loop, shard)
                loops.start_soon(self._heartbeat_loop, self._closing)
                loops.start_soon(self._limit_drain)
                await self._pull_loop()  # emits continue until the last pull has returned, so no job is lost
                if self._drain_timeout_s and self._outputs:
                    await _wait(self._is_idle, self._drain_timeout_s)
                self._closing.set()
                for has_outputs in self._has_outputs.values():
                    has_outputs.set()
            await self._hand_over()
            self._job_tasks.cancel_scope.cancel()

    async def _store_weights(self) -> None:
        """Store the weights if they were read from the checkpoint, and use the stored ones.

        Other workers share the memory of stored weights.
        """
        unstored = self._unstored_weights
        if unstored is None:
            return
        self._storing = run_in_background(unstored.store)
        try:
            mapped = await asyncio.shield(self._storing)
        finally:
            unstored.cancel()
        if mapped is not None:
            previous = await asyncio.wrap_future(self._engine.call(partial(unstored.use, mapped)))
            await run_in_background(previous.clear)  # frees gigabytes, which takes about 0.1 s each

    async def _limit_drain(self) -> None:
        """Wait for a drain to begin, then set its deadline."""
        await self._draining.wait()
        logger.info("draining: %d running jobs", len(self._outputs))
        assert self._scope is not None
        self._scope.deadline = current_time() + self._drain_timeout_s + LEAVE_TIMEOUT_S
        await self._send_heartbeat()

    async def _hand_over(self) -> None:
        remaining = [output.assignment for output in self._outputs.values()]
        for assignment in remaining:
            self._drop(assignment.job.job_id)
        if remaining:
            await self._consumer.requeue(remaining)
        if not self._is_model_switch:
            await self._consumer.deregister()
        logger.info("drained: requeued %d jobs", len(remaining))

    async def _pull_loop(self) -> None:
        """Pull jobs and reconcile in the same loop, so that reconciliation sees every pulled job."""
        next_reconcile = time.monotonic() + _RECONCILE_S
        while not self._draining.is_set():
            self._slot_freed.clear()
            num_free = self._num_slots - len(self._in_engine) - len(self._preparing)
            if num_free > 0:
                for assignment in await self._consumer.pull(num_free):
                    self._start_job(assignment)
            else:
                await _wait(self._slot_freed, self._overflow_poll_s)
            await self._fill_overflow_slots()
            if time.monotonic() >= next_reconcile:
                for job_id in await self._consumer.reconcile(self.job_ids):
                    self._drop(job_id)
                next_reconcile = time.monotonic() + _RECONCILE_S

    async def _fill_overflow_slots(self) -> None:
        while self._has_overflow_slot() and (assignments := await self._consumer.pull_overflow()):
            for assignment in assignments:
                self._start_job(assignment)

    @property
    def _overflow_poll_s(self) -> float:
        has_prompts = any(output.num_pending_tokens for output in self._in_engine.values())
        return overflow_poll_s(
            self._engine.step_s, is_preparing=bool(self._preparing), has_prompts=has_prompts
        )

    def _has_overflow_slot(self) -> bool:
        return has_overflow_slot(len(self._in_engine), self._num_slots, num_preparing=len(self._preparing))

    def _start_job(self, assignment: Assignment) -> None:
        """Start preparing a job in a task of its own."""
        job_id = assignment.job.job_id
        self._drop(job_id)  # if the job was pulled again, its previous assignment is no longer valid
        output = self._outputs[job_id] = self._create_output(
            assignment,
            self._tokenizer,
            stop=self._prompts.stop,
            model_digest=self._heartbeat.model_digest,
        )
        self._is_idle.clear()
        scope = self._preparing[job_id] = CancelScope()
        assert self._job_tasks is not None
        self._job_tasks.start_soon(self._prepare, output, scope)

    async def _prepare(self, output: JobOutput, scope: CancelScope) -> None:
        """Prepare a job and add its sequence to the engine, unless the job is dropped in the meantime."""
        job = output.assignment.job
        sequence = None
        with scope:
            sequence = await self._preparation.prepare(output)
        if self._preparing.get(job.job_id) is not scope:
            return
        del self._preparing[job.job_id]
        if sequence is None:
            self._slot_freed.set()
            self._publish(output)
            return
        logger.debug("job_id=%s: starting at token %d", job.job_id, len(output.assignment.token_ids))
        others = [(each.assignment.job, each.num_pending_tokens) for each in self._in_engine.values()]
        sequence.priority = sequence_priority(job, output.num_prompt_tokens, others)
        self._in_engine[sequence.seq_id] = output
        self._engine.add(sequence)

    def _process_outputs(self, outputs: list[StepOutput]) -> None:
        for engine_output in outputs:
            output = self._in_engine.get(engine_output.seq_id)
            if output is None:
                continue  # the sequence was aborted in the meantime
            output.process(engine_output)
            if output.is_finished:
                self._abort(output)
            self._publish(output)

    def _publish(self, output: JobOutput) -> None:
        """Let the emit loop send the job's next event. If the event contains the prompt, build it first."""
        job_id = output.assignment.job.job_id
        if job_id in self._building_echo:
            return
        if output.has_unbuilt_echo:
            self._building_echo[job_id] = output
            self._unbuilt_echoes.put_nowait(output)
        else:
            self._signal_output(job_id)

    async def _echo_loop(self, tasks: TaskGroup) -> None:
        """Start a task for each echo to build. Callbacks of the engine's thread cannot start tasks."""
        while True:
            tasks.start_soon(self._build_echo, await self._unbuilt_echoes.get())

    async def _build_echo(self, output: JobOutput) -> None:
        job = output.assignment.job
        await self._preparation.run(job.tenant, output.build_echo)
        if self._building_echo.get(job.job_id) is output:
            del self._building_echo[job.job_id]
            self._signal_output(job.job_id)

    def _signal_output(self, job_id: str) -> None:
        """Wake the emit loop of the job's shard."""
        self._has_outputs[self._consumer.shard_of(job_id)].set()

    async def _emit_loop(self, shard: JobConsumer) -> None:
        pacer = EmitPacer(shard)
        num_steps = 0
        is_last = False
        while not is_last:
            await _wait(self._has_outputs[shard], pacer.delay_s or _PROGRESS_S)
            self._has_outputs[shard].clear()
            is_last = self._closing.is_set()
            is_due = is_last or not pacer.delay_s
            outputs = {
                job_id: output
                for job_id, output in self._outputs.items()
                if self._consumer.shard_of(job_id) is shard
            }
            events = [
                (output.assignment, event)
                for job_id, output in outputs.items()
                if self._is_ready(job_id) and (is_due or output.is_urgent) and (event := output.next_event())
            ]
            has_progress = self._engine.num_steps > num_steps or not self._in_engine
            if events or (is_due and outputs and has_progress):
                num_steps = self._engine.num_steps
                if is_due:
                    pacer.begin()
                result = await shard.emit(events, check_overflow=is_due and self._has_overflow_slot())
                if result.has_overflow_waiting:
                    self._slot_freed.set()
                ended = {assignment.job.job_id for assignment, event in events if event.final}
                self._drop_ended(outputs, result.refused | ended)

    def _is_ready(self, job_id: str) -> bool:
        """Return whether the job's output may be read. If not, the job has no event yet."""
        return job_id not in self._preparing and job_id not in self._building_echo

    def _drop_ended(self, emitted: dict[str, JobOutput], job_ids: set[str]) -> None:
        """Drop the given jobs unless they were pulled again during the emit."""
        for job_id in job_ids:
            output = self._outputs.get(job_id)
            if output is not None and output is emitted.get(job_id):
                if not output.is_finished:
                    logger.info("job_id=%s: no longer assigned to this worker", job_id)
                self._drop(job_id)

    def _drop(self, job_id: str) -> None:
        """Drop a job, whatever its state. Unknown IDs are ignored."""
        output = self._outputs.pop(job_id, None)
        self._building_echo.pop(job_id, None)
        if (scope := self._preparing.pop(job_id, None)) is not None:
            scope.cancel()
            self._slot_freed.set()
        if output is not None:
            self._abort(output)
            output.close()
        if not self._outputs:
            self._is_idle.set()

    def _abort(self, output: JobOutput) -> None:
        """Free the job's slot and abort its sequence. The engine ignores finished sequences."""
        assignment_id = output.assignment.assignment_id
        if self._in_engine.pop(assignment_id, None) is not None:
            self._engine.abort(assignment_id)
            self._slot_freed.set()

    async def _stop_engine(self) -> bool:
        """Stop the engine. Return False if its current step takes too long.

        During a model switch, the worker stays registered, so it sends heartbeats in the meantime.
        """
        async with create_task_group() as tasks:
            if self._is_model_switch and not self._has_engine_failed:
                tasks.start_soon(self._heartbeat_loop, asyncio.Event())
            await asyncio.to_thread(self._preparation.close)  # waits for any compilation in progress
            limit_s = self._hang_timeout_s if self._is_model_switch else _STOP_TIMEOUT_S
            has_stopped = await asyncio.to_thread(self._engine.stop, limit_s)
            if self._storing is not None:  # its thread refers to the weights, which are to be freed
                await asyncio.wait([self._storing], timeout=limit_s)
            tasks.cancel_scope.cancel()
        return has_stopped

    async def _heartbeat_loop(self, end: asyncio.Event) -> None:
        while not end.is_set():
            await self._send_heartbeat()
            await _wait(end, self._beat_s)

    async def _send_heartbeat(self) -> None:
        stats = self._heartbeat.stats | asdict(self._engine.stats) | {STEP_STAT: self._engine.step_s}
        command = await self._consumer.send_heartbeat(
            msgspec.structs.replace(self._heartbeat, is_draining=self._draining.is_set(), stats=stats)
        )
        if command is not None and self._on_command is not None:
            self._on_command(command)

    def _cancel_after_engine_failure(self) -> None:
        self._has_engine_failed = True
        assert self._scope is not None
        self._scope.cancel()

    def _call_soon(self, call: Callable[..., None], *arguments: object) -> None:
        """Schedule a call in the event loop's thread. Called from the engine's thread."""
        with suppress(RuntimeError):  # raised if the event loop is closed
            assert self._loop is not None
            self._loop.call_soon_threadsafe(call, *arguments)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until the event is set or the timeout expires."""
    with move_on_after(timeout_s):
        await event.wait()


def has_overflow_slot(num_running: int, num_slots: int, *, num_preparing: int = 0) -> bool:
    """Return whether all regular slots are in use and an overflow slot is free.

    Without overflow slots, a burst of requests from one tenant would take all slots, and other tenants would
    have to wait until one of those requests ended. The queue assigns an overflow slot only to a tenant that
    has few jobs on this worker. The engine prioritizes the job in the overflow slot and, if necessary,
    preempts the most recent of the other jobs. Jobs in preparation do not use the engine, so there are as
    many additional overflow slots, up to ``num_slots``.
    """
    num_jobs = num_running + num_preparing
    num_overflow_slots = max(1, num_slots // 4) + min(num_preparing, num_slots)
    return num_slots <= num_jobs < num_slots + num_overflow_slots


def overflow_poll_s(step_s: float, *, is_preparing: bool, has_prompts: bool) -> float:
    """Return the interval of overflow pulls while all slots are in use.

    The replies to emits also report jobs that are waiting for an overflow slot. But steps that only compute
    parts of prompts have no outputs to emit, and neither do jobs in preparation. If steps are long, the
    interval is a fraction of a step, so that a job waits little longer than for the end of a step.
    """
    if is_preparing:
        return _MIN_OVERFLOW_POLL_S
    shortest_s = _MIN_OVERFLOW_POLL_S if has_prompts else _SLOW_POLL_S
    return max(shortest_s, step_s / 4) if step_s >= shortest_s else _RECONCILE_S


def sequence_priority(job: Job, num_prompt_tokens: int, others: Iterable[tuple[Job, int]]) -> int:
    """Return the priority of a job's sequence. The job's own priority takes precedence.

    ``others`` contains the other jobs in the engine, with the number of their prompt tokens that the engine
    may not have computed yet. Among jobs with the same priority, a job ranks higher

    - if its tenant has fewer other jobs than half of an equal share, so that it can take a slot of others;
    - if its tenant has, including this prompt, fewer uncomputed tokens than half of an equal share, so that
      short prompts do not wait for the long prompts of others.
    """
    num_jobs, num_tokens = Counter[str](), Counter({job.tenant: num_prompt_tokens})
    for other, num_pending in others:
        num_jobs[other.tenant] += 1
        num_tokens[other.tenant] += num_pending
    num_own = num_jobs[job.tenant]
    has_few_jobs = not num_own or 2 * num_own * len(num_jobs) < sum(num_jobs.values())
    num_tenants = sum(each > 0 for each in num_tokens.values())
    has_few_tokens = 2 * num_tokens[job.tenant] * num_tenants < sum(num_tokens.values())
    return 3 * job.priority + has_few_jobs + has_few_tokens
