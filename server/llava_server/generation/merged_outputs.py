"""The output queues of all choices of a request, merged into one stream of (index, event)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from llava_wire.controller_side.query_results import QueuePosition
from llava_wire.messages.event import Event, JobError
from llava_wire.messages.job import Job

from llava_server.errors import ApiError, from_job_error
from llava_server.generation.controller import Controller
from llava_server.generation.output_queue import OutputQueue
from llava_server.tracing import span

__all__ = ["MergedOutputs"]


class MergedOutputs:
    """The merged outputs of all choices of a request. A single coroutine reads them and must close them.

    ``field`` is the name of the request field that contains the prompt, or a list with one field name per
    job. Errors report this name.
    """

    def __init__(
        self, controller: Controller, *, is_resumable: bool = False, field: str | Sequence[str] = "messages"
    ) -> None:
        self._controller = controller
        self._field = field
        self._is_resumable = is_resumable
        self._queues: list[OutputQueue] = []
        self._event_arrived = asyncio.Event()  # set when any of the queues receives an event
        self._unfinished: deque[int] = deque()  # indices of choices, least recently read first

    def __len__(self) -> int:
        return len(self._queues)

    @property
    def job_id(self) -> str:
        """The job ID of the first choice, which is also the response ID."""
        return self._queues[0].job_id

    @property
    def queue_position(self) -> QueuePosition | None:
        """The queue position of the first choice at submission, or None if its job already existed."""
        return self._queues[0].queue_position

    @property
    def is_finished(self) -> bool:
        """Whether the last event of every choice has been read."""
        return not self._unfinished

    async def submit(self, jobs: Sequence[Job], pixels: Mapping[str, bytes]) -> None:
        """Submit one job per choice. Raises the same errors as ``Controller.submit``.

        If a job cannot be submitted, the jobs submitted before it are not cancelled.
        """
        for job in jobs:
            with span("submit"):
                queue = await self._controller.submit(
                    job,
                    pixels,
                    event_arrived=self._event_arrived,
                    is_resumable=self._is_resumable,
                )
            self._add(queue)

    async def resume(self, job: Job, *, timeout_s: float) -> None:
        """Add a choice for an existing job. Raises the same errors as ``Controller.resume``."""
        self._add(await self._controller.resume(job, timeout_s=timeout_s, event_arrived=self._event_arrived))

    async def next(self) -> tuple[int, Event]:
        """Wait for the next event of any choice. Raises ApiError if a choice cannot continue."""
        while (item := self.get_nowait()) is None:
            await self._event_arrived.wait()
        return item

    async def next_or_woken(self) -> tuple[int, Event] | None:
        """Like ``next``, but return None if ``wake`` is called before an event arrives."""
        if (item := self.get_nowait()) is None:
            await self._event_arrived.wait()
            item = self.get_nowait()
        return item

    def set_receiver(self, receiver: Callable[[int, Event], bool] | None) -> None:
        """Let ``receiver`` process the events that arrive (see ``OutputQueue``), or none if it is None."""
        for index, queue in enumerate(self._queues):
            queue.receiver = None if receiver is None else partial(receiver, index)

    def wake(self) -> None:
        """Wake the reader even though no event has arrived."""
        self._event_arrived.set()

    def api_error(self, index: int, error: JobError) -> ApiError:
        """Return the API error for a failed choice."""
        return from_job_error(error, self._field if isinstance(self._field, str) else self._field[index])

    async def aclose(self) -> None:
        """Close all queues. Unfinished jobs are cancelled or, if they are resumable, detached."""
        for queue in self._queues:
            await queue.aclose()

    def _add(self, queue: OutputQueue) -> None:
        self._unfinished.append(len(self._queues))
        self._queues.append(queue)

    def get_nowait(self) -> tuple[int, Event] | None:
        """Clear ``_event_arrived``. Return the next event in round-robin order, or None if there is none."""
        self._event_arrived.clear()
        for index in list(self._unfinished):
            event = self._queues[index].get_nowait()
            if event is not None:
                self._unfinished.remove(index)
                if event.final is None:
                    self._unfinished.append(index)
                return index, event
        return None
