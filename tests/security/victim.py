"""Legitimate clients that measure the time to the first token and check each text."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from PIL import Image

from tests.echo import echo_text
from tests.machine_speed import scaled
from tests.security.attacked_site import STEP_S, AttackedSite
from tests.security.cpu_wait import CpuWait
from tests.security.running_tasks import running
from tests.server.api_key_cli import bearer
from tests.server.image_files import part

__all__ = ["Response", "Victim", "of_kind", "p50_s", "p95_s", "victim"]

_RETRY_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Response:
    """One streamed response. ``first_token_s`` is infinite if it failed.

    ``first_token_s`` does not include the time for which the processes that handled the request waited for a
    CPU, but it is at least the duration of one step of the worker.
    """

    started_at: float  # time.monotonic()
    ended_at: float
    has_image: bool
    first_token_s: float
    error: str = ""  # empty if the text is right


class Victim:
    """Clients that send one request after another, with and without images, until they are stopped.

    Every image is new to the server, so it must be decoded. All images have the same pixels, and thus lead to
    the same text.
    """

    def __init__(
        self, http: httpx2.AsyncClient, key: str, cpu_wait: CpuWait, *, num_streams: int, max_tokens: int
    ) -> None:
        self._http = http
        self._cpu_wait = cpu_wait
        self._headers = bearer(key)
        self._num_streams = num_streams
        self._max_tokens = max_tokens
        self._numbers = itertools.count()
        self._expected: dict[str, str] = {}
        self._started_at: dict[int, float] = {}  # of each open request
        self.responses: list[Response] = []

    async def during(self, seconds: float) -> list[Response]:
        """Return the responses to all requests that are open at some time in the next ``seconds``."""
        start = time.monotonic()
        end = start + seconds
        await asyncio.sleep(seconds)
        while any(started_at < end for started_at in self._started_at.values()):
            await asyncio.sleep(0.01)
        return [each for each in self.responses if each.started_at < end and each.ended_at >= start]

    async def learn_texts(self) -> None:
        """Determine the right texts while the server is undisturbed."""
        for stream in range(self._num_streams):
            prompt = _prompt(stream)
            if _has_image(stream):
                self._expected[prompt] = await self._receive(stream, lambda: None)
            else:
                self._expected[prompt] = echo_text(prompt, max_tokens=self._max_tokens)

    async def run_stream(self, stream: int) -> None:
        while True:
            number, started_at = next(self._numbers), time.monotonic()
            self._started_at[number] = started_at
            try:
                self.responses.append(await self._measure(stream, started_at))
            finally:
                del self._started_at[number]

    async def _measure(self, stream: int, started_at: float) -> Response:
        first_token_s = float("inf")
        waited_before_s = self._cpu_wait.seconds()

        def has_begun() -> None:
            nonlocal first_token_s
            if math.isinf(first_token_s):
                waited_s = self._cpu_wait.seconds() - waited_before_s
                first_token_s = max(time.monotonic() - started_at - waited_s, STEP_S)

        try:
            text = await self._receive(stream, has_begun)
        except (httpx2.HTTPError, ServerError) as error:
            await asyncio.sleep(_RETRY_INTERVAL_S)
            return Response(started_at, time.monotonic(), _has_image(stream), float("inf"), repr(error))
        expected = self._expected[_prompt(stream)]
        error_text = "" if text == expected else f"{text!r} != {expected!r}"
        return Response(started_at, time.monotonic(), _has_image(stream), first_token_s, error_text)

    async def _receive(self, stream: int, has_begun: Any) -> str:
        content: Any = _prompt(stream)
        if _has_image(stream):
            content = [{"type": "text", "text": content}, part(_unique_image(next(self._numbers)))]
        body = {
            "model": "echo",
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        text = ""
        async with self._http.stream(
            "POST", "/v1/chat/completions", json=body, headers=self._headers
        ) as response:
            if response.status_code != 200:
                await response.aread()
                raise ServerError(f"{response.status_code} {response.text}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise ServerError(line)
                delta = chunk["choices"][0]["delta"].get("content", "") if chunk["choices"] else ""
                if delta:
                    has_begun()
                text += delta
        return text


class ServerError(Exception):
    """An error that the server returned."""


@asynccontextmanager
async def victim(
    site: AttackedSite, *, num_streams: int, max_tokens: int, keeps_connections: bool = False
) -> AsyncIterator[Victim]:
    """Yield clients that are sending requests.

    By default, each request uses a new connection, so that attacks on connections affect it.
    """
    cpu_wait = CpuWait([os.getpid(), *site.process_ids])
    num_idle = num_streams if keeps_connections else 0
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=num_idle)
    async with httpx2.AsyncClient(base_url=site.controller.url, timeout=scaled(60), limits=limits) as http:
        clients = Victim(http, site.key, cpu_wait, num_streams=num_streams, max_tokens=max_tokens)
        await clients.learn_texts()
        async with running(clients.run_stream(stream) for stream in range(num_streams)):
            yield clients


def of_kind(responses: Sequence[Response], has_image: bool) -> list[Response]:
    """Return the responses to requests with or without images."""
    return [response for response in responses if response.has_image == has_image]


def p95_s(responses: Sequence[Response]) -> float:
    """Return the 95th percentile of the time to the first token."""
    times = sorted(response.first_token_s for response in responses)
    return times[int(0.95 * len(times))] if times else math.inf


def p50_s(responses: Sequence[Response]) -> float:
    """Return the median time to the first token."""
    return statistics.median([response.first_token_s for response in responses] or [math.inf])


def _prompt(stream: int) -> str:
    return f"Describe image number {stream}."


def _has_image(stream: int) -> bool:
    return stream % 2 == 1


_PIXELS = Image.effect_mandelbrot((320, 240), (-2, -1, 1, 1), 50).convert("RGB")
_PNG_END = b"\0\0\0\0IEND"


def _unique_image(number: int) -> bytes:
    """Return a JPEG with a comment that no other image has."""
    buffer = io.BytesIO()
    _PIXELS.save(buffer, "JPEG", comment=str(number).encode())
    return buffer.getvalue()
