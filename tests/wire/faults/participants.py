"""Participants for the fault machine: workers that mark their tokens, and clients that check these marks."""

from __future__ import annotations

from dataclasses import dataclass, field

from llava_wire.controller_side.producer import JobProducer
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import Event, Final, FinishReason
from llava_wire.messages.job import Job
from llava_wire.worker_side.consumer import JobConsumer

STOP = Final(reason=FinishReason.STOP)
POSITIONS = 1000  # token ID = assignment number * POSITIONS + position in the output


class HeldJob:
    """One assignment of a worker. Its unique ``number`` identifies the writer of each token in a stream."""

    def __init__(self, assignment: Assignment, number: int, output_length: int) -> None:
        self.assignment = assignment
        self._number = number
        self._output_length = output_length
        self._offset = len(assignment.token_ids)

    def next_event(self, num_tokens: int) -> Event:
        """Return an event with up to ``num_tokens`` tokens (0 is allowed)."""
        end = min(self._offset + num_tokens, self._output_length)
        tokens = tuple(self._number * POSITIONS + position for position in range(self._offset, end))
        event = Event(self._offset, tokens, "x" * len(tokens), STOP if end == self._output_length else None)
        self._offset = end
        return event


class FaultyWorker:
    """A consumer and the jobs that it holds. The consumer may continue to write after it has been reaped."""

    def __init__(self, worker_id: str, consumer: JobConsumer) -> None:
        self.worker_id = worker_id
        self.consumer = consumer
        self.held: dict[str, HeldJob] = {}
        self.is_reconciled = True  # False after data loss, until ``reconcile`` is called

    def holds(self, job_id: str, assignment_id: str) -> bool:
        held = self.held.get(job_id)
        return held is not None and held.assignment.assignment_id == assignment_id

    async def work(self, num_tokens: int) -> None:
        events = [(held.assignment, held.next_event(num_tokens)) for held in self.held.values()]
        refused = (await self.consumer.emit(events)).refused
        ended = {assignment.job.job_id for assignment, event in events if event.final}
        for job_id in refused | ended:
            self.held.pop(job_id, None)

    async def reconcile(self) -> None:
        for job_id in await self.consumer.reconcile(self.held):
            self.held.pop(job_id)
        self.is_reconciled = True

    async def requeue(self) -> None:
        await self.consumer.requeue([held.assignment for held in self.held.values()])
        self.held.clear()


@dataclass
class Client:
    """A client that reads the stream of one job through any controller."""

    job: Job
    output_length: int
    producer: JobProducer
    events: list[Event] = field(default_factory=list)
    num_received: int = 0  # number of events from the current controller, including repeated events
    is_cancelled: bool = False

    @property
    def is_finished(self) -> bool:
        return self.is_cancelled or bool(self.events and self.events[-1].final)

    @property
    def tokens(self) -> list[int]:
        return [token for event in self.events for token in event.token_ids]

    def move_to(self, producer: JobProducer, log: list[Event]) -> None:
        self.producer = producer
        self.num_received = 0
        for event in log:
            self.receive(event)

    def receive(self, event: Event) -> None:
        assert not self.is_cancelled, "event after the cancel"
        self.num_received += 1
        if self.num_received <= len(self.events):
            assert event == self.events[self.num_received - 1], "event differs from the one received before"
            return
        assert not self.is_finished, "event after the end"
        assert event.offset == len(self.tokens), "gap or duplicate"
        self.events.append(event)
        self._check()

    def _check(self) -> None:
        assert [token % POSITIONS for token in self.tokens] == list(range(len(self.tokens)))
        writers = [token // POSITIONS for token in self.tokens]
        changes = [writer for i, writer in enumerate(writers) if i == 0 or writers[i - 1] != writer]
        assert len(changes) == len(set(changes)), "a writer continued after another one took over"
        final = self.events[-1].final
        if final and final.reason is not FinishReason.ERROR:
            assert len(self.tokens) == self.output_length
