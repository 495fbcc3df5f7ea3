"""The worker: jobs from the queue into the engine, its tokens back as events, until told to stop.

    pull  ->  prompt  ->  EngineThread  ->  Answer (detokenizer)  ->  emit
              beat once a second       reconcile every few seconds

One event loop owns all of it but the engine. At most one emit is in flight; what the engine says meanwhile
leaves with the next. An emit is also the sign of progress: while jobs are held one goes out every second,
if and only if the engine finished a step since the last. So a hung engine is silent, and is found.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.commands import IssuedCommand
from llava_wire.messages.heartbeat import Heartbeat
from llava_wire.messages.sampling_params import Grammar
from llava_wire.worker_side.consumer import JobConsumer

from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine_thread import EXIT_BROKEN, Engine, EngineThread, News
from llava_worker.event_wait import wait_until_set
from llava_worker.grammar_compile import NotCompiled, compiled
from llava_worker.job_output import Answer, make_sequence
from llava_worker.language.prompt_builder import PromptBuilder, PromptRefused
from llava_worker.language.tokenizer import TextTokenizer
from llava_worker.slots import takes_guest, urgency

if TYPE_CHECKING:
    from llava_worker.engine.structured_output.grammar_cache import Grammars

__all__ = ["LEAVE_TIMEOUT_S", "Worker"]

_PROGRESS_S = 1.0  # bound between two emits while steps are made; far below any hang timeout
_RECONCILE_S = 3.0  # heals what nobody foresaw, so rarely is enough
_STOP_TIMEOUT_S = 5.0  # for calls and the step in hand
LEAVE_TIMEOUT_S = 10.0  # the usual grace before SIGKILL; everything after it is healed by the lease

logger = logging.getLogger(__name__)


class Worker:
    """Runs once. Invariant: a job is in ``_answers`` until its end was emitted or it was refused.

    The consumer stays the caller's: connected before ``run``, closed after it.
    """

    def __init__(
        self,
        consumer: JobConsumer,
        engine: Engine,
        *,
        prompts: PromptBuilder,
        tokenizer: TextTokenizer,
        heartbeat: Heartbeat,
        beat_s: float = 1.0,
        drain_timeout_s: float = 0.0,
        hang_timeout_s: float = 30.0,
        grammars: Grammars | None = None,
        make_answer: Callable[..., Answer] = Answer,
        on_order: Callable[[IssuedCommand], None] | None = None,
    ) -> None:
        self._consumer = consumer
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._heartbeat = heartbeat
        self._beat_s = beat_s
        self._drain_timeout_s = drain_timeout_s
        self._max_sequences = engine.max_sequences
        self._context_length = engine.context_length
        self._engine = EngineThread(
            engine,
            on_news=lambda news: self._post(self._take_news, news),
            on_failure=lambda: self._post(self._broken.set),
            hang_timeout_s=hang_timeout_s,
            device=heartbeat.device,
        )
        self._grammars = grammars
        self._make_answer = make_answer
        self._on_order = on_order
        self._hang_timeout_s = hang_timeout_s
        self._is_staying = False
        self._compiling: set[asyncio.Task[None]] = set()
        self._answers: dict[str, Answer] = {}  # by job_id
        self._by_sequence: dict[str, Answer] = {}  # by assignment_id: those that the engine may speak of
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining = asyncio.Event()
        self._closing = asyncio.Event()  # the last emit and the last beat are due
        self._broken = asyncio.Event()
        self._may_pull = asyncio.Event()
        self._has_news = asyncio.Event()
        self._is_idle = asyncio.Event()

    def drain(self, *, is_staying: bool = False) -> None:
        """Stop pulling, hand on what runs, and let ``run`` return. Call it in the event loop's thread.

        One that is staying keeps its place among the workers, and its engine is free after ``run``.
        """
        self._is_staying = is_staying and not self._draining.is_set()
        self._draining.set()
        self._may_pull.set()

    async def run(self) -> int:
        """The exit status: 0 after a drain, 70 when the engine broke. Exceptions from here are defects.

        A broken engine's jobs are not handed back: their assignments run out with the lease, which counts as
        a crash, so a job that breaks every engine ends after a few of them.
        """
        self._loop = asyncio.get_running_loop()
        self._engine.start()
        await self._announce()
        logger.info("worker ready: model=%s worker_id=%s", self._heartbeat.model, self._heartbeat.worker_id)
        pulling = asyncio.create_task(self._pull_jobs())
        emitting = asyncio.create_task(self._emit_events())
        beating = asyncio.create_task(self._beat())
        draining = asyncio.create_task(self._drain(pulling, emitting, beating))
        broken = asyncio.create_task(self._broken.wait())
        pending: set[asyncio.Task[Any]] = {pulling, emitting, beating, draining, broken}
        try:
            while not draining.done() and not broken.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            status = EXIT_BROKEN if broken.done() else 0
        finally:
            for task in pending:
                task.cancel()
            if pending:  # bounded: a cancellation that a library swallowed must not keep us alive
                await asyncio.wait(pending, timeout=_STOP_TIMEOUT_S)
            if self._grammars is not None:
                self._grammars.close()
            limit_s = self._hang_timeout_s if self._is_staying else _STOP_TIMEOUT_S
            has_stopped = await asyncio.to_thread(self._engine.stop, limit_s)
        return status if has_stopped or not self._is_staying else EXIT_BROKEN

    async def _pull_jobs(self) -> None:
        """Pull and reconcile in turn: no job is on its way to ``_answers`` while the two sides compare."""
        next_reconcile = time.monotonic() + _RECONCILE_S
        while not self._draining.is_set():
            self._may_pull.clear()
            num_free = self._max_sequences - len(self._by_sequence)
            if num_free > 0:
                assignments = await self._consumer.pull(num_free)
            else:
                await wait_until_set(self._may_pull, _RECONCILE_S)
                assignments = await self._consumer.pull_guest() if self._takes_guest() else []
            for assignment in assignments:
                await self._accept(assignment)
            if time.monotonic() >= next_reconcile:
                for job_id in await self._consumer.reconcile(list(self._answers)):
                    self._drop(job_id)
                next_reconcile = time.monotonic() + _RECONCILE_S

    def _takes_guest(self) -> bool:
        return takes_guest(len(self._by_sequence), self._max_sequences)

    async def _accept(self, assignment: Assignment) -> None:
        job = assignment.job
        self._drop(job.job_id)  # pulled again: the former assignment is void
        answer = self._make_answer(assignment, self._tokenizer, stop=self._prompts.stop)
        try:
            # In a thread, because tokenizing a long text must not hold up the streams that run.
            prompt = await asyncio.to_thread(self._prompts.build_for, job)
            answer.begin(prompt)
            sequence = make_sequence(assignment, prompt, context_length=self._context_length)
            sequence.priority = urgency(job, [each.assignment.job for each in self._by_sequence.values()])
        except PromptRefused as refused:
            answer.fail(refused.error)
        self._answers[job.job_id] = answer
        self._is_idle.clear()
        if answer.is_finished:
            self._has_news.set()
            return
        logger.debug("job_id=%s: begins at token %d", job.job_id, len(assignment.token_ids))
        self._by_sequence[assignment.assignment_id] = answer
        if job.sampling.grammar is None:
            self._engine.add(sequence)
        else:  # not awaited: a slow grammar holds up nobody
            task = asyncio.create_task(self._add_with_grammar(answer, sequence, job.sampling.grammar))
            self._compiling.add(task)
            task.add_done_callback(self._compiling.discard)

    async def _add_with_grammar(self, answer: Answer, sequence: Sequence, grammar: Grammar) -> None:
        """Add the sequence once its grammar is compiled, unless the job is gone by then."""
        try:
            sequence.grammar = await compiled(self._grammars, grammar, answer.assignment.job)
        except NotCompiled as failed:
            answer.fail(failed.error)
            self._release(answer)
            self._has_news.set()
        if self._by_sequence.get(sequence.seq_id) is answer:
            self._engine.add(sequence)

    def _take_news(self, news: list[News]) -> None:
        for item in news:
            answer = self._by_sequence.get(item.seq_id)
            if answer is None:
                continue  # aborted while this was under way
            answer.take(item)
            if answer.is_finished:
                self._release(answer)
        self._has_news.set()

    async def _emit_events(self) -> None:
        num_steps = 0
        is_last = False
        while not is_last:
            await wait_until_set(self._has_news, _PROGRESS_S)
            self._has_news.clear()
            is_last = self._closing.is_set()
            held = dict(self._answers)
            events = [(each.assignment, event) for each in held.values() if (event := each.next_event())]
            if events or (held and self._engine.num_steps > num_steps):
                num_steps = self._engine.num_steps
                refused = await self._consumer.emit(events, wants_guest=self._takes_guest())
                if self._consumer.has_guest:
                    self._may_pull.set()
                ended = {assignment.job.job_id for assignment, event in events if event.final}
                self._settle(held, refused | ended)

    def _settle(self, held: dict[str, Answer], gone: set[str]) -> None:
        """Forget what is gone, unless it was pulled again while the emit was under way."""
        for job_id in gone:
            answer = self._answers.get(job_id)
            if answer is not None and answer is held.get(job_id):
                if not answer.is_finished:
                    logger.info("job_id=%s: no longer ours", job_id)
                self._drop(job_id)

    def _drop(self, job_id: str) -> None:
        """Forget a job, whatever its state; unknown ones are nothing to forget."""
        answer = self._answers.pop(job_id, None)
        if answer is not None:
            self._release(answer)
            answer.let_go()
        if not self._answers:
            self._is_idle.set()

    def _release(self, answer: Answer) -> None:
        """Make the engine forget the sequence, which costs nothing where it already has."""
        assignment_id = answer.assignment.assignment_id
        if self._by_sequence.pop(assignment_id, None) is not None:
            self._engine.abort(assignment_id)
            self._may_pull.set()

    async def _beat(self) -> None:
        while not self._closing.is_set():
            await self._announce()
            await wait_until_set(self._closing, self._beat_s)

    async def _announce(self) -> None:
        """Who we are and how we are doing."""
        stats = self._heartbeat.stats | asdict(self._engine.stats)
        order = await self._consumer.beat(
            msgspec.structs.replace(self._heartbeat, is_draining=self._draining.is_set(), stats=stats)
        )
        if order is not None and self._on_order is not None:
            self._on_order(order)

    async def _drain(self, pulling: asyncio.Task[None], *talking: asyncio.Task[None]) -> None:
        """Waits for ``drain``; streams run on until the last pull is back, so that nothing gets lost."""
        await self._draining.wait()
        logger.info("draining: %d running", len(self._answers))
        try:
            await asyncio.wait_for(self._hand_on(pulling, *talking), self._drain_timeout_s + LEAVE_TIMEOUT_S)
        except asyncio.TimeoutError:
            logger.warning("could not hand on running jobs in time; they continue elsewhere after the lease")

    async def _hand_on(self, pulling: asyncio.Task[None], *talking: asyncio.Task[None]) -> None:
        await self._announce()
        await asyncio.wait([pulling])
        if self._drain_timeout_s and self._answers:
            await wait_until_set(self._is_idle, self._drain_timeout_s)
        self._closing.set()
        self._has_news.set()
        await asyncio.wait(talking)
        held = [answer.assignment for answer in self._answers.values()]
        for assignment in held:
            self._drop(assignment.job.job_id)
        if held:
            await self._consumer.give_back(held)
        if not self._is_staying:
            await self._consumer.leave()
        logger.info("drained: handed on %d", len(held))

    def _post(self, call: Callable[..., None], *arguments: object) -> None:
        """From the engine's thread to ours."""
        with suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            assert self._loop is not None
            self._loop.call_soon_threadsafe(call, *arguments)
