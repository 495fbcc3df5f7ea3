"""The choices of one request: n jobs, read as one stream of (index, event)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

from llava_wire import Event, Job

from llava_server.controller import Answer, Controller

__all__ = ["Choices"]


class Choices:
    """Read by one coroutine, until every choice had its last event. Who makes it must ``aclose`` it."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._answers: list[Answer] = []
        self._news = asyncio.Event()  # any of the answers got an event
        self._open: deque[int] = deque()  # indices; whose turn it is stands first

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def job(self) -> Job:
        """The first choice's, by which the request is known."""
        return self._answers[0].job

    @property
    def is_over(self) -> bool:
        """Whether every last event has been read."""
        return not self._open

    async def submit(self, jobs: Sequence[Job], pixels: Mapping[str, bytes]) -> None:
        """More choices. Raises ApiError like ``Controller.submit``; those before it are in the queue then."""
        for job in jobs:
            answer = await self._controller.submit(job, pixels, news=self._news)
            self._open.append(len(self._answers))
            self._answers.append(answer)

    async def next(self) -> tuple[int, Event]:
        """The next event of any choice that is not over. Raises ApiError if one of them cannot go on."""
        while True:
            self._news.clear()
            for index in list(self._open):
                event = self._answers[index].take()
                if event is not None:
                    self._open.remove(index)
                    if event.final is None:
                        self._open.append(index)  # behind the others: no choice waits for a long one
                    return index, event
            await self._news.wait()

    async def aclose(self) -> None:
        """Lets go of all answers; cancels the jobs that have not ended."""
        for answer in self._answers:
            await answer.aclose()
