"""Models whose workers are started on demand, for example by an autoscaler that scales them to zero.

Requests for such a model are accepted while it has no worker. If this server knows how the model's images are
preprocessed, because it has seen a worker of the model, the request is submitted to the queue. Otherwise, the
request waits here until the first worker has registered.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from llava_server.errors import ApiError
from llava_server.shutdown import GracefulShutdown

__all__ = ["OnDemandModels"]

_RETRY_AFTER_S = 5.0


class OnDemandModels:
    """The names of the models, and the requests that wait for the first worker of one of them.

    ``wake`` must be called regularly, because waiting requests check their conditions only then.
    """

    def __init__(self, names: Iterable[str], shutdown: GracefulShutdown, *, timeout_s: float) -> None:
        self.names = frozenset(names)
        self._shutdown = shutdown
        self._timeout_s = timeout_s
        self._num_waiting: collections.Counter[str] = collections.Counter()
        self._woken = asyncio.Condition()

    @property
    def num_waiting(self) -> Mapping[str, int]:
        """The number of requests that wait for the first worker, keyed by model name."""
        return dict.fromkeys(self.names, 0) | dict(self._num_waiting)

    async def wait(self, name: str, is_found: Callable[[], bool]) -> None:
        """Wait until ``is_found`` returns True.

        Raises ApiError: 408 if no worker registers in time, 503 if the server is shutting down.
        """
        deadline = time.monotonic() + self._timeout_s
        with self._counted(name):
            while not is_found():
                self._check(name, deadline)
                async with self._woken:
                    await self._woken.wait()

    async def wake(self) -> None:
        """Make all waiting requests check their conditions."""
        async with self._woken:
            self._woken.notify_all()

    def _check(self, name: str, deadline: float) -> None:
        if self._shutdown.rejects_requests:
            raise ApiError(
                "shutting_down", "The server is shutting down. Retry.", retry_after_s=_RETRY_AFTER_S
            )
        if time.monotonic() >= deadline:
            timeout_s = self._timeout_s
            raise ApiError(
                "queue_timeout",
                f"No worker for the model {name!r} has started within the queue timeout of {timeout_s:g} "
                "seconds. Retry.",
                param="model",
                retry_after_s=_RETRY_AFTER_S,
            )

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        self._num_waiting[name] += 1
        try:
            yield
        finally:
            self._num_waiting[name] -= 1
