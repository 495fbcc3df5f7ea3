"""Clients of a fault test: each reads one answer as server-sent events and notes what came, and when."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from llava_client.sse import ServerSentEvent, SSEDecoder

from tests.e2e.worker_process import undisturbed
from tests.machine_speed import scaled
from tests.waiting import async_wait_until

__all__ = ["Stream", "Streams", "question", "reading"]

MAX_TOKENS = 120


def question(number: int | str) -> str:
    return f"Tell story number {number}."


class Stream:
    """One answer under way. ``text``, ``ids`` and ``usage`` are what came; ``error`` is how it failed."""

    def __init__(self, text: str, max_tokens: int) -> None:
        self.question = text
        self.max_tokens = max_tokens
        self.text = ""
        self.num_deltas = 0
        self.num_logprobs = 0
        self.num_comments = 0
        self.longest_gap_s = 0.0  # between two deltas
        self.last_id = ""
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.status = 0
        self.headers: httpx2.Headers = httpx2.Headers()
        self.error: Any = None
        self.is_done = False  # [DONE] has come
        self.task: asyncio.Task[None] | None = None
        self._last_at: float | None = None

    @property
    def job_id(self) -> str:
        return self.last_id.partition(":")[0]

    @property
    def is_over(self) -> bool:
        return self.task is not None and self.task.done()

    def assert_undisturbed(self) -> None:
        """The whole text, once, as if nothing had happened."""
        assert (self.error, self.is_done, self.finish_reason) == (None, True, "length")
        assert self.text == undisturbed(self.question, max_tokens=self.max_tokens)
        assert self.usage
        assert self.usage["completion_tokens"] == self.max_tokens

    async def read(self, response: httpx2.Response) -> None:
        """Until the end of the bytes. Raises what the transport raises."""
        self.status, self.headers = response.status_code, response.headers
        if response.status_code != 200:
            await response.aread()
            self.error = response.json()["error"]
            return
        decoder = SSEDecoder()
        async for chunk in response.aiter_bytes():
            self.num_comments += chunk.startswith(b":")
            for event in decoder.feed(chunk):
                self._take(event)

    def _take(self, event: ServerSentEvent) -> None:
        self.last_id = event.id
        if event.data == "[DONE]":
            self.is_done = True
            return
        chunk = json.loads(event.data)
        self.error = chunk.get("error", self.error)
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", []):
            self.finish_reason = choice["finish_reason"] or self.finish_reason
            self.num_logprobs += len((choice["logprobs"] or {}).get("content") or ())
            if choice["delta"].get("content"):
                self.text += choice["delta"]["content"]
                self.num_deltas += 1
                now = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now - (self._last_at or now))
                self._last_at = now


class Streams:
    """Opens streams; a broken connection is an error of its stream."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http
        self.all: list[Stream] = []

    def ask(
        self,
        url: str,
        text: str,
        *,
        max_tokens: int = MAX_TOKENS,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> Stream:
        body = {
            "model": "echo",
            "messages": [{"role": "user", "content": text}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            **fields,
        }
        stream = Stream(text, max_tokens)
        request = self.http.build_request("POST", f"{url}/v1/chat/completions", json=body, headers=headers)
        self._start(stream, request)
        return stream

    def resume(self, url: str, stream: Stream, **query: str) -> Stream:
        """The same answer, read on where ``stream`` broke off."""
        parameters = {"stream": "true", "include_usage": "true", **query}
        headers = {"Last-Event-ID": stream.last_id} if stream.last_id else {}
        path = f"{url}/v1/chat/completions/{stream.job_id}"
        rest = Stream(stream.question, stream.max_tokens)
        self._start(rest, self.http.build_request("GET", path, params=parameters, headers=headers))
        return rest

    async def all_over(self) -> None:
        await async_wait_until(
            lambda: all(stream.is_over for stream in self.all), "every stream's end", timeout_s=60
        )

    async def close(self) -> None:
        for stream in self.all:
            assert stream.task
            stream.task.cancel()
        await asyncio.gather(*(stream.task for stream in self.all if stream.task), return_exceptions=True)

    def _start(self, stream: Stream, request: httpx2.Request) -> None:
        stream.task = asyncio.create_task(self._read(stream, request))
        self.all.append(stream)

    async def _read(self, stream: Stream, request: httpx2.Request) -> None:
        response = None
        try:
            response = await self.http.send(request, stream=True)
            await stream.read(response)
        except httpx2.TransportError as error:
            stream.error = error
        finally:
            if response:
                await response.aclose()


@asynccontextmanager
async def reading() -> AsyncIterator[Streams]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(timeout=scaled(60), limits=limits) as http:
        streams = Streams(http)
        try:
            yield streams
        finally:
            await streams.close()
