"""The choices of one request: n jobs, read as one stream of (index, event)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

from llava_wire.controller_side.queue_status import QueuePosition
from llava_wire.messages.event import Event, JobError
from llava_wire.messages.job import Job

from llava_server.errors import ApiError, from_job_error
from llava_server.generation.controller import Controller
from llava_server.generation.output_queue import Answer
from llava_server.tracing import span

__all__ = ["MergedOutputs"]


class MergedOutputs:
    """Read by one coroutine, until every choice had its last event. Who makes it must ``aclose`` it."""

    def __init__(
        self, controller: Controller, *, is_kept: bool = False, field: str | Sequence[str] = "messages"
    ) -> None:
        """``field`` of the request is what the jobs are made of; or each job's own."""
        self._controller = controller
        self._field = field
        self._is_kept = is_kept
        self._answers: list[Answer] = []
        self._news = asyncio.Event()  # any of the answers got an event
        self._open: deque[int] = deque()  # indices; whose turn it is stands first

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def job_id(self) -> str:
        """The first choice's, by which the request is known."""
        return self._answers[0].job_id

    @property
    def place(self) -> QueuePosition | None:
        """The first choice's in the queue, when it came; None if the answer was under way already."""
        return self._answers[0].place

    @property
    def is_over(self) -> bool:
        """Whether every last event has been read."""
        return not self._open

    async def submit(self, jobs: Sequence[Job], pixels: Mapping[str, bytes]) -> None:
        """More choices. Raises ApiError like ``Controller.submit``; those before it are in the queue then."""
        for job in jobs:
            with span("submit"):
                answer = await self._controller.submit(job, pixels, news=self._news, is_kept=self._is_kept)
            self._add(answer)

    async def resume(self, job: Job, *, timeout_s: float) -> None:
        """A choice that is under way or done already. Raises ApiError like ``Controller.resume``."""
        self._add(await self._controller.resume(job, timeout_s=timeout_s, news=self._news))

    async def next(self) -> tuple[int, Event]:
        """The next event of any choice that is not over. Raises ApiError if one of them cannot go on."""
        while (found := self._take()) is None:
            await self._news.wait()
        return found

    async def next_or_woken(self) -> tuple[int, Event] | None:
        """Like ``next``; None if ``wake`` was called first."""
        if (found := self._take()) is None:
            await self._news.wait()
            found = self._take()
        return found

    def wake(self) -> None:
        """Who waits is to look up."""
        self._news.set()

    def failure(self, index: int, error: JobError) -> ApiError:
        """What a choice's failure is to the asker."""
        return from_job_error(error, self._field if isinstance(self._field, str) else self._field[index])

    def _add(self, answer: Answer) -> None:
        self._open.append(len(self._answers))
        self._answers.append(answer)

    def _take(self) -> tuple[int, Event] | None:
        """The next event if one has come; after None, ``_news`` tells of the next."""
        self._news.clear()
        for index in list(self._open):
            event = self._answers[index].take()
            if event is not None:
                self._open.remove(index)
                if event.final is None:
                    self._open.append(index)  # behind the others: no choice waits for a long one
                return index, event
        return None

    async def aclose(self) -> None:
        """Lets go of all answers; cancels the jobs that have not ended."""
        for answer in self._answers:
            await answer.aclose()
