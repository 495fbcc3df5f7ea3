"""Chaos with a seed: faults at random moments under steady streams, and clients that must not notice.

The seed decides which faults strike, whom and in which order; what becomes of it is the system's affair.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx2
from llava_client.stream_state import StreamState

from tests.e2e.worker_process import undisturbed
from tests.faults.cluster import Cluster
from tests.faults.streams import question
from tests.machine_speed import scaled
from tests.waiting import async_wait_until

__all__ = ["Chaos", "Told"]

_PATIENCE_S = 60.0  # for one answer; far above what any fault here costs


@dataclass(frozen=True)
class Told:
    """What one client was told."""

    job_id: str
    text: str
    finish_reason: str | None
    num_tokens: int | None
    expected: str

    @property
    def is_right(self) -> bool:
        return (self.text, self.finish_reason) == (self.expected, "length")


@dataclass
class Chaos:
    """``run`` strikes for ``duration_s`` and then lets everything end."""

    cluster: Cluster
    seed: int
    duration_s: float
    num_clients: int = 16
    told: list[Told] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)

    async def run(self) -> None:
        self._random = random.Random(self.seed)
        self._ends_at = time.monotonic() + self.duration_s
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx2.AsyncClient(timeout=scaled(20), limits=limits) as http:
            clients = [asyncio.create_task(self._ask_on(http, number)) for number in range(self.num_clients)]
            try:
                await self._strike()
                await asyncio.gather(*clients)
            finally:
                for client in clients:
                    client.cancel()
                await asyncio.gather(*clients, return_exceptions=True)

    async def _strike(self) -> None:
        faults: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "kill a worker": self._kill_worker,
            "freeze a worker": self._freeze_worker,
            "drain a worker": self._drain_worker,
            "kill a controller": self._kill_controller,
            "drain a controller": self._drain_controller,
            "kill the queue": self._kill_queue,
            "cut the network": self._cut,
            "swallow the network": self._swallow,
            "slow the network": self._slow,
        }
        while time.monotonic() < self._ends_at:
            name = self._random.choice(list(faults))
            self.struck.append(name)
            await faults[name]()
            await self._let_pass(self._random.uniform(0.2, 1.5))
        self.cluster.front.heal()
        self.cluster.back.heal()

    async def _let_pass(self, seconds: float) -> None:
        """The fault's own duration."""
        end = time.monotonic() + seconds
        await async_wait_until(lambda: time.monotonic() > end, "time")

    async def _kill_worker(self) -> None:
        worker = self._random.choice(self.cluster.workers)
        worker.kill()
        worker.start()

    async def _freeze_worker(self) -> None:
        worker = self._random.choice(self.cluster.workers)
        worker.send(signal.SIGSTOP)
        await self._let_pass(self._random.uniform(0.5, 2.5))
        worker.send(signal.SIGCONT)

    async def _drain_worker(self) -> None:
        worker = self._random.choice(self.cluster.workers)
        await async_wait_until(
            lambda: worker.is_ready or worker.status is not None, "a worker that can be told"
        )
        worker.send(signal.SIGTERM)
        await async_wait_until(lambda: worker.status is not None, "the worker's drain")
        worker.start()

    async def _kill_controller(self) -> None:
        controller = self._random.choice(self.cluster.controllers)
        controller.kill()
        controller.start()

    async def _drain_controller(self) -> None:
        controller = self._random.choice(self.cluster.controllers)
        controller.send(signal.SIGTERM)
        await async_wait_until(lambda: controller.status is not None, "the controller's drain")
        controller.start()

    async def _kill_queue(self) -> None:
        self.cluster.queue.kill()
        await self._let_pass(self._random.uniform(0.0, 0.5))
        self.cluster.queue.start()

    async def _cut(self) -> None:
        path = self._random.choice([self.cluster.front, self.cluster.back])
        path.cut()
        await self._let_pass(self._random.uniform(0.1, 1.0))
        path.heal()

    async def _swallow(self) -> None:
        path = self._random.choice([self.cluster.front, self.cluster.back])
        path.swallow()
        await self._let_pass(self._random.uniform(0.1, 1.5))
        path.heal()

    async def _slow(self) -> None:
        path = self._random.choice([self.cluster.front, self.cluster.back])
        path.delay(0.1)
        await self._let_pass(self._random.uniform(0.1, 1.0))
        path.heal()

    async def _ask_on(self, http: httpx2.AsyncClient, number: int) -> None:
        """One client: question after question, each answered before the next."""
        draw = random.Random(f"{self.seed} {number}")
        turn = 0
        while time.monotonic() < self._ends_at:
            name = f"{number}-{turn}"
            self.told.append(await self._ask(http, name, draw.randrange(20, 150), draw))
            turn += 1

    async def _ask(self, http: httpx2.AsyncClient, name: str, max_tokens: int, draw: random.Random) -> Told:
        """The answer, whatever it takes: the request again under its key, or the stream where it broke."""
        transcript, give_up = StreamState(), time.monotonic() + _PATIENCE_S
        key = {"Idempotency-Key": f"chaos-{self.seed}-{self.cluster.front.port}-{name}"}
        body = {
            "model": "echo",
            "messages": [{"role": "user", "content": question(name)}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        trouble: list[str] = []
        while not transcript.is_over:
            assert time.monotonic() < give_up, f"no answer to {name} in time: {trouble[-5:]}"
            url = f"{draw.choice(self.cluster.controllers).url}/v1/chat/completions"
            if transcript.can_resume:
                transcript.resume()
                query = {"stream": "true", "include_usage": "true"}
                headers = {"Last-Event-ID": transcript.last_event_id}
                request = http.build_request("GET", f"{url}/{transcript.id}", params=query, headers=headers)
            else:
                transcript = StreamState()
                request = http.build_request("POST", url, json=body, headers=key)
            trouble.append(await self._read(http, request, transcript))
            await asyncio.sleep(0)
        assert transcript.failure is None, (name, transcript.failure, trouble[-5:])
        tokens = transcript.usage.completion_tokens if transcript.usage else None
        expected = undisturbed(question(name), max_tokens=max_tokens)
        return Told(transcript.id, transcript.text, transcript.finish_reason, tokens, expected)

    async def _read(self, http: httpx2.AsyncClient, request: httpx2.Request, transcript: StreamState) -> str:
        """What broke it off, if anything did."""
        response = None
        try:
            response = await http.send(request, stream=True)
            if response.status_code != 200:
                error = json.loads(await response.aread())["error"]
                # Who reads on was away for longer than the grace: the request again, under its key.
                is_gone = response.status_code == 404 and request.method == "GET"
                assert is_gone or response.status_code in (409, 503), error
                if is_gone:
                    transcript.last_event_id = ""  # begin anew
                await self._let_pass(0.2)
                return str(error)
            async for chunk in response.aiter_bytes():
                transcript.feed(chunk)
            return "ended"
        except httpx2.TransportError as error:
            await self._let_pass(0.1)
            return repr(error)
        finally:
            if response:
                await response.aclose()
