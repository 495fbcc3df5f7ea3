"""Random faults during streaming. The output that clients receive must not change.

The seed determines the faults, their targets and their order. Their timing depends on the machine.
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

from tests.echo import echo_text
from tests.faults.cluster import Cluster
from tests.faults.streams import story
from tests.machine_speed import scaled
from tests.waiting import async_wait_until

__all__ = ["Chaos", "Outcome"]

_RESPONSE_TIMEOUT_S = 60.0  # much longer than the delay caused by any fault


@dataclass(frozen=True)
class Outcome:
    """One response that a client received."""

    job_id: str
    text: str
    finish_reason: str | None
    num_tokens: int | None
    expected: str

    @property
    def is_correct(self) -> bool:
        return (self.text, self.finish_reason) == (self.expected, "length")


@dataclass
class Chaos:
    """A test run that injects faults for ``duration_s``, heals the system and waits for all responses."""

    cluster: Cluster
    seed: int
    duration_s: float
    num_clients: int = 16
    outcomes: list[Outcome] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def run(self) -> None:
        self._random = random.Random(self.seed)
        self._ends_at = time.monotonic() + self.duration_s
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx2.AsyncClient(timeout=scaled(20), limits=limits) as http:
            clients = [asyncio.create_task(self._chat(http, number)) for number in range(self.num_clients)]
            try:
                await self._inject_faults()
                await asyncio.gather(*clients)
            finally:
                for client in clients:
                    client.cancel()
                await asyncio.gather(*clients, return_exceptions=True)

    async def _inject_faults(self) -> None:
        faults: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "kill a worker": self._kill_worker,
            "freeze a worker": self._freeze_worker,
            "drain a worker": self._drain_worker,
            "kill a controller": self._kill_controller,
            "drain a controller": self._drain_controller,
            "kill the queue": self._kill_queue,
            "disconnect the network": self._disconnect,
            "stall the network": self._stall,
            "slow down the network": self._slow_down,
        }
        while time.monotonic() < self._ends_at:
            name = self._random.choice(list(faults))
            self.faults.append(name)
            await faults[name]()
            await self._pause(0.2, 1.5)
        self.cluster.front.heal()
        self.cluster.back.heal()

    async def _pause(self, min_s: float, max_s: float) -> None:
        """Wait for a random time."""
        await asyncio.sleep(self._random.uniform(min_s, max_s))

    async def _kill_worker(self) -> None:
        worker = self._random.choice(self.cluster.workers)
        worker.kill()
        worker.start()

    async def _freeze_worker(self) -> None:
        worker = self._random.choice(self.cluster.workers)
        worker.send(signal.SIGSTOP)
        await self._pause(0.5, 2.5)
        worker.send(signal.SIGCONT)

    async def _drain_worker(self) -> None:
        worker = self._random.choice(self.cluster.workers)
        await async_wait_until(lambda: worker.is_ready or worker.status is not None, "a worker to drain")
        worker.send(signal.SIGTERM)
        await worker.async_wait()
        worker.start()

    async def _kill_controller(self) -> None:
        controller = self._random.choice(self.cluster.controllers)
        controller.kill()
        controller.start()

    async def _drain_controller(self) -> None:
        controller = self._random.choice(self.cluster.controllers)
        controller.send(signal.SIGTERM)
        await controller.async_wait()
        controller.start()

    async def _kill_queue(self) -> None:
        self.cluster.queue.kill()
        await self._pause(0.0, 0.5)
        self.cluster.queue.start()

    async def _disconnect(self) -> None:
        path = self._random.choice([self.cluster.front, self.cluster.back])
        path.disconnect()
        await self._pause(0.1, 1.0)
        path.heal()

    async def _stall(self) -> None:
        path = self._random.choice([self.cluster.front, self.cluster.back])
        path.stall()
        await self._pause(0.1, 1.5)
        path.heal()

    async def _slow_down(self) -> None:
        path = self._random.choice([self.cluster.front, self.cluster.back])
        path.delay(0.1)
        await self._pause(0.1, 1.0)
        path.heal()

    async def _chat(self, http: httpx2.AsyncClient, number: int) -> None:
        """Run one client, which sends its requests one after another."""
        dice = random.Random(f"{self.seed} {number}")
        turn = 0
        while time.monotonic() < self._ends_at:
            self.outcomes.append(await self._respond(http, f"{number}-{turn}", dice.randrange(20, 150), dice))
            turn += 1

    async def _respond(
        self, http: httpx2.AsyncClient, name: str, max_tokens: int, dice: random.Random
    ) -> Outcome:
        """Get one complete response.

        After each interruption, resume the stream or repeat the request with the same idempotency key.
        """
        state, deadline = StreamState(), time.monotonic() + scaled(_RESPONSE_TIMEOUT_S)
        key = {"Idempotency-Key": f"chaos-{self.seed}-{self.cluster.front.port}-{name}"}
        body = {
            "model": "echo",
            "messages": [{"role": "user", "content": story(name)}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        problems: list[str] = []
        while not state.is_over:
            assert time.monotonic() < deadline, f"no response to {name} in time: {problems[-5:]}"
            url = f"{dice.choice(self.cluster.controllers).url}/v1/chat/completions"
            if state.can_resume:
                state.resume()
                query = {"stream": "true", "include_usage": "true"}
                headers = {"Last-Event-ID": state.last_event_id}
                request = http.build_request("GET", f"{url}/{state.id}", params=query, headers=headers)
            else:
                state = StreamState()
                request = http.build_request("POST", url, json=body, headers=key)
            problems.append(await self._read(http, request, state))
        assert state.failure is None, (name, state.failure, problems[-5:])
        num_tokens = state.usage.completion_tokens if state.usage else None
        expected = echo_text(story(name), max_tokens=max_tokens)
        return Outcome(state.id, state.text, state.finish_reason, num_tokens, expected)

    async def _read(self, http: httpx2.AsyncClient, request: httpx2.Request, state: StreamState) -> str:
        """Read a response. Return "ended", or the error that interrupted the response."""
        response = None
        try:
            response = await http.send(request, stream=True)
            if response.status_code != 200:
                error = json.loads(await response.aread())["error"]
                # After the grace period, the job no longer exists, and the request is repeated with the same
                # key.
                is_gone = response.status_code == 404 and request.method == "GET"
                assert is_gone or response.status_code in (409, 503), error
                if is_gone:
                    state.last_event_id = ""  # send the request again
                await asyncio.sleep(0.2)
                return str(error)
            async for chunk in response.aiter_bytes():
                state.feed(chunk)
            return "ended"
        except httpx2.TransportError as error:
            await asyncio.sleep(0.1)
            return repr(error)
        finally:
            if response:
                await response.aclose()
